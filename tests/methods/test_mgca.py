"""MGCA as a whole: its terms by plain steps, pads, prototypes, switches, heat maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.methods.base import Method, Progress
from tests.methods.local_alignment import RESNET, VIT, batch, method, train_one_step, without_gradient

CNN = {**RESNET, "tap": "layer3", "attention": False}
ATTENTIVE = {**VIT, "attention": True}


def mgca(image: dict[str, Any] = CNN, **fields: Any) -> Method:
    objectives = {"cpa": {"prototypes": 6}, **fields.pop("objectives", {})}
    return method("mgca", image, text={"attention": True}, objectives=objectives, **fields)


def token_term(tokens: list, others: list, weights: list, unit_contexts: bool) -> torch.Tensor:
    total = torch.zeros(())
    for own, other, weight in zip(tokens, others, weights, strict=True):
        contexts = (own @ other.T / 0.1).softmax(1) @ other
        contexts = functional.normalize(contexts, dim=1) if unit_contexts else contexts
        scores, places = own @ contexts.T / 0.1, torch.arange(len(own))
        both = functional.cross_entropy(scores, places, reduction="none")
        both = both + functional.cross_entropy(scores.T, places, reduction="none")
        total = total + (weight * both).sum() / 2
    return total / len(tokens)


def clipped(weights: torch.Tensor) -> torch.Tensor:
    weights = weights.clamp(weights.quantile(0.1), weights.quantile(0.9))
    return weights / weights.sum()


@pytest.mark.parametrize("image", [CNN, ATTENTIVE], ids=["cnn", "vit"])
def test_the_terms_by_plain_steps(image: dict[str, Any]) -> None:
    model, given = mgca(image).eval(), batch()
    features, text = model.encode_stored(given.pixels), model.encode_text(given.text)
    image_vector, text_vector = model.project_image(features), model.project_text(text)
    scores, own = image_vector @ text_vector.T / 0.07, torch.arange(4)
    terms = model(given)
    expected = functional.cross_entropy(scores, own) + functional.cross_entropy(scores.T, own)
    torch.testing.assert_close(terms["ita"][0], expected)
    words, attention = [], []
    for row, groups in enumerate([[[1], [2, 3], [4], [5]], [[1], [2]], [[1, 2], [3], [4]], [[1], [2], [3]]]):
        pieces = torch.stack([text.tokens[row, group].sum(0) for group in groups])
        words.append(model.word_projection(pieces))
        attention.append(clipped(torch.stack([text.cls_attention[row, group].sum() for group in groups])))
    patches = list(model.patch_projection(features.tokens))
    if features.cls_attention is None:
        patch_weights = [torch.full((len(p),), 1 / len(p)) for p in patches]
    else:
        patch_weights = [clipped(weights.mean(0)) for weights in features.cls_attention]
    expected = token_term(words, patches, attention, unit_contexts=True)
    expected = expected + token_term(patches, words, patch_weights, unit_contexts=image is CNN)
    torch.testing.assert_close(terms["cta"][0], 0.7 * expected)
    assert (terms["ita"][1], terms["cta"][1], terms["cpa"][1]) == (8, 4, 4)


def test_further_pads_change_nothing() -> None:
    model = mgca().train()
    for name, (value, _) in model(batch(pads=3)).items():
        torch.testing.assert_close(value, mgca().train()(batch())[name][0])


@pytest.mark.parametrize("image", [CNN, ATTENTIVE], ids=["cnn", "vit"])
def test_every_parameter_learns(image: dict[str, Any]) -> None:
    model = mgca(image)
    train_one_step(model, batch())
    missing = without_gradient(model)
    # Rows of the vocabulary and of positions that no text has; keys' biases cancel in a softmax.
    assert [name for name in missing if "key.bias" not in name] == []


def test_prototypes_are_held_for_an_epoch_and_keep_length_one() -> None:
    model = mgca()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    start = model.prototypes.detach().clone()
    for step, moves in ((0, False), (9, False), (10, True)):
        optimizer.zero_grad()
        model.begin_step(Progress(step, 100, 10))
        train_one_step(model, batch())
        model.adjust_gradients()
        optimizer.step()
        model.end_step()
        assert torch.allclose(model.prototypes, start, atol=1e-6) != moves
    torch.testing.assert_close(model.prototypes.norm(dim=1), torch.ones(6))
    before = model.prototypes.detach().clone()
    model.eval()(batch())
    assert torch.equal(model.prototypes, before)


def test_the_switches_change_what_they_say() -> None:
    def cta(**options: bool) -> float:
        return float(mgca(options=options).eval()(batch())["cta"][0].detach())

    assert len({cta(), cta(legacy_pads=True), cta(legacy_shifted_attention=True)}) == 3
    alone = mgca(options={"legacy_per_rank": True}).eval()(batch())  # in one process the same
    for name, (value, count) in mgca().eval()(batch()).items():
        torch.testing.assert_close(alone[name][0], value)
        assert alone[name][1] == count
    assert set(mgca(objectives={"cta": {"weight": 0.0}}).eval()(batch())) == {"ita", "cpa"}


def test_what_does_not_suit_is_refused() -> None:
    with pytest.raises(UserError, match=r"Set method.text.attention=true"):
        method("mgca", CNN)
    with pytest.raises(UserError, match=r"Set method.image.attention=true"):
        mgca(VIT)
    model = mgca(options={"text_unit": "sentences"})
    with pytest.raises(UserError, match="Did you mean 'sentence'"):
        model.demands(model.config)
    with pytest.raises(UserError, match="Give a number above 0"):
        method("mgca", CNN, text={"attention": True}, objectives={"cpa": {"prototypes": 0}})
    given = batch()
    given.text.word_ids = None
    with pytest.raises(UserError, match="without word ids"):
        mgca()(given)
