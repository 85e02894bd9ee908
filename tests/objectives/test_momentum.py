"""Contrast against a teacher: official ALBEF and TCL, a loop, pads and empty cases."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from medvlp.objectives.contrastive import queue_nce
from medvlp.objectives.momentum import local_nce, momentum_itc, window_means
from tests.objectives.official import cases, check, load


def cross_modal(case: dict[str, torch.Tensor], inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    return momentum_itc(
        inputs["image"],
        inputs["text"],
        case["image_momentum"],
        case["text_momentum"],
        case["image_queue"].T,
        case["text_queue"].T,
        1 / inputs["temperature"],
        float(case["alpha"]),
    )


@pytest.mark.parametrize("file", cases("albef/itc"), ids=lambda file: file.stem)
def test_momentum_itc_is_the_official_albef(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "temperature")}
    value, count = cross_modal(case, inputs)
    assert count == 2 * len(inputs["image"])
    check(value, case, inputs)


@pytest.mark.parametrize("file", cases("tcl/ita"), ids=lambda file: file.stem)
def test_the_mean_of_six_terms_is_the_official_tcl(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "temperature")}
    scale = 1 / inputs["temperature"]
    patches, words = case["patch_momentum"], torch.nn.functional.normalize(case["word_momentum"], dim=-1)
    side = math.isqrt(patches.shape[1])
    local_image, images = local_nce(inputs["image"], window_means(patches, (side, side)), scale)
    local_text, _ = local_nce(inputs["text"], words, scale, case["text_attention_mask"].bool())
    torch.testing.assert_close(local_image, case["local_image"], rtol=1e-8, atol=0)
    torch.testing.assert_close(local_text, case["local_text"], rtol=1e-8, atol=0)
    assert images == len(patches)
    within = [
        queue_nce(inputs[side], case[f"{side}_momentum"], case[f"{side}_queue"].T, scale)[0]
        for side in ("image", "text")
    ]
    value = (2 * cross_modal(case, inputs)[0] + sum(within) + local_image + local_text) / 6
    check(value, case, inputs)


def slow_local(query: torch.Tensor, local: torch.Tensor, scale: float, mask: torch.Tensor) -> float:
    per_sample = []
    for n in range(len(query)):
        u = query[n] / query[n].norm()
        negatives = [
            math.exp(scale * float(u @ local[k, m]))
            for k in range(len(query))
            for m in range(local.shape[1])
            if k != n and mask[k, m]
        ]
        terms = []
        for m in range(local.shape[1]):
            if mask[n, m]:
                positive = math.exp(scale * float(u @ local[n, m]))
                terms.append(-math.log(positive / (positive + sum(negatives))))
        if terms:
            per_sample.append(sum(terms) / len(terms))
    return sum(per_sample) / len(per_sample)


def test_local_terms_as_in_a_loop_with_pads_and_a_sample_without_any() -> None:
    torch.manual_seed(0)
    query, local = torch.randn(4, 6, dtype=torch.float64), torch.randn(4, 5, 6, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 0, 1, 0]]).bool()
    value, count = local_nce(query, local, torch.tensor(2.0, dtype=torch.float64), mask)
    assert float(value) == pytest.approx(slow_local(query, local, 2.0, mask), rel=1e-12)
    assert count == 3
    wide = torch.cat([local, torch.full((4, 2, 6), 1e3, dtype=torch.float64)], dim=1)
    padded, _ = local_nce(
        query, wide, torch.tensor(2.0, dtype=torch.float64), torch.cat([mask, mask[:, :2] & False], 1)
    )
    torch.testing.assert_close(padded, value, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("rows", "shown"), [(0, True), (3, False)])
def test_nothing_local_is_zero_with_zero_gradients(rows: int, shown: bool) -> None:
    query, scale = torch.randn(rows, 4, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    value, count = local_nce(query, torch.randn(rows, 3, 4), scale, torch.full((rows, 3), shown))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    for tensor in (query, scale):
        assert tensor.grad is not None
        assert not tensor.grad.any()


def test_a_sample_alone_has_no_negative_and_a_finite_gradient() -> None:
    query = torch.randn(1, 4, requires_grad=True)
    value, count = local_nce(query, torch.randn(1, 3, 4), torch.tensor(2.0))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 1.0)
    assert query.grad is not None
    assert not query.grad.any()


def test_windows_are_means_of_unit_vectors_on_any_grid() -> None:
    torch.manual_seed(0)
    patches = torch.randn(2, 5 * 7, 3)
    unit = (patches / patches.norm(dim=-1, keepdim=True)).unflatten(1, (5, 7))
    means = window_means(patches, (5, 7), 2)
    expected = [unit[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2)) for r in range(2) for c in range(3)]
    torch.testing.assert_close(means, torch.stack(expected, dim=1))


def test_local_terms_are_exact_in_bf16_autocast() -> None:
    torch.manual_seed(0)
    query, local, scale = torch.randn(32, 16).bfloat16(), torch.randn(32, 4, 16).bfloat16(), torch.tensor(8.0)
    exact, _ = local_nce(query.double(), local.double(), scale.double())
    with torch.autocast("cpu", torch.bfloat16):
        low, _ = local_nce(query, local, scale)
    assert low.dtype == torch.float32
    assert float(low) == pytest.approx(float(exact), rel=1e-5)
