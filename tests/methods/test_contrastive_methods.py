"""CLIP, SigLIP, KEEP, ConceptCLIP and prefixes of any of them: plain steps, what they refuse, that all parts learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method, Progress
from medvlp.methods.context import MethodContext
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch, TextBatch

BERT: dict[str, Any] = {"family": "bert", "hidden": 16, "layers": 2, "heads": 2, "vocab_size": 64, "max_tokens": 12}
TINY: dict[str, Any] = {
    "image": {
        "name": "resnet10t",
        "args": {"channels": [8, 16, 32, 64], "stem_width": 8},
        "input": {"size": 32, "mean": [0.4], "std": [0.2]},
    },
    "text": {**BERT, "dropout": 0.0},
    "projection": {"dim": 8, "hidden": None},
}
OPTIONS: dict[str, dict[str, Any]] = {
    "siglip": {"project": True},
    "conceptclip": {"zero_shot": {"local_share": 0.5, "patches": 1}},
    "keep": {"group_size": 2, "frozen_epochs": 1.0},
}
PROMPTS = ["there is a pleural effusion", "no pleural effusion", "the heart is enlarged", "clear lungs"]


def method(name: str, context: MethodContext | None = None, **fields: Any) -> Method:
    torch.manual_seed(0)
    text = {"clip": {"family": "clip", "pool": "eos"}, "siglip": {"pool": "mean"}}.get(name, {})
    settings = {**TINY, "text": {**TINY["text"], **text}, "options": OPTIONS.get(name, {})}
    config = MethodConfig.model_validate({"name": name, **settings, **fields})
    if name not in ("clip", "siglip") and "pool" not in config.text.model_fields_set:
        pool = {"keep": "pooler"}.get(name, "mean")
        config = config.model_copy(update={"text": config.text.model_copy(update={"pool": pool})})
    return METHODS.get(name)(config, context or MethodContext(32, 0, ("No Finding", "Pneumonia")))


def batch(images: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 32, (images, 7), generator=generator)
    mask = torch.arange(7) < torch.tensor([[7], [4], [6], [5]]).repeat(2, 1)[:images]
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1)[:images]
    spans = torch.tensor([[[1, 3], [3, 4]], [[1, 2], [-1, -1]], [[-1, -1], [-1, -1]], [[2, 4], [-1, -1]]])
    text = TextBatch(torch.where(mask, ids, 0), mask, labels, spans=spans.repeat(2, 1, 1)[:images])
    return Batch(
        index=torch.arange(images),
        pixels=torch.randint(0, 256, (images, 1, 32, 32), dtype=torch.uint8, generator=generator),
        labels=labels,
        text=text,
        groups=torch.arange(images) // 2,
        related=torch.eye(images // 2).bool(),
    )


def vectors(model: Method, data: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    image = model.project_image(model.encode_image((data.pixels.float() / 255 - 0.4) / 0.2))
    return image, model.project_text(model.encode_text(data.text))


def test_clip_is_the_symmetric_contrast_with_a_scale_that_ends_at_its_bound() -> None:
    model, data = method("clip").eval(), batch()
    image, text = vectors(model, data)
    logits, own = image @ text.T / 0.07, torch.arange(4)
    expected = (functional.cross_entropy(logits, own) + functional.cross_entropy(logits.T, own)) / 2
    value, count = model(data)["info_nce"]
    torch.testing.assert_close(value, expected)
    assert count == 8
    with torch.no_grad():
        model.log_scale.fill_(9.0)
    model.train()(data)
    assert model.log_scale.item() == pytest.approx(math.log(100.0))


def test_siglip_is_a_sigmoid_for_every_pair() -> None:
    model, data = method("siglip").eval(), batch()
    image, text = vectors(model, data)
    total = 0.0
    for i in range(4):
        for j in range(4):
            logit = 10.0 * (image[i] @ text[j]).item() - 10.0
            total += math.log1p(math.exp(-logit if i == j else logit))
    value, _ = model(data)["sigmoid"]
    assert float(value) == pytest.approx(total / 4, rel=1e-5)
    assert {"log_scale", "logit_bias"} <= set(dict(model.named_parameters()))


def test_siglip_compares_towers_of_one_width_as_they_are() -> None:
    text = {**TINY["text"], "hidden": 64, "pool": "mean"}
    model, data = method("siglip", options={"project": False}, text=text).eval(), batch()
    assert not any("projection" in name for name, _ in model.named_parameters())
    features = model.encode_stored(data.pixels)
    torch.testing.assert_close(model.project_image(features), functional.normalize(features.pooled, dim=1))
    with pytest.raises(UserError, match="without a projection"):
        method("siglip", options={"project": False})


def keep_loss(model: Method, data: Batch, related: tuple[int, ...] = ()) -> float:
    """The released variant, least-hard positives and hard negatives, in plain sums at 1/0.04."""
    image, text = vectors(model, data)
    cosines = (image @ text.T).double()
    total = 0.0
    for matrix in (cosines, cosines.T):
        for i in range(2):
            rows = (2 * i, 2 * i + 1)
            positive = sum(1 / sum(math.exp(-25 * matrix[r, c]) for c in rows) for r in rows)
            others = [c for c in range(4) if c not in rows]
            negative = sum(math.exp(25 * (-1.0 if related else matrix[r, c])) for r in rows for c in others)
            total -= math.log(positive / (positive + negative))
    return total / 4


def test_keep_is_the_group_metric_of_its_groups() -> None:
    model, data = method("keep").eval(), batch()
    value, count = model(data)["group_metric"]
    assert float(value) == pytest.approx(keep_loss(model, data), rel=1e-4)
    assert count == 4
    related = replace(data, related=torch.ones(2, 2).bool())
    assert float(model(related)["group_metric"][0]) == pytest.approx(keep_loss(model, data, related=(0, 1)), abs=1e-6)


def test_keep_holds_its_towers_in_the_first_epoch() -> None:
    model, data = method("keep"), batch()
    for step, held in ((0, True), (9, True), (10, False)):
        model.begin_step(Progress(step, 100, 10))
        model.zero_grad()
        model(data)["group_metric"][0].backward()
        model.adjust_gradients()
        still = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is None}
        assert still == ({"image_encoder", "text_encoder"} if held else set())
        assert model.image_projection.layers.weight.grad is not None


def test_keep_refuses_a_batch_without_groups_or_of_unequal_ones() -> None:
    model, data = method("keep"), batch()
    with pytest.raises(UserError, match="has none"):
        model(replace(data, related=None))
    with pytest.raises(UserError, match="not 3 groups of one size"):
        model(replace(data, related=torch.eye(3).bool()))


def test_conceptclip_is_both_sigmoids() -> None:
    model, data = method("conceptclip").eval(), batch()
    image, text = vectors(model, data)
    tokens = model.token_projection.layers(model.encode_text(data.text).tokens)
    patches = functional.normalize(model.patch_projection.layers(model.encode_stored(data.pixels).tokens), dim=2)
    whole = 0.0
    for i in range(4):
        for j in range(4):
            logit = (image[i] @ text[j]).item() / 0.07 - 10.0
            whole += math.log1p(math.exp(-logit if i == j else logit))
    concepts = [(0, 1, 3), (0, 3, 4), (1, 1, 2), (3, 2, 4)]
    local = 0.0
    for owner, first, last in concepts:
        concept = functional.normalize(tokens[owner, first:last].mean(0), dim=0)
        for row in range(4):
            best = max((patch @ concept).item() for patch in patches[row]) / 0.07 - 10.0
            local += math.log1p(math.exp(-best if row == owner else best))
    terms = model(data)
    assert float(terms["it_align"][0]) == pytest.approx(whole / 4, rel=1e-5)
    assert float(terms["rc_align"][0]) == pytest.approx(0.5 * local / 4, rel=1e-5)
    assert terms["rc_align"][1] == 4


def test_the_first_stage_of_conceptclip_needs_no_concepts() -> None:
    objectives = {"rc_align": {"weight": 0.0}}
    model, data = method("conceptclip", objectives=objectives), batch()
    assert not model.demands(model.config).concepts
    assert method("conceptclip").demands(method("conceptclip").config).concepts
    data.text.spans = None
    terms = model(data)
    assert list(terms) == ["it_align"]
    terms["it_align"][0].backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with pytest.raises(UserError, match="concepts"):
        method("conceptclip")(data)


@torch.inference_mode()
def test_conceptclip_answers_with_whole_images_and_best_patches() -> None:
    tokenizer = Tokenizer.train(PROMPTS, 64)
    image = {"name": "vit_tiny_patch16_224", "args": {"embed_dim": 24, "depth": 1, "num_heads": 2}}
    image["input"] = {"size": 64, "mean": [0.4], "std": [0.2]}
    options = {"zero_shot": {"local_share": 0.3, "patches": 3}}
    model = method("conceptclip", MethodContext.of(tokenizer), image=image, options=options).eval()

    def encode(prompts: list[str]):
        ids, mask, words = (torch.from_numpy(array) for array in tokenizer.encode(prompts, 12))
        return model.encode_text(TextBatch(ids, mask, word_ids=words))

    pixels = torch.randn(2, 1, 64, 64)
    features = model.encode_image(pixels)
    scores = model.zero_shot(features, [PROMPTS[:1], PROMPTS[2:3]], [PROMPTS[1:2], PROMPTS[3:]], encode)
    text = encode(PROMPTS)
    place = tokenizer.tokens(tokenizer.encode(PROMPTS[:1], 12)[0][0]).index("pleural")
    named = model.token_projection.layers(text.tokens[0])[place : place + 2].mean(0)
    torch.testing.assert_close(model.prompt_concepts(PROMPTS, text)[0], functional.normalize(named, dim=0))
    words = model.token_projection.layers(encode(["the a is"]).tokens[0])[1:-1].mean(0)
    nameless = model.prompt_concepts(["the a is"], encode(["the a is"]))[0]
    torch.testing.assert_close(nameless, functional.normalize(words, dim=0))

    concepts = model.prompt_concepts(PROMPTS, text)
    patches = functional.normalize(model.patch_projection.layers(features.tokens), dim=2)
    cosines = patches @ concepts.T
    top = cosines.sort(dim=1, descending=True).values[:, :3].mean(1) / 0.07
    whole = model.project_image(features) @ model.project_text(text).T / 0.07
    for k in (0, 1):
        local, both = (x[:, [2 * k, 2 * k + 1]].softmax(1)[:, 0] for x in (top, whole))
        torch.testing.assert_close(scores[:, k], 0.3 * local + 0.7 * both)
    maps = model.heat_map(pixels, PROMPTS[:1], encode)
    torch.testing.assert_close(maps[:, 0].flatten(1), cosines[..., 0])
    assert maps.shape == (2, 1, 4, 4)


@pytest.mark.parametrize("name", ["clip", "siglip", "keep", "conceptclip", "convirt", "medclip"])
def test_prefixes_of_any_of_them(name: str) -> None:
    nested = {"prefixes": [2, 8], "weights": [0.5, 2.0]}
    projection = {"dim": 8, "hidden": None}
    data = replace(batch(), paired=name != "medclip")
    plain, model = (method(name, projection=projection, **f).eval() for f in ({}, {"matryoshka": nested}))
    model.load_state_dict(plain.state_dict())
    term = next(iter(model(data)))
    value = model(data)[term][0]

    def cut(width: int) -> torch.Tensor:
        """The loss of a model whose vectors end after `width` dimensions."""
        for side in ("project_image", "project_text"):
            whole = getattr(type(plain), side)
            setattr(plain, side, lambda f, whole=whole: functional.normalize(whole(plain, f)[:, :width], dim=1))
        return plain(data)[term][0]

    torch.testing.assert_close(value, 0.5 * cut(2) + 2.0 * cut(8))
    value.backward()
    assert plain(data)[term][1] == model(data)[term][1]


def test_prefixes_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="prefix 9 is longer"):
        method("clip", matryoshka={"prefixes": [4, 9]})(batch())
    with pytest.raises(ValueError, match="must rise"):
        method("clip", matryoshka={"prefixes": [4, 4]})
    with pytest.raises(ValueError, match="2 weights do not belong to 1"):
        method("clip", matryoshka={"prefixes": [4], "weights": [1.0, 1.0]})
    with pytest.raises(UserError, match="no contrast of one vector"):
        METHODS.get("mrm")(MethodConfig(name="mrm", matryoshka={"prefixes": [4]}), MethodContext(32, 0))


@pytest.mark.parametrize("name", ["clip", "siglip", "conceptclip"])
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = method(name)
    torch.stack([value for value, _ in model(batch()).values()]).sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["clip", "siglip", "keep", "conceptclip"])
def test_texts_that_do_not_belong_to_images_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="one text per image"):
        method(name)(replace(batch(), paired=False))
    with pytest.raises(UserError, match="needs texts"):
        method(name)(replace(batch(), text=None))
