"""ALBEF, TCL and RAD-DINO as wholes: their terms, their teacher's movement, resume, and what they refuse."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method, Progress
from medvlp.methods.context import MethodContext
from medvlp.objectives.momentum import momentum_itc
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch, TextFeatures

TEXTS = ["small left effusion", "no effusion", "large heart", "clear lungs and a normal heart"]
FUSION = {"layers": 1, "heads": 2, "ffn": 16, "dropout": 0.0}
VIT = {"name": "vit_tiny_patch16_224", "args": {"depth": 2, "embed_dim": 16, "num_heads": 2}}
PAIRED: dict[str, Any] = {
    "image": {**VIT, "input": {"size": 48, "mean": [0.4], "std": [0.2]}},
    "text": {"hidden": 16, "layers": 1, "heads": 2, "max_tokens": 16, "dropout": 0.0, "pool": "cls"},
    "projection": {"dim": 8},
    "options": {"queue": 10, "momentum": 0.9, "fusion": FUSION},
}
ALONE: dict[str, Any] = {
    "image": {
        **VIT,
        "args": {**VIT["args"], "dynamic_img_size": True},
        "input": {"size": 48, "mean": [0.4], "std": [0.2]},
    },
    "text": None,
    "options": {
        "head": {"hidden": 16, "bottleneck": 8, "prototypes": 12},
        "local_views": {"number": 2, "size": 32},
        "momentum": 0.9,
        "hold_prototypes_epochs": 0.0,
    },
}
NAMES = ("albef", "tcl", "rad_dino")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 3, 90)


def method(name: str, tokenizer: Tokenizer, **options: Any) -> Method:
    torch.manual_seed(0)
    given = ALONE if name == "rad_dino" else PAIRED
    fields = {**given, "options": {**given["options"], **options}}
    return METHODS.get(name)(MethodConfig.model_validate({"name": name, **fields}), MethodContext.of(tokenizer))


def batch(tokenizer: Tokenizer, images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)

    def pixels(size: int) -> torch.Tensor:
        return torch.randint(0, 256, (images, 1, size, size), dtype=torch.uint8, generator=generator)

    text = MethodContext.of(tokenizer).tokenise(TEXTS[:images], 16)
    hidden = torch.zeros_like(text.mask)
    hidden[:, 1] = True
    views = (pixels(48), pixels(32), pixels(32))
    return Batch(torch.arange(images), pixels(48), text=replace(text, hidden=hidden), views=views)


def step(model: Method, data: Batch, number: int = 0) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(number)
    model.train().zero_grad()
    model.begin_step(Progress(number, 10, 4))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    terms = model(data)
    torch.stack([value for value, _ in terms.values()]).sum().backward()
    model.adjust_gradients()
    optimizer.step()
    model.end_step()
    return terms


@pytest.mark.parametrize(("name", "counts"), [
    ("albef", {"itc": 8, "itm": 12, "mlm": 4}),
    ("tcl", {"itc": 8, "intra": 8, "local": 8, "itm": 12, "mlm": 4}),
    ("rad_dino", {"dino": 24, "ibot": 4, "koleo": 8}),
])  # fmt: skip
def test_every_term_counts_and_every_parameter_gets_a_gradient(
    tokenizer: Tokenizer, name: str, counts: dict[str, int]
) -> None:
    model = method(name, tokenizer)
    terms = step(model, batch(tokenizer))
    assert {key: int(count) for key, (_, count) in terms.items()} == counts
    assert all(value.isfinite() and value != 0 for value, _ in terms.values())
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert not any(p.requires_grad for p in model.teacher.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_has_the_same_teacher_and_queues(tokenizer: Tokenizer, name: str) -> None:
    data, whole = batch(tokenizer), method(name, tokenizer)
    step(whole, data, 0)
    resumed = method(name, tokenizer)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()), strict=True)
    for model in (whole, resumed):
        step(model, data, 1)
    for key, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_validation_moves_nothing_and_training_moves_teacher_and_queues_at_the_end_of_a_step_alone(
    tokenizer: Tokenizer, name: str
) -> None:
    data, model = batch(tokenizer), method(name, tokenizer, **({"centring": "mean"} if name == "rad_dino" else {}))
    step(model, data)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        model.eval()(data)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
        assert not model._arrivals
        model.train()(data)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    model.end_step()
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert any(key.startswith("teacher.") for key in moved)
    buffers = {"rad_dino": {"class_centre", "patch_centre"}}.get(name, {"image_queue.features", "image_queue.place"})
    assert buffers <= moved
    assert all(key.startswith("teacher.") or key.split(".")[0] in {b.split(".")[0] for b in buffers} | {"text_queue"}
               for key in moved)  # fmt: skip


def test_albefs_contrast_is_that_of_the_plain_steps(tokenizer: Tokenizer) -> None:
    model, data = method("albef", tokenizer, alpha=0.4).eval(), batch(tokenizer)
    with torch.no_grad():
        for parameter in model.teacher.parameters():
            parameter.add_(0.02)
        model.begin_step(Progress(3, 10, 4))
        pixels = (data.pixels.float() / 255 - 0.4) / 0.2
        image = model.image_projection.layers(model.image_encoder.backbone(pixels))
        text = model.text_projection.layers(model.text_encoder(data.text).tokens[:, 0])
        teacher = model.teacher
        keys = (
            teacher["image_projection"].layers(teacher["image_encoder"].backbone(pixels)),
            teacher["text_projection"].layers(teacher["text_encoder"](data.text).tokens[:, 0]),
        )
        queues = model.image_queue.features, model.text_queue.features
        expected, _ = momentum_itc(image, text, *keys, *queues, torch.tensor(1 / 0.07), 0.3)
        torch.testing.assert_close(model(data)["itc"][0], expected, rtol=1e-5, atol=0)


def test_the_teachers_share_rises_over_the_first_epoch(tokenizer: Tokenizer) -> None:
    model, shares = method("albef", tokenizer), []
    for number in (0, 1, 2, 4, 9):
        model.begin_step(Progress(number, 10, 4))
        shares.append(model.alpha)
    assert shares == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.4])


def test_the_queue_takes_the_teachers_vectors_in_order(tokenizer: Tokenizer) -> None:
    model, data = method("albef", tokenizer), batch(tokenizer)
    with torch.no_grad():
        keys = model.teacher["image_projection"](model.teacher["image_encoder"](model.normalised(data.pixels)).pooled)
    step(model, data)
    torch.testing.assert_close(model.image_queue.features[:4], keys)
    assert int(model.image_queue.place) == 4


def test_a_text_that_two_images_share_is_no_mismatch(tokenizer: Tokenizer) -> None:
    model, data = method("albef", tokenizer), batch(tokenizer)
    same = MethodContext.of(tokenizer).tokenise([TEXTS[0]] * 4, 16)
    hidden = torch.zeros_like(same.mask)
    value, count = model(replace(data, text=replace(same, hidden=hidden)))["itm"]
    assert count == 4
    terms = model(replace(data, text=replace(same, hidden=hidden)))
    assert (terms["mlm"][0].item(), terms["mlm"][1].item()) == (0.0, 0.0)
    assert torch.isfinite(value)


def test_pads_change_nothing(tokenizer: Tokenizer) -> None:
    model, data = method("tcl", tokenizer).eval(), batch(tokenizer)
    text = data.text
    assert text is not None
    wide = replace(
        text,
        ids=torch.nn.functional.pad(text.ids, (0, 3)),
        mask=torch.nn.functional.pad(text.mask, (0, 3)),
        hidden=torch.nn.functional.pad(text.hidden, (0, 3)),
    )
    with torch.no_grad():
        for name in ("itc", "intra", "local"):
            value, other = (model(replace(data, text=t))[name][0] for t in (text, wide))
            torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6)


def test_the_upper_half_of_a_folder_starts_the_fusion(tokenizer: Tokenizer, tmp_path: Path) -> None:
    sizes = {"vocab_size": 90, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    source = BertModel(BertConfig(**sizes, intermediate_size=16, max_position_embeddings=16))
    source.save_pretrained(tmp_path / "bert")
    text = {**PAIRED["text"], "folder": tmp_path / "bert"}
    options = {**PAIRED["options"], "text_layers": 2}
    config = MethodConfig.model_validate({"name": "albef", **PAIRED, "text": text, "options": options})
    model = METHODS.get("albef")(config, MethodContext.of(tokenizer))
    assert len(model.text_encoder.model.encoder.layer) == 2
    assert model.text_encoder.architecture["num_hidden_layers"] == 2
    upper, layer = source.encoder.layer[2].eval(), model.fusion.layers[0].eval()
    states = torch.randn(2, 5, 16)
    with torch.no_grad():
        attended = upper.attention(states)[0]
        own, _ = layer.self_attention(states, states, states)
        torch.testing.assert_close(layer.self_residual(states, own), attended, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer.ffn(attended), upper.feed_forward_chunk(attended), rtol=1e-4, atol=1e-5)
    wrong = config.model_copy(update={"options": {**options, "text_layers": 1}})
    with pytest.raises(UserError, match="cannot start"):
        METHODS.get("albef")(wrong, MethodContext.of(tokenizer))


@pytest.mark.parametrize("how", ["itc", "itm"])
@pytest.mark.parametrize("reduce", ["mean", "max"])
def test_zero_shot_by_cosine_and_by_the_matching_head(tokenizer: Tokenizer, how: str, reduce: Any) -> None:
    model, data = method("albef", tokenizer, zero_shot=how).eval(), batch(tokenizer)

    def encode(prompts: Any) -> TextFeatures:
        return model.encode_text(MethodContext.of(tokenizer).tokenise(prompts, 16))

    with torch.no_grad():
        image = model.encode_stored(data.pixels)
        scores = model.zero_shot(
            image, [["effusion", "left effusion"], ["heart"]], [["no effusion"], ["clear"]], encode, reduce
        )
        assert scores.shape == (4, 2)
        if how == "itm":
            logs = []
            for prompts in (["effusion", "left effusion"], ["no effusion"]):
                words = encode(prompts)
                states = torch.cat([image.pooled[:1, None], image.tokens[:1]], dim=1)
                odds = []
                for n in range(len(prompts)):
                    fused, _ = model.fusion(words.tokens[n : n + 1], words.mask[n : n + 1], states)
                    absent, match = model.match_head(fused[0, 0])
                    odds.append(float(match - absent))
                logs.append(max(odds) if reduce == "max" else sum(odds) / len(odds))
            assert float(scores[0, 0]) == pytest.approx(1 / (1 + math.exp(logs[1] - logs[0])), rel=1e-4)


def test_rad_dino_looks_at_its_views(tokenizer: Tokenizer) -> None:
    model, data = method("rad_dino", tokenizer), batch(tokenizer)
    schedules = []
    for number in (0, 5, 10):
        model.begin_step(Progress(number, 10, 1))
        schedules.append((model.momentum, model.teacher_temperature))
    assert schedules[0] == (pytest.approx(0.9), pytest.approx(0.04))
    assert schedules[1] == (pytest.approx(0.95), pytest.approx(0.045))
    assert schedules[2] == (pytest.approx(1.0), pytest.approx(0.05))
    with pytest.raises(UserError, match="3 further views"):
        model(replace(data, views=data.views[:2]))


def test_rad_dino_holds_its_prototypes_still_at_first(tokenizer: Tokenizer) -> None:
    model = method("rad_dino", tokenizer, hold_prototypes_epochs=1.0)
    before = model.class_head.prototypes.clone()
    step(model, batch(tokenizer), 0)
    assert torch.equal(model.class_head.prototypes, before)
    step(model, batch(tokenizer), 4)
    assert not torch.equal(model.class_head.prototypes, before)


def test_rad_dinos_mean_centre_is_a_running_mean_of_the_teachers_logits(tokenizer: Tokenizer) -> None:
    model, data = method("rad_dino", tokenizer, centring="mean"), batch(tokenizer)
    with torch.no_grad():
        seen = model.teacher["image_encoder"](model.normalised(torch.cat([data.pixels, data.views[0]])))
        mean = model.teacher["class_head"](seen.pooled).mean(0, keepdim=True)
    step(model, data)
    torch.testing.assert_close(model.class_centre, 0.1 * mean)


def test_layers_near_the_pixels_learn_more_slowly(tokenizer: Tokenizer) -> None:
    factors = method("rad_dino", tokenizer).learning_rate_factors()
    start = "image_encoder.backbone"
    assert factors[f"{start}.blocks.1."] == pytest.approx(0.9)
    assert factors[f"{start}.blocks.0."] == pytest.approx(0.81)
    assert factors[f"{start}.patch_embed"] == pytest.approx(0.2 * 0.729)


def test_bad_input_is_refused_in_words(tokenizer: Tokenizer) -> None:
    data = batch(tokenizer)
    with pytest.raises(UserError, match="second view"):
        method("tcl", tokenizer)(replace(data, views=()))
    with pytest.raises(UserError, match="hides words"):
        method("albef", tokenizer)(replace(data, text=replace(data.text, hidden=None)))
    with pytest.raises(UserError, match="needs texts"):
        method("albef", tokenizer)(replace(data, text=None))
    with pytest.raises(UserError, match="zero_shot"):
        method("albef", tokenizer, zero_shot="cosine")
    with pytest.raises(UserError, match="no way to centre"):
        method("rad_dino", tokenizer, centring="none")
    fixed = {**ALONE, "image": {**ALONE["image"], "args": VIT["args"]}}
    config = MethodConfig.model_validate({"name": "rad_dino", **fixed})
    with pytest.raises(UserError, match="dynamic_img_size"):
        METHODS.get("rad_dino")(config, MethodContext())
    with pytest.raises(UserError, match="does not fit in a queue"):
        step(method("albef", tokenizer, queue=3), data)
