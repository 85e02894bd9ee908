"""Scores of kept masks against mmsegmentation's values, MONAI case by case, loops, and repeated patients."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.segmentation import SegmentationScoring
from medvlp.tasks._regions import runs_of
from medvlp.tasks.segmentation import Outlines

SIDE = 24


def outlines(predicted: np.ndarray, reference: np.ndarray, **changes: Any) -> Outlines:
    """Keep masks `[m s s]` of one label `x`, every row a patient of its own."""
    rows = len(predicted)
    given: dict[str, Any] = {
        "sample_ids": [f"i{i}" for i in range(rows)],
        "patient_ids": [f"p{i}" for i in range(rows)],
        "label_names": ["x"],
        "labels": ["x"] * rows,
        "reference": [runs_of(mask) for mask in reference],
        "predicted": [runs_of(mask) for mask in predicted],
        "side": predicted.shape[1],
        "spacing_mm": np.full((rows, 2), np.nan),
        "tolerance": (2.0, 2.0),
    }
    return Outlines(**given | changes)


def random_masks(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return predictions and references of blobs; some rows have none of one or the other."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]

    def blob() -> np.ndarray:
        return (y - rng.uniform(6, 18)) ** 2 + (x - rng.uniform(6, 18)) ** 2 < rng.uniform(4, 40)

    reference = np.stack([blob() if rng.random() < 0.7 else np.zeros((SIDE, SIDE), bool) for _ in range(rows)])
    predicted = np.stack([blob() if rng.random() < 0.8 else np.zeros((SIDE, SIDE), bool) for _ in range(rows)])
    return predicted, reference


def scores(given: Outlines) -> dict[tuple[str, str], float]:
    return {(row.metric, row.label): row.value for row in SegmentationScoring().scores(given, {})}


def test_pooled_overlap_is_that_of_mmsegmentation(oracles: Path) -> None:
    files = sorted((oracles / "metrics" / "segmentation").glob("mmseg_*.npz"))
    binary = [case for case in map(dict, map(np.load, files)) if set(np.unique(case["label"])) <= {0, 1}]
    assert binary
    for case in binary:
        rows, height, width = case["label"].shape
        side = max(height, width)
        square = np.zeros((2, rows, side, side), bool)
        square[0, :, :height, :width], square[1, :, :height, :width] = case["prediction"] == 1, case["label"] == 1
        found = scores(outlines(*square))
        # The square has more background than the reference case.
        background = (case["prediction"] == 0, case["label"] == 0)
        more = rows * (side**2 - height * width)
        common = (background[0] & background[1]).sum() + more
        total = background[0].sum() + background[1].sum() + 2 * more
        inside = {metric: float(case[f"{metric}_per_class"][1]) for metric in ("dice", "iou")}
        wanted = {"dice": 2 * common / total, "iou": common / (total - common)}
        for metric in ("dice", "iou"):
            mean = np.nanmean([wanted[metric], inside[metric]])
            assert found[f"pooled_{metric}", "macro"] == pytest.approx(float(mean), abs=1e-6)
        if not math.isnan(float(case["case_foreground_dice_mean"])):
            assert found["dice", "macro"] == pytest.approx(float(case["case_foreground_dice_mean"]), abs=1e-6)
            assert found["pooled_dice", "macro"] > found["dice", "macro"], "what the background does to BenchX's number"


def test_surface_scores_are_monais_image_by_image_with_the_spacing_of_the_square() -> None:
    predicted, reference = random_masks(0, 30)
    spacing = np.column_stack([np.linspace(0.5, 2, 30), np.linspace(1.5, 0.7, 30)])
    found = scores(outlines(predicted, reference, spacing_mm=spacing, tolerance=(1.7, 9.0)))
    distances, shares = [], []
    for i in range(30):
        if not reference[i].any():
            continue
        if not predicted[i].any():
            distances.append(math.hypot(SIDE * spacing[i, 0], SIDE * spacing[i, 1]))
            shares.append(0.0)
            continue
        pair = [torch.from_numpy(each[i][None, None].astype(np.float32)) for each in (predicted, reference)]
        step = spacing[i].tolist()
        distances.append(float(compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=step)))
        shares.append(float(compute_surface_dice(*pair, [1.7], include_background=True, spacing=step)))
    assert found["hd95_mm", "x"] == pytest.approx(np.mean(distances), rel=1e-5)
    assert found["nsd_mm", "x"] == pytest.approx(np.mean(shares), rel=1e-5)
    assert not {metric for metric, _ in found if metric.endswith("pixels")}


def test_without_a_spacing_distances_are_in_pixels_and_say_so() -> None:
    predicted, reference = np.zeros((2, 2, SIDE, SIDE), bool)
    reference[:, 5:10, 5:10], predicted[:, 5:10, 8:13] = True, True
    one = np.array([[0.5, 0.5], [np.nan, np.nan]])
    for spacing in (np.full((2, 2), np.nan), one):
        found = scores(outlines(predicted, reference, spacing_mm=spacing))
        assert found["hd95_pixels", "x"] == 3.0
        assert not {metric for metric, _ in found if metric.endswith("mm")}
    assert scores(outlines(predicted, reference, tolerance=(2.0, 3.0)))["nsd_pixels", "x"] == 1.0


def test_a_missed_structure_counts_and_a_false_mask_is_told_apart() -> None:
    predicted, reference = np.zeros((2, 4, SIDE, SIDE), bool)
    reference[:2, 5:10, 5:10] = True
    predicted[0, 5:10, 5:10], predicted[2, 0, 0] = True, True
    given = outlines(predicted, reference)
    found = scores(given)
    assert found["dice", "x"] == found["iou", "x"] == found["nsd_pixels", "x"] == 0.5
    assert found["hd95_pixels", "x"] == pytest.approx(SIDE * math.sqrt(2) / 2)
    assert found["specificity", "x"] == 0.5
    rows = {row.metric: row for row in SegmentationScoring().scores(given, {}) if row.label == "x"}
    assert (rows["dice"].n, rows["specificity"].n, rows["pooled_dice"].n) == (2, 2, 4)


def two_labels() -> Outlines:
    predicted, reference = random_masks(3, 24)
    return outlines(
        predicted,
        reference,
        label_names=["x", "y", "never"],
        labels=["x", "y"] * 12,
        sample_ids=[f"i{i // 2}" for i in range(24)],
        patient_ids=[f"p{i // 4}" for i in range(24)],
    )


def test_labels_have_their_own_rows_and_one_mean() -> None:
    given = two_labels()
    found = scores(given)
    for place, name in enumerate(("x", "y")):
        rows = range(place, 24, 2)
        own = outlines(
            np.stack([given.masks(slice(i, i + 1))[1][0] for i in rows]),
            np.stack([given.masks(slice(i, i + 1))[0][0] for i in rows]),
        )
        for metric in ("dice", "iou", "hd95_pixels", "nsd_pixels", "specificity", "pooled_dice", "pooled_iou"):
            assert found[metric, name] == pytest.approx(scores(own)[metric, "x"], rel=1e-9)
            assert found[metric, "macro"] == pytest.approx((found[metric, "x"] + found[metric, "y"]) / 2)
            assert math.isnan(found[metric, "never"])


def test_a_resample_is_the_score_with_patients_repeated() -> None:
    given, scoring = two_labels(), SegmentationScoring()
    resamples = Resamples.draw(given.patient_ids, 20, 0)
    values = scoring.resampled(given, resamples, {})
    assert set(values) == {row.metric for row in scoring.scores(given, {})}
    for number, counts in enumerate(resamples.counts):
        rows = np.repeat(np.arange(24), counts[resamples.patient_of_sample])
        if not len(rows):
            continue
        repeated = outlines(
            given.masks(slice(None))[1][rows],
            given.masks(slice(None))[0][rows],
            label_names=given.label_names,
            labels=[given.labels[i] for i in rows],
        )
        for (metric, label), value in scores(repeated).items():
            column = [*given.label_names, "macro"].index(label)
            found = values[metric][number, column]
            if not (label == "macro" and math.isnan(found)):  # a label without a row is left out of a mean of its own
                assert found == pytest.approx(value, nan_ok=True), (metric, label)


def test_nothing_to_score_has_no_value() -> None:
    nothing = outlines(np.zeros((0, SIDE, SIDE), bool), np.zeros((0, SIDE, SIDE), bool))
    assert all(math.isnan(value) for value in scores(nothing).values())
