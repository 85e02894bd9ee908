"""Scores of heat maps: official values, a slow reference, thresholds, chance and resamples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, jaccard_score

from medvlp.io.enlarge import to_square
from medvlp.metrics import grounding
from medvlp.metrics.bootstrap import Resamples
from medvlp.tasks.grounding import HeatMaps

SETS = ["medklip/grounding", "medslip/grounding", "medslip/grounding_with_anatomy"]


@pytest.mark.parametrize("name", SETS)
def test_official_grounding_tests_are_reproduced(oracles: Path, name: str) -> None:
    folder = oracles / "losses2d" / name
    legacy = json.loads((folder / "meta.json").read_text())["legacy"]
    cases = sorted(folder.glob("case_*.npz"))
    assert cases
    for file in cases:
        case = dict(np.load(file))
        maps = grounding.attention_map(
            case["pathology_attention"], case.get("anatomy_attention"), "batch" if legacy else "nothing"
        )
        np.testing.assert_allclose(maps, case["value"], rtol=1e-6, atol=0)
        found = grounding.official_grounding(maps, case["box"], case["label"][:, 0], float(case["threshold"]))
        assert (found.positives, found.pointing_hits) == (int(case["positives"]), int(case["pointing_hits"]))
        np.testing.assert_allclose(found.iou, case["iou"], rtol=1e-6)
        np.testing.assert_allclose(found.dice, case["dice"], rtol=1e-6)


def test_a_hit_of_the_official_rule_is_any_largest_pixel_in_the_box() -> None:
    attention = np.full((2, 2, 196), 0.001)
    attention[:, :, 14 * 3 + 5] = 0.9
    attention[:, 1, 14 * 9 + 2] = 0.9  # a second largest patch
    boxes = np.array([[60, 90, 90, 120], [144, 160, 20, 33]])
    maps = grounding.attention_map(attention, divide_by="nothing")
    found = grounding.official_grounding(maps, boxes, np.array([1, 1]), 0.008)
    assert found.pointing_hits == 1 + 1
    assert grounding.official_grounding(maps, boxes, np.array([0, 1]), 0.008).positives == 1
    assert grounding.official_grounding(maps, boxes[::-1], np.array([1, 0]), 0.008).pointing_hits == 0


def test_maps_are_independent_of_the_batch_unless_asked_for() -> None:
    attention = np.random.default_rng(0).random((3, 4, 49))
    alone = grounding.attention_map(attention[:, 1:2])
    np.testing.assert_allclose(grounding.attention_map(attention)[1:2], alone)
    np.testing.assert_allclose(alone.max(), 1)
    whole = grounding.attention_map(attention, divide_by="batch")
    assert not np.allclose(whole[1:2], grounding.attention_map(attention[:, 1:2], divide_by="batch"))


def example(m: int = 60, seed: int = 0, side: int = 24) -> HeatMaps:
    """Maps that lean towards their regions; several rows a patient; three findings, one never there."""
    rng = np.random.default_rng(seed)
    runs, maps = [], []
    for _ in range(m):
        mask = np.zeros((side, side), bool)
        top, left = rng.integers(0, side - 8, 2)
        mask[top : top + rng.integers(2, 8), left : left + rng.integers(2, 8)] = True
        edges = np.flatnonzero(np.diff(mask.ravel().astype(int), prepend=0, append=0)).reshape(-1, 2)
        runs.append(np.stack([edges[:, 0], edges[:, 1] - edges[:, 0]], 1).ravel())
        coarse = mask.reshape(6, side // 6, 6, side // 6).mean((1, 3))
        maps.append(coarse + 0.5 * rng.random((6, 6)))
    findings = [("a", "b")[i % 2] for i in range(m)]
    patients = [f"p{i // 3}" for i in range(m)]
    return HeatMaps([f"i{i}" for i in range(m)], patients, ("a", "b", "c"), findings, np.stack(maps), runs, side)


def slow_scores(kept: HeatMaps, row: int, level: float) -> tuple[float, float, float]:
    """One row, pixel by pixel, with torch's interpolation and scikit-learn's scores."""
    given = torch.from_numpy(kept.maps[row])[None, None]
    large = torch.nn.functional.interpolate(given, size=(kept.side, kept.side), mode="bilinear")[0, 0].numpy()
    region = np.zeros(kept.side**2, bool)
    for start, length in kept.runs[row].reshape(-1, 2):
        region[start : start + length] = True
    flat = large.ravel()
    cell = np.unravel_index(np.argmax(kept.maps[row]), kept.maps[row].shape)
    at = [int((place + 0.5) * kept.side / 6) for place in cell]
    foreground = (flat - flat.min()) / (flat.max() - flat.min()) > level
    assert large[tuple(at)] > large.max() - 0.2, "the enlarged map has its maximum there"
    return (
        float(region.reshape(kept.side, -1)[tuple(at)]),
        jaccard_score(region, foreground),
        f1_score(region, foreground),
    )


def test_scores_equal_a_slow_reference() -> None:
    kept, scoring = example(), grounding.GroundingScoring()
    thresholds = {"a": 0.4, "b": 0.62, "c": 0.5}
    found = scoring.outcomes(kept, thresholds)
    for row, finding in enumerate(kept.findings):
        column = "abc".index(finding)
        expected = slow_scores(kept, row, thresholds[finding])
        assert [found[m][row, column] for m in scoring.metrics] == pytest.approx(expected, abs=1e-12)
        assert np.isnan(np.delete(found["dice"][row], column)).all()
    scores = {(s.metric, s.label): s for s in scoring.scores(kept, thresholds)}
    for metric in scoring.metrics:
        means = [np.nanmean(found[metric][:, k]) for k in (0, 1)]
        assert [scores[metric, name].value for name in "ab"] == pytest.approx(means)
        assert scores[metric, "macro"].value == pytest.approx(np.mean(means))
        assert np.isnan(scores[metric, "c"].value)
        assert [scores[metric, name].n for name in ("a", "b", "c", "macro")] == [30, 30, 0, 60]


def test_the_threshold_is_the_one_of_best_mean_dice_on_validation() -> None:
    kept = example(seed=1)
    chosen = grounding.GroundingScoring().thresholds(kept)
    levels = np.arange(100) / 100
    for finding in "ab":
        rows = [row for row, name in enumerate(kept.findings) if name == finding]
        dice = [np.mean([slow_scores(kept, row, level)[2] for row in rows[:8]]) for level in levels[::10]]
        part = HeatMaps(
            ["x"] * 8,
            ["p"] * 8,
            (finding,),
            [finding] * 8,
            kept.maps[rows[:8]],
            [kept.runs[row] for row in rows[:8]],
            kept.side,
        )
        found = grounding.GroundingScoring().thresholds(part)[finding]
        best = np.mean([slow_scores(kept, row, found)[2] for row in rows[:8]])
        assert best >= max(dice) - 1e-12
        below = np.mean([slow_scores(kept, row, max(found - 0.01, 0))[2] for row in rows[:8]])
        assert best >= below
    assert np.isnan(chosen["c"])
    assert 0 <= chosen["a"] < 1


def test_dice_at_each_threshold_is_that_of_the_values_above_it() -> None:
    """Also where values are thresholds: they are no foreground there."""
    rng = np.random.default_rng(2)
    maps = rng.integers(0, 101, (5, 6, 7)) / 100
    maps[:, 0, :2] = 0.0, 1.0
    regions = rng.random(maps.shape) < 0.4
    found = grounding._dice_by_level(maps, regions)
    for level in range(100):
        expected = [f1_score(r.ravel(), m.ravel() > level / 100) for m, r in zip(maps, regions, strict=True)]
        np.testing.assert_allclose(found[:, level], expected, atol=1e-12)


def test_without_a_threshold_there_is_no_overlap_score() -> None:
    scores = grounding.GroundingScoring().scores(example(), {})
    assert all(np.isnan(s.value) for s in scores if s.metric != "pointing")
    assert not any(np.isnan(s.value) for s in scores if s.metric == "pointing" and s.label != "c")


def test_a_map_without_difference_gets_chance() -> None:
    kept = example()
    even = HeatMaps(
        kept.sample_ids, kept.patient_ids, kept.label_names, kept.findings, kept.maps * 0 + 0.3, kept.runs, kept.side
    )
    for score in grounding.GroundingScoring().scores(even, {"a": 0.0, "b": 0.0, "c": 0.0}):
        if score.metric == "pointing":
            assert score.value == pytest.approx(score.chance, abs=0.03, nan_ok=True)
            assert score.value != 1
        else:
            assert score.value == 0.0 or score.label == "c"


def test_a_resample_is_the_score_of_the_repeated_data() -> None:
    kept, scoring = example(), grounding.GroundingScoring()
    thresholds = {"a": 0.4, "b": 0.5, "c": 0.5}
    resamples = Resamples.draw(kept.patient_ids, 20, 0)
    values = scoring.resampled(kept, resamples, thresholds)
    weights = resamples.weights()
    for r in range(0, 20, 7):
        rows = np.repeat(np.arange(len(kept.findings)), weights[r])
        repeated = HeatMaps(
            [kept.sample_ids[i] for i in rows],
            [kept.patient_ids[i] for i in rows],
            kept.label_names,
            [kept.findings[i] for i in rows],
            kept.maps[rows],
            [kept.runs[i] for i in rows],
            kept.side,
        )
        for score in scoring.scores(repeated, thresholds):
            column = [*kept.label_names, "macro"].index(score.label)
            assert values[score.metric][r, column] == pytest.approx(score.value, nan_ok=True)


def test_maps_and_regions_survive_the_table(tmp_path: Path) -> None:
    import pandas as pd

    kept = example(7)
    kept.to_frame().to_parquet(tmp_path / "x.parquet")
    back = grounding.GroundingScoring().read(pd.read_parquet(tmp_path / "x.parquet"))
    assert (back.label_names, back.findings, back.side) == (["a", "b", "c"], kept.findings, kept.side)
    np.testing.assert_allclose(back.maps, kept.maps, rtol=1e-6)
    np.testing.assert_array_equal(back.regions(slice(0, 7)), kept.regions(slice(0, 7)))
    empty = HeatMaps([], [], ("a",), [], np.zeros((0, 1, 1)), [], 24)
    empty.to_frame().to_parquet(tmp_path / "y.parquet")
    none = grounding.GroundingScoring().read(pd.read_parquet(tmp_path / "y.parquet"))
    assert len(none.findings) == 0
    assert np.isnan(grounding.GroundingScoring().thresholds(empty)["a"])


def test_pointing_at_equal_largest_values_counts_by_share() -> None:
    maps, regions = np.zeros((1, 2, 2)), np.array([[[True, False], [False, False]]])
    maps[0, 0] = 1.0
    assert grounding.pointing(maps, regions).tolist() == [0.5]
    coarse, region = np.array([[[0.1, 0.7], [0.7, 0.1]]]), np.zeros((1, 8, 8), bool)
    region[0, 6, 2] = True  # the centre of the cell below on the left
    assert grounding.pointing(coarse, region).tolist() == [0.5]
    assert grounding.pointing(coarse, np.roll(region, 1, axis=2)).tolist() == [0.0]
    assert to_square(coarse, 8)[0, 7, 0] == coarse.max(), "where a border cell would reach to the corner"
