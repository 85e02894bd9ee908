"""Masked modelling against official values, loops, and a batch in which nothing is hidden."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.objectives.masked import mim, mlm, patches_of
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize(
    ("file", "scale"),
    [(file, 1) for file in cases("m3ae/mim")] + [(file, 2) for file in cases("mrm/mim")],
    ids=lambda value: f"{value.parts[-3]}-{value.stem}" if isinstance(value, Path) and len(value.parts) > 2 else "",
)
def test_mim_is_the_official_m3ae_and_mrm(file: Path, scale: int) -> None:
    """MRM predicts patches of an image of twice the side."""
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "prediction")}
    patch = scale * int(case["patch"])
    value, count = mim(inputs["prediction"], inputs["image"], case["mask"].bool(), patch, bool(case["normalised"]))
    assert count == case["mask"].sum()
    check(value, case, inputs)


def test_patches_are_cut_row_by_row_channels_last() -> None:
    image = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).double()
    cut = patches_of(image, 2)
    assert cut.shape == (2, 6, 12)
    for row, column in np.ndindex(2, 3):
        block = image[1, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        assert cut[1, 3 * row + column].tolist() == block.permute(1, 2, 0).flatten().tolist()


def test_patches_of_volumes_are_cut_along_all_axes() -> None:
    """Against slices: patches of 2 x 3 x 2 voxels, row-major over the grid, what is left over belongs to none."""
    volume = torch.arange(2 * 4 * 7 * 4, dtype=torch.float64).reshape(1, 2, 4, 7, 4)
    cut = patches_of(volume, (2, 3, 2))
    assert cut.shape == (1, 8, 24)
    for number, (d, h, w) in enumerate(np.ndindex(2, 2, 2)):
        block = volume[0, :, 2 * d : 2 * d + 2, 3 * h : 3 * h + 3, 2 * w : 2 * w + 2]
        assert torch.equal(cut[0, number], block.permute(1, 2, 3, 0).flatten())
    prediction = cut.clone()
    prediction[0, 3] += 2.0
    hidden = torch.arange(8)[None] == 3
    assert mim(prediction, volume, hidden, (2, 3, 2), normalised=False) == (4.0, 1.0)


def test_mim_with_nothing_hidden_is_zero_and_a_visible_patch_has_no_gradient() -> None:
    torch.manual_seed(0)
    prediction, image = torch.randn(2, 4, 12, requires_grad=True), torch.rand(2, 3, 4, 4)
    value, count = mim(prediction, image, torch.zeros(2, 4, dtype=torch.bool), 2)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert prediction.grad is not None
    assert not prediction.grad.any()
    hidden = torch.tensor([[True, False, False, True], [False, False, False, False]])
    mim(prediction, image, hidden, 2)[0].backward()
    assert torch.equal(prediction.grad.abs().sum(2) > 0, hidden)


def test_mlm_is_the_mean_over_hidden_tokens_as_in_loops() -> None:
    rng = np.random.default_rng(0)
    logits, teacher, ids = rng.standard_normal((5, 7)), rng.standard_normal((5, 7)), rng.integers(0, 7, 5)
    total, soft_total = 0.0, 0.0
    for row in range(5):
        log_p = logits[row] - np.log(np.exp(logits[row]).sum())
        q = np.exp(teacher[row]) / np.exp(teacher[row]).sum()
        total -= log_p[ids[row]]
        soft_total -= (0.4 * q * log_p).sum() + 0.6 * log_p[ids[row]]
    given = (torch.from_numpy(logits), torch.from_numpy(ids))
    value, count = mlm(*given)
    assert (float(value), float(count)) == (pytest.approx(total / 5, rel=1e-12), 5.0)
    assert float(mlm(*given, torch.from_numpy(teacher), 0.4)[0]) == pytest.approx(soft_total / 5, rel=1e-12)
    assert float(mlm(*given, torch.from_numpy(teacher), 0.0)[0]) == float(value)


def test_mlm_without_hidden_tokens_is_zero() -> None:
    logits = torch.randn(0, 7, requires_grad=True)
    value, count = mlm(logits, torch.zeros(0, dtype=torch.long), torch.randn(0, 7), 0.4)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert logits.grad is not None


def test_bf16_gives_the_float32_loss() -> None:
    torch.manual_seed(0)
    logits, ids = (20 * torch.randn(64, 50)).bfloat16(), torch.randint(50, (64,))
    prediction, image, hidden = torch.randn(2, 4, 12).bfloat16(), torch.rand(2, 3, 4, 4), torch.ones(2, 4).bool()
    with torch.autocast("cpu", torch.bfloat16):
        low = [mlm(logits, ids)[0], mim(prediction, image, hidden, 2)[0]]
    high = [functional.cross_entropy(logits.double(), ids), mim(prediction.double(), image.double(), hidden, 2)[0]]
    for ours, exact in zip(low, high, strict=True):
        assert ours.dtype == torch.float32
        assert float(ours) == pytest.approx(float(exact), rel=1e-5)
