"""GLoRIA's objectives and zero-shot rule against official values and a loop."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import unit
from medvlp.objectives.word_region import (
    best_of_class,
    prompt_similarity,
    standardised,
    unit_word_region_nce,
    word_attention,
    word_region_nce,
    word_scores,
)
from tests.objectives.official import cases, cases_3d, check, load


def slots(lengths: torch.Tensor, width: int) -> torch.Tensor:
    return torch.arange(width) < lengths[:, None]


@pytest.mark.parametrize("file", cases("gloria/global"), ids=lambda file: file.stem)
def test_the_sum_of_both_directions_is_the_official_gloria(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    check(2 * info_nce(inputs["image"], inputs["text"], torch.tensor(10.0).double())[0], case, inputs)


@pytest.mark.parametrize("at_once", [1, 1024])
@pytest.mark.parametrize("file", cases("gloria/local"), ids=lambda file: file.stem)
def test_the_local_contrast_is_the_official_gloria(file: Path, at_once: int) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "words")}
    regions, words = inputs["image"].flatten(2).transpose(1, 2), inputs["words"].transpose(1, 2)
    mask = slots(case["lengths"], words.shape[1])
    # That a case takes the mean is told in words only.
    value, count = min(
        (word_region_nce(regions, words, mask, reduce=reduce, at_once=at_once) for reduce in ("sum", "mean")),
        key=lambda result: abs(float(result[0].detach()) - float(case["value"])),
    )
    assert count == 2 * len(regions)
    check(value, case, inputs)
    maps = word_attention(regions, words, mask, 4.0)
    for row, length in enumerate(case["lengths"]):
        expected = case[f"map_{row}"].flatten(1)
        torch.testing.assert_close(maps[row, row, :length].detach(), expected, rtol=1e-6, atol=1e-12)


def similarity(case: dict[str, torch.Tensor]) -> torch.Tensor:
    words, length = case["words"].transpose(1, 2)[:, 1:], int(case["lengths"].max())
    words = functional.pad(words, (0, 0, 0, max(0, length - words.shape[1])))
    if length > case["words"].shape[2] - 1:  # slicing stops at the slots that there are
        words = words[:, : case["words"].shape[2] - 1]
    return prompt_similarity(
        case["image_global"],
        case["image_local"].flatten(2).transpose(1, 2),
        case["text_global"],
        words,
        slots(case["lengths"], words.shape[1]),
    )


@pytest.mark.parametrize("file", cases("gloria/similarity"), ids=lambda file: file.stem)
def test_prompt_similarity_is_the_official_gloria(file: Path) -> None:
    case = load(file)
    torch.testing.assert_close(similarity(case), case["value"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("file", cases("gloria/zero_shot"), ids=lambda file: file.stem)
def test_class_scores_are_the_official_gloria(file: Path) -> None:
    case = load(file)
    scores = best_of_class(similarity(case), case["prompt_class"])
    torch.testing.assert_close(scores, case["class_score_before_normalisation"], rtol=1e-6, atol=1e-12)
    torch.testing.assert_close(standardised(scores), case["value"], rtol=1e-6, atol=1e-10)


def test_scores_as_in_a_loop() -> None:
    torch.manual_seed(0)
    regions, words = torch.randn(2, 6, 4).double(), torch.randn(3, 5, 4).double()
    mask = slots(torch.tensor([5, 2, 1]), 5)
    for reduce in ("sum", "mean", "max"):
        ours = word_scores(regions, words, mask, 3.0, 2.0, reduce)
        for i in range(2):
            for t in range(3):
                own = words[t, mask[t]]
                attention = (3.0 * (own @ regions[i].T).softmax(0)).softmax(1)
                match = 2.0 * functional.cosine_similarity(attention @ regions[i], own)
                expected = {"sum": match.exp().sum().log(), "mean": match.exp().mean().log(), "max": match.max()}
                torch.testing.assert_close(ours[i, t], expected[reduce], rtol=1e-10, atol=0)


def test_a_pair_without_words_is_left_out() -> None:
    torch.manual_seed(0)
    regions = torch.randn(3, 4, 5).double().requires_grad_()
    words = torch.randn(3, 6, 5).double().requires_grad_()
    mask = slots(torch.tensor([4, 0, 2]), 6)
    value, count = word_region_nce(regions, words, mask, scale=0.1)
    value.backward()
    assert count == 4
    kept = torch.tensor([0, 2])
    scores = 0.1 * torch.stack([word_scores(regions[[i]], words[kept], mask[kept])[0] for i in range(3)]).detach()
    by_image = functional.cross_entropy(scores[kept], torch.arange(2))
    by_text = functional.cross_entropy(scores.T, kept)  # the image without words is still a wrong answer
    torch.testing.assert_close(value.detach(), by_image + by_text, rtol=1e-10, atol=0)
    assert words.grad is not None
    assert not words.grad[~mask].any()
    assert torch.isfinite(regions.grad).all()


@pytest.mark.parametrize("pairs", [0, 2])
def test_no_words_at_all_is_zero_with_finite_gradients(pairs: int) -> None:
    regions, words = torch.randn(pairs, 4, 5, requires_grad=True), torch.randn(pairs, 3, 5, requires_grad=True)
    value, count = word_region_nce(regions, words, torch.zeros(pairs, 3, dtype=torch.bool))
    value.backward()
    assert (float(value.detach()), float(count)) == (0.0, 0.0)
    for tensor in (regions, words):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_bf16_features_give_the_float32_loss() -> None:
    torch.manual_seed(0)
    regions, words = torch.randn(4, 9, 8).bfloat16(), torch.randn(4, 5, 8).bfloat16()
    mask = slots(torch.tensor([5, 3, 1, 4]), 5)
    exact, _ = word_region_nce(regions.double(), words.double(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = word_region_nce(regions, words, mask)
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-4)


def test_a_column_without_deviation_is_standardised_to_zero() -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, 4.0]])
    assert standardised(scores).tolist() == [[0.0, -1.0], [0.0, 1.0]]


@pytest.mark.parametrize("file", cases_3d("velvet/sentence_word"), ids=lambda file: file.stem)
def test_the_contrast_of_unit_vectors_is_the_official_velvet_med(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("voxels", "tokens")}
    regions = inputs["voxels"].flatten(1, 3)
    words = torch.nn.utils.rnn.pad_sequence(inputs["tokens"].split(case["lengths"].tolist()), batch_first=True)
    mask = slots(case["lengths"], words.shape[1])
    # That a case takes the mean is told in words only.
    value, _ = min(
        (unit_word_region_nce(regions, words, mask, reduce=reduce) for reduce in ("sum", "mean")),
        key=lambda result: abs(float(result[0].detach()) - float(case["loss"])),
    )
    check(value, case, inputs, name="loss")
    maps = word_attention(unit(regions), unit(words), mask, 4.0)
    for row, length in enumerate(case["lengths"]):
        expected = case[f"attention_{row}"].flatten(1)
        torch.testing.assert_close(maps[row, row, :length].detach(), expected, rtol=1e-6, atol=1e-12)
