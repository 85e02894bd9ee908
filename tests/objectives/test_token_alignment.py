"""MGCA's objectives against official values and a loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.prototypes import sinkhorn, swapped_prediction
from medvlp.objectives.token_alignment import clipped_attention, token_alignment
from tests.objectives.official import cases, check, load

Case = dict[str, torch.Tensor]


def word_term(case: Case, inputs: Case, legacy: bool) -> torch.Tensor:
    mask = case["pad"] == 0
    weights = clipped_attention(case["word_attention"], case["word_attention"] != 0)
    everywhere = torch.ones(inputs["patch"].shape[:2], dtype=torch.bool)
    value, count = token_alignment(inputs["word"], inputs["patch"], weights, mask, everywhere, legacy_pads=legacy)
    assert count == len(mask)
    return value


def patch_term(case: Case, inputs: Case) -> torch.Tensor:
    everywhere = torch.ones(inputs["patch"].shape[:2], dtype=torch.bool)
    if "patch_attention" in case:
        weights = clipped_attention(case["patch_attention"].mean(1), everywhere)
    else:
        weights = everywhere / everywhere.sum(1, keepdim=True).double()
    of_cnn = "patch_attention" not in case
    mask = case["pad"] == 0
    return token_alignment(inputs["patch"], inputs["word"], weights, everywhere, mask, unit_contexts=of_cnn)[0]


def inputs_of(case: Case, *names: str) -> Case:
    return {name: case[name].clone().requires_grad_() for name in names}


@pytest.mark.parametrize("fixed", [False, True], ids=["legacy", "fixed"])
@pytest.mark.parametrize("file", cases("mgca/cta_word"), ids=lambda file: file.stem)
def test_words_over_patches_are_the_official_mgca(file: Path, fixed: bool) -> None:
    case = load(file)
    inputs = inputs_of(case, "word", "patch")
    check(word_term(case, inputs, legacy=not fixed), case, inputs, fixed)


@pytest.mark.parametrize("file", cases("mgca/cta_patch"), ids=lambda file: file.stem)
def test_patches_over_words_are_the_official_mgca(file: Path) -> None:
    case = load(file)
    inputs = inputs_of(case, "word", "patch")
    check(patch_term(case, inputs), case, inputs)


@pytest.mark.parametrize("file", cases("mgca/ita"), ids=lambda file: file.stem)
def test_the_sum_of_both_directions_is_the_official_mgca(file: Path) -> None:
    case = load(file)
    inputs = inputs_of(case, "image", "report")
    check(2 * info_nce(inputs["image"], inputs["report"], torch.tensor(1 / 0.07).double())[0], case, inputs)


@pytest.mark.parametrize("file", cases("mgca/cpa"), ids=lambda file: file.stem)
def test_swapped_prediction_is_the_official_mgca(file: Path) -> None:
    case = load(file)
    # The constants of a case are told in words only: one case has other ones.
    constants = min(
        ({"epsilon": 0.05, "iterations": 3}, {"epsilon": 0.1, "iterations": 1}),
        key=lambda given: abs(
            swapped_prediction(case["image"], case["report"], case["prototypes"], **given)[0] - case["value"]
        ),
    )
    directions = functional.normalize(case["prototypes"], dim=1)
    for name in ("image", "report"):
        codes = sinkhorn(functional.normalize(case[name], dim=1) @ directions.T, **constants)
        torch.testing.assert_close(codes, case[f"{name}_code"], rtol=1e-6, atol=1e-12)
    inputs = inputs_of(case, "image", "report", "prototypes")
    value, count = swapped_prediction(inputs["image"], inputs["report"], inputs["prototypes"], **constants)
    assert count == len(case["image"])
    check(value, case, {**inputs, "of_normalised_prototypes": inputs["prototypes"]})


@pytest.mark.parametrize("file", cases("mgca/total"), ids=lambda file: file.stem)
def test_the_total_is_the_official_mgca(file: Path) -> None:
    case = load(file)
    inputs = inputs_of(case, "image", "report", "patch", "word", "prototypes")
    ita = 2 * info_nce(inputs["image"], inputs["report"], torch.tensor(1 / 0.07).double())[0]
    cta = word_term(case, inputs, legacy=True) + patch_term(case, inputs)
    cpa = swapped_prediction(inputs["image"], inputs["report"], inputs["prototypes"])[0]
    for name, value in (("ita", ita), ("cta", cta), ("cpa", cpa)):
        torch.testing.assert_close(value.detach(), case[name], rtol=1e-6, atol=0)
    check(ita + 0.7 * cta + 0.5 * cpa, case, inputs)


def test_alignment_as_in_a_loop_and_pads_change_nothing() -> None:
    torch.manual_seed(0)
    words, patches = torch.randn(3, 5, 4).double(), torch.randn(3, 6, 4).double()
    mask = torch.arange(5) < torch.tensor([[5], [2], [0]])
    patch_mask = torch.arange(6) < torch.tensor([[4], [6], [6]])
    weights = torch.rand(3, 5).double()
    total = 0.0
    for row in range(2):
        own = functional.normalize(words[row, mask[row]], dim=1)
        seen = functional.normalize(patches[row, patch_mask[row]], dim=1)
        contexts = functional.normalize((own @ seen.T / 0.2).softmax(1) @ seen, dim=1)
        scores = own @ contexts.T / 0.2
        for i, weight in enumerate(weights[row, mask[row]]):
            total -= weight * (scores[i].log_softmax(0)[i] + scores[:, i].log_softmax(0)[i]) / 2
    words.requires_grad_()
    value, count = token_alignment(words, patches, weights, mask, patch_mask, 0.2)
    assert float(value.detach()) == pytest.approx(float(total) / 2, rel=1e-12)
    assert count == 2
    value.backward()
    assert words.grad is not None
    assert not words.grad[~mask].any()
    assert torch.isfinite(words.grad).all()
    again, _ = token_alignment(words.detach() + (~mask)[..., None] * 9, patches, weights, mask, patch_mask, 0.2)
    assert float(again) == pytest.approx(float(value.detach()), rel=1e-12)


@pytest.mark.parametrize("empty", ["no words", "no samples"])
def test_nothing_to_align_is_zero_with_finite_gradients(empty: str) -> None:
    size = 0 if empty == "no samples" else 2
    words, patches = torch.randn(size, 3, 4, requires_grad=True), torch.randn(size, 5, 4, requires_grad=True)
    mask, everywhere = torch.zeros(size, 3, dtype=torch.bool), torch.ones(size, 5, dtype=torch.bool)
    weights = clipped_attention(torch.zeros(size, 3), mask)
    value, count = token_alignment(words, patches, weights, mask, everywhere)
    other, other_count = token_alignment(patches, words, everywhere / 5, everywhere, mask)
    (value + other).backward()
    assert (float(value.detach()), float(count), float(other.detach()), float(other_count)) == (0.0, 0.0, 0.0, 0.0)
    for tensor in (words, patches):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_attention_is_clipped_to_the_quantiles_of_numpy() -> None:
    rng = np.random.default_rng(0)
    attention = rng.random((3, 9))
    counted = rng.random((3, 9)) < 0.7
    counted[2] = False
    ours = clipped_attention(torch.from_numpy(attention), torch.from_numpy(counted))
    for row in range(2):
        kept = attention[row][counted[row]]
        kept = kept.clip(*np.percentile(kept, [10, 90]))
        np.testing.assert_allclose(ours[row].numpy()[counted[row]], kept / kept.sum(), rtol=1e-12)
    assert not ours[~torch.from_numpy(counted)].any()


def test_assignments_are_balanced_as_in_a_loop() -> None:
    scores = np.random.default_rng(0).uniform(-1, 1, (6, 4))
    mass = np.exp(scores / 0.05).T
    mass /= mass.sum()
    for _ in range(3):
        for k in range(4):
            mass[k] /= mass[k].sum() * 4
        for b in range(6):
            mass[:, b] /= mass[:, b].sum() * 6
    np.testing.assert_allclose(sinkhorn(torch.from_numpy(scores)).numpy(), (mass * 6).T, rtol=1e-9)
    even = sinkhorn(torch.from_numpy(scores), iterations=500)
    torch.testing.assert_close(even.sum(0), torch.full((4,), 1.5).double(), rtol=1e-3, atol=0)
    assert torch.isfinite(sinkhorn(torch.tensor([[1.0, -1.0], [1.0, -1.0]]), epsilon=0.001)).all()


def test_no_sample_predicts_nothing() -> None:
    image, prototypes = torch.randn(0, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    value, count = swapped_prediction(image, torch.randn(0, 4), prototypes)
    value.backward()
    assert (float(value.detach()), float(count)) == (0.0, 0.0)
    assert prototypes.grad is not None
    assert not prototypes.grad.any()


def test_bf16_features_give_the_float32_losses() -> None:
    torch.manual_seed(0)
    words, patches = torch.randn(4, 5, 8).bfloat16(), torch.randn(4, 6, 8).bfloat16()
    prototypes, mask, everywhere = torch.randn(7, 8), torch.rand(4, 5) < 0.8, torch.ones(4, 6, dtype=torch.bool)
    mask[:, 0] = True
    weights = torch.rand(4, 5)

    def both(kind: torch.dtype) -> list[torch.Tensor]:
        return [
            token_alignment(words.to(kind), patches.to(kind), weights, mask, everywhere)[0],
            swapped_prediction(words[:, 0].to(kind), patches[:, 0].to(kind), prototypes)[0],
        ]

    exact = both(torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        low = both(torch.bfloat16)
    for ours, reference in zip(low, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float(ours) == pytest.approx(float(reference), rel=1e-4)
