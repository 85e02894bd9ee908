"""ConVIRT and MedCLIP as wholes: what they compute from a batch, what they refuse, that they learn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.config.methods import MethodConfig, method_file
from medvlp.config.tree import read_yaml
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.types import Batch, TextBatch

NAN = float("nan")
TINY: dict[str, Any] = {
    "image": {"name": "resnet18", "input": {"size": 32, "mean": [0.4], "std": [0.2]}},
    "text": {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 64, "max_tokens": 8, "dropout": 0.0},
    "projection": {"dim": 8},
}


def method(name: str, **fields: Any) -> Method:
    torch.manual_seed(0)
    config = MethodConfig.model_validate({"name": name, **TINY, **fields})
    return METHODS.get(name)(config, MethodContext(32, 0, ("No Finding", "Pneumonia")))


def batch(paired: bool, images: int = 4, texts: int = 4, labelled: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32, (texts, 6), generator=generator)
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [NAN, -1.0], [NAN, NAN]]).repeat(2, 1)
    text = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool), labels[:texts] if labelled else None)
    augmented = TextBatch(ids.flip(1), text.mask)
    pixels = torch.randint(0, 256, (images, 1, 32, 32), dtype=torch.uint8, generator=generator)
    return Batch(
        index=torch.arange(images),
        pixels=pixels,
        labels=labels[:images] if labelled else None,
        text=text,
        text_augmented=None if paired else augmented,
        paired=paired,
    )


def unit_vectors(model: Method, data: Batch) -> tuple[torch.Tensor, ...]:
    """The projections by the plain steps: normalise, timm, mean, linear, length 1."""
    pixels = (data.pixels.float() / 255 - 0.4) / 0.2
    image = model.image_projection.layers(model.image_encoder.backbone(pixels))
    readings = [data.text] if data.text_augmented is None else [data.text, data.text_augmented]
    texts = []
    for text in readings:
        states = model.text_encoder.model(input_ids=text.ids).last_hidden_state
        texts.append(model.text_projection.layers(states.mean(1)))
    return tuple(functional.normalize(x, dim=1) for x in (image, *texts))


def test_convirt_is_info_nce_at_its_temperature_and_weight() -> None:
    model, data = method("convirt", objectives={"info_nce": {"weight": 2.0}}).eval(), batch(paired=True)
    image, text = unit_vectors(model, data)
    logits, own = image @ text.T / 0.1, torch.arange(4)
    expected = 0.75 * functional.cross_entropy(logits, own) + 0.25 * functional.cross_entropy(logits.T, own)
    value, count = model(data)["info_nce"]
    torch.testing.assert_close(value, 2.0 * expected)
    assert count == 8
    assert model.log_scale.shape == (1,)
    assert "log_scale" not in dict(model.named_parameters())


def test_convirt_learns_from_the_augmented_reading() -> None:
    model, data = method("convirt").eval(), batch(paired=True)
    changed = TextBatch(data.text.ids.flip(1), data.text.mask)
    expected = model(replace(data, text=changed))["info_nce"][0]
    assert expected != model(data)["info_nce"][0]
    assert model(replace(data, text_augmented=changed))["info_nce"][0] == expected


def test_medclip_is_the_soft_label_loss_over_both_readings() -> None:
    model, data = method("medclip").eval(), batch(paired=False, images=4, texts=8)
    image, *readings = unit_vectors(model, data)
    similarity = data.labels.nan_to_num(0) @ data.text.labels.nan_to_num(0).T
    terms = []
    for text in readings:
        logits = image @ text.T / 0.07
        terms.append(functional.cross_entropy(logits, similarity.softmax(1)))
        terms.append(functional.cross_entropy(logits.T, similarity.T.softmax(1)))
    value, count = model(data)["soft_label"]
    torch.testing.assert_close(value, torch.stack(terms).mean())
    assert count == 12


@pytest.mark.parametrize("name", ["convirt", "medclip"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    fields = {"options": {"learn_temperature": True}} if name == "convirt" else {}
    model = method(name, **fields).train()
    sum(value for value, _ in model(batch(paired=name == "convirt")).values()).backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    for part in ("image_encoder.backbone.conv1", "text_encoder.model.embeddings.word", "projection", "log_scale"):
        assert all(p.grad.any() for key, p in model.named_parameters() if part in key), part
    assert all(p.ndim > 0 for p in model.parameters())


def test_medclip_keeps_its_scale_in_bounds_and_alive() -> None:
    model = method("medclip")
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    assert float(model.logit_scale.detach()) == pytest.approx(100.0, rel=1e-3)
    model(batch(paired=False))["soft_label"][0].backward()
    assert float(model.log_scale.detach()) == pytest.approx(4.6052)
    assert model.log_scale.grad.any()


def test_legacy_pooling_is_a_switch_of_medclip() -> None:
    data = batch(paired=False)
    data.text.mask[:, 3:] = False
    values = [
        float(method("medclip", options={"legacy_pad_mean": legacy}).eval()(data)["soft_label"][0].detach())
        for legacy in (False, True)
    ]
    assert values[0] != pytest.approx(values[1])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    image = {"name": "vit_tiny_patch16_224", "input": {"size": 32}}
    gradients = []
    for enabled in (False, True):
        model = method("medclip", image=image).train()
        model.set_gradient_checkpointing(enabled)
        model(batch(paired=False))["soft_label"][0].backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_batches_that_do_not_suit_are_refused() -> None:
    with pytest.raises(UserError, match="one text per image"):
        method("convirt")(batch(paired=False))
    with pytest.raises(UserError, match="needs labels"):
        method("medclip")(batch(paired=False, labelled=False))
    data = batch(paired=True)
    data.text = None
    with pytest.raises(UserError, match="needs texts"):
        method("convirt")(data)
    with pytest.raises(UserError, match="needs a text tower"):
        method("convirt", text=None)


@pytest.mark.parametrize(("name", "term"), [("convirt", "info_nce"), ("medclip", "soft_label")])
def test_a_temperature_that_is_none_is_refused(name: str, term: str) -> None:
    for value in (0.0, -1.0, NAN):
        with pytest.raises(UserError, match="Give a number above 0"):
            method(name, objectives={term: {"temperature": value}})


def test_unknown_constants_are_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'temperature'"):
        method("convirt", objectives={"info_nce": {"temperatur": 0.2}})
    with pytest.raises(UserError, match="must be of type float"):
        method("medclip", objectives={"soft_label": {"target_scale": "sharp"}})


@pytest.mark.parametrize("name", ["convirt", "medclip"])
def test_the_shipped_yaml_is_a_whole_method(name: str) -> None:
    tree = read_yaml(method_file(name))
    del tree["about"]
    config = MethodConfig.model_validate(tree)
    assert config.name == name
    assert config.image.name == "resnet50"
    assert config.projection.dim == 512
    with torch.device("meta"):
        model = METHODS.get(name)(config, MethodContext(28996))
    assert (model.image_encoder.dim, model.text_encoder.dim) == (2048, 768)


def test_medclip_learns_which_sentence_suits_an_image_it_never_saw() -> None:
    """Images with a bright left or right half; sentences of words 5 to 9 are normal, 15 to 19 name the disease."""
    generator = torch.Generator().manual_seed(3)

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        diseased = torch.randint(0, 2, (count,), generator=generator)
        pixels = torch.randint(0, 120, (count, 1, 32, 32), generator=generator)
        for row, ill in enumerate(diseased):
            pixels[row, :, :, 16 * int(ill) : 16 * int(ill) + 16] += 60
        return pixels.to(torch.uint8), diseased

    def sentences(diseased: torch.Tensor) -> TextBatch:
        ids = torch.randint(5, 10, (len(diseased), 6), generator=generator) + 10 * diseased[:, None]
        labels = torch.stack([1.0 - diseased, torch.where(diseased == 1, 1.0, NAN)], dim=1)
        return TextBatch(ids, torch.ones_like(ids, dtype=torch.bool), labels)

    model = method("medclip", objectives={"soft_label": {"target_scale": 4.0}}).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30):
        pixels, diseased = draw(16)
        labels = torch.stack([1.0 - diseased, diseased.float()], dim=1)
        text = sentences(torch.randint(0, 2, (12,), generator=generator))
        value, _ = model(Batch(torch.arange(16), pixels, labels, text, paired=False))["soft_label"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    model.eval()
    pixels, diseased = draw(40)
    with torch.inference_mode():
        images = model.project_image(model.encode_stored(pixels))
        prompts = model.project_text(model.encode_text(sentences(torch.tensor([0, 1]))))
    assert ((images @ prompts.T).argmax(1) == diseased).float().mean() >= 0.95
