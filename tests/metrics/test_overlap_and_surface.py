"""Overlap and surface scores against mmsegmentation's and MONAI's values, MONAI itself, and masks measured by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice, compute_iou, compute_surface_dice

from medvlp.metrics.benchx import segmentation_scores
from medvlp.metrics.overlap import dice, iou, overlap_counts
from medvlp.metrics.surface import diagonal_mm, surface_scores

TOLERANCE_MM = 2.0


@pytest.fixture(scope="session")
def folder(oracles: Path) -> Path:
    return oracles / "metrics" / "segmentation"


def cases(folder: Path, kind: str) -> list[tuple[str, dict[str, np.ndarray]]]:
    found = [(file.stem, dict(np.load(file))) for file in sorted(folder.glob(f"{kind}_*.npz"))]
    assert found
    return found


def counts_of(case: dict[str, np.ndarray]) -> np.ndarray:
    classes = len(case["dice_per_class"])
    return np.stack(
        [
            overlap_counts(predicted, label, classes, ignored=255)
            for predicted, label in zip(case["prediction"], case["label"], strict=True)
        ]
    )


def test_pooled_overlap_equals_mmsegmentation(folder: Path) -> None:
    for name, case in cases(folder, "mmseg"):
        found = segmentation_scores(counts_of(case))
        for key, values in (
            ("dice_per_class", found.dice),
            ("iou_per_class", found.iou),
            ("fscore_per_class", found.fscore),
            ("acc_per_class", found.accuracy),
        ):
            np.testing.assert_allclose(values, case[key], rtol=1e-6, err_msg=f"{name} {key}")
        assert found.overall_accuracy == pytest.approx(float(case["aAcc"]), rel=1e-6), name
        for key in ("mDice", "mIoU", "mFscore"):
            assert found.means[key] == pytest.approx(float(case[key]), rel=1e-6, nan_ok=True), (name, key)


def test_overlap_of_cases_equals_monai(folder: Path) -> None:
    for name, case in cases(folder, "mmseg"):
        counts = counts_of(case)[:, 1:]
        left_out, scored = dice(counts, "left_out"), dice(counts, "scored")
        np.testing.assert_allclose(left_out, case["case_foreground_dice"], rtol=1e-6, err_msg=name)
        np.testing.assert_allclose(scored, case["case_foreground_dice_empty_is_one"], rtol=1e-6, err_msg=name)
        for values, key in ((left_out, "mean"), (scored, "empty_is_one_mean")):
            known = values[~np.isnan(values)]
            mean = known.mean() if len(known) else math.nan
            assert mean == pytest.approx(float(case[f"case_foreground_dice_{key}"]), rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("shape", [(2, 9, 8), (2, 5, 6, 7)])
def test_random_overlap_equals_monai_itself(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    predicted, label = (rng.integers(0, 3, shape) * (rng.random(shape) < 0.4) for _ in range(2))
    label[1][label[1] == 2] = 0
    counts = np.stack([overlap_counts(p, t, 4) for p, t in zip(predicted, label, strict=True)])
    one_hot = [torch.stack([torch.from_numpy(m == k) for k in range(4)], dim=1).float() for m in (predicted, label)]
    for ours, theirs in ((dice, compute_dice), (iou, compute_iou)):
        np.testing.assert_allclose(ours(counts, "left_out"), theirs(*one_hot, ignore_empty=True).numpy(), rtol=1e-6)
    np.testing.assert_allclose(dice(counts, "scored"), compute_dice(*one_hot, ignore_empty=False).numpy(), rtol=1e-6)
    assert dice(counts, "scored")[1, 2] == 0
    assert dice(counts, "scored")[1, 3] == iou(counts, "scored")[1, 3] == 1
    assert np.isnan(dice(counts, "left_out")[1, 2:]).all()


def test_mistaken_maps_are_refused() -> None:
    good = np.zeros((2, 2), dtype=np.uint8)
    with pytest.raises(ValueError, match="different shapes"):
        overlap_counts(good, good[:1], 2)
    with pytest.raises(ValueError, match="the prediction holds values outside 0 to 1"):
        overlap_counts(good + 2, good, 2)
    with pytest.raises(ValueError, match="the reference holds values outside 0 to 1"):
        overlap_counts(good, good + 255, 2)
    assert overlap_counts(good, good + 255, 2, ignored=255).sum() == 0


def test_surface_scores_equal_monai(folder: Path) -> None:
    for name, case in cases(folder, "surface"):
        masks = case["prediction"] > 0, case["label"] > 0
        found = surface_scores(*masks, case["spacing"], TOLERANCE_MM)
        by_area = surface_scores(*masks, case["spacing"], TOLERANCE_MM, subvoxels=True)
        unit = surface_scores(*masks, [1.0] * masks[0].ndim, TOLERANCE_MM)
        expected = {
            "hd95": found.hd95,
            "hd100": found.hd,
            "assd": found.assd,
            "hd95_pred_to_label": found.hd95_forward,
            "surface_dice_2mm": found.nsd,
            "surface_dice_2mm_subvoxel": by_area.nsd,
            "hd95_unit_spacing": unit.hd95,
        }
        missed = masks[0].any() != masks[1].any()
        for key, value in expected.items():
            if missed and key.startswith("hd95"):  # there MONAI takes the percentile of infinities
                assert np.isnan(case[key])
                assert value == math.inf
            else:
                assert value == pytest.approx(float(case[key]), rel=1e-6, nan_ok=True), (name, key)
        counts = overlap_counts(masks[0].astype(int), masks[1].astype(int), 2)[1]
        assert float(dice(counts, "left_out")) == pytest.approx(float(case["dice"]), rel=1e-6, nan_ok=True), name


def test_a_surface_as_far_as_the_tolerance_is_within_it_whatever_the_number() -> None:
    """Against MONAI: distances are in single precision, where 1.2 is more than 1.2."""
    one, other = np.zeros((2, 6, 5, 4), dtype=bool)
    one[1], other[3] = True, True
    for step in (0.6, 0.35, 1.05, 0.3):
        masks = [torch.from_numpy(np.stack([~mask, mask])[None]) for mask in (one, other)]
        theirs = compute_surface_dice(*masks, [2 * step], spacing=(step, 3.0, 3.0), use_subvoxels=False)
        assert surface_scores(one, other, (step, 3.0, 3.0), 2 * step).nsd == float(theirs) == 1
        assert surface_scores(one, other, (step, 3.0, 3.0), 2 * step, subvoxels=True).nsd == pytest.approx(
            float(compute_surface_dice(*masks, [2 * step], spacing=(step, 3.0, 3.0), use_subvoxels=True)), rel=1e-6
        )


def test_a_line_beside_a_line_is_measured_in_mm() -> None:
    one, other = np.zeros((2, 6, 5), dtype=bool)
    one[1], other[4] = True, True
    found = surface_scores(one, other, (0.5, 10.0), 1.5)
    assert (found.hd95, found.hd, found.assd, found.nsd) == (1.5, 1.5, 1.5, 1.0)
    assert surface_scores(one, other, (0.5, 10.0), 1.49).nsd == 0
    other[4, 0] = False
    found = surface_scores(one, other, (0.5, 10.0), 1.5)
    assert found.hd == pytest.approx(math.hypot(1.5, 10))
    assert found.nsd == pytest.approx(8 / 9)


def test_a_miss_is_never_left_out() -> None:
    full, none = np.ones((3, 4), dtype=bool), np.zeros((3, 4), dtype=bool)
    furthest = diagonal_mm(full.shape, (2.0, 1.5))
    assert furthest == pytest.approx(math.hypot(6, 6))
    for masks in ((full, none), (none, full)):
        found = surface_scores(*masks, (2.0, 1.5), 2.0, missed_mm=furthest)
        assert (found.hd95, found.hd, found.assd, found.nsd) == (furthest, furthest, furthest, 0.0)
    assert math.isnan(surface_scores(none, none, (1, 1), 2.0).nsd)


def test_mistaken_masks_are_refused() -> None:
    mask = np.ones((3, 4), dtype=bool)
    with pytest.raises(ValueError, match="different shapes"):
        surface_scores(mask, mask[:2], (1, 1), 2.0)
    for spacing in ((1.0,), (1.0, 0.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match="as many spacings above 0"):
            surface_scores(mask, mask, spacing, 2.0)
