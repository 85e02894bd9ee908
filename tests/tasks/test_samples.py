"""Which samples a task takes, with which labels, and which of them train a head."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import pytest

from medvlp.errors import UserError
from medvlp.tasks._samples import collapse, few_shot_subset, fraction_subset, label_matrix, select
from medvlp.tasks.base import Samples


def fake_store(frame: pd.DataFrame) -> Any:
    return SimpleNamespace(samples=lambda: frame, images=frame)


def frame_of(splits: list[str], **labels: list[float]) -> pd.DataFrame:
    n = len(splits)
    frame = pd.DataFrame(
        {"image_id": [f"i{i:02d}" for i in range(n)], "split": splits, "view": ["PA", "AP"] * (n // 2)}
    )
    frame["patient_id"], frame["study_id"] = [f"p{i // 2}" for i in range(n)], [f"s{i}" for i in range(n)]
    frame["subsets"] = "[]"
    return frame.assign(**{f"label:{name}": values for name, values in labels.items()})


def make_samples(labels: np.ndarray) -> Samples:
    n = len(labels)
    ids = [f"s{i:04d}" for i in range(n)]
    return Samples(np.arange(n), ids, ids, [f"l{k}" for k in range(labels.shape[1])], labels)


@pytest.mark.parametrize(
    ("uncertain", "not_mentioned", "expected"),
    [
        ("ignore", "ignore", [1, 0, np.nan, np.nan]),
        ("positive", "ignore", [1, 0, 1, np.nan]),
        ("negative", "negative", [1, 0, 0, 0]),
    ],
)
def test_policies_collapse_uncertain_and_not_mentioned(uncertain: str, not_mentioned: str, expected: list) -> None:
    config = bench_store.task(uncertain=uncertain, not_mentioned=not_mentioned)
    np.testing.assert_array_equal(collapse(np.array([1.0, 0.0, -1.0, np.nan]), config), expected)


def test_positive_against_negative_column_leaves_out_both_and_neither() -> None:
    frame = pd.DataFrame({"label:Pneumonia": [1.0, 0, 1, 0], "label:No Finding": [0.0, 1, 1, 0]})
    np.testing.assert_array_equal(label_matrix(frame, bench_store.task())[:, 0], [1, 0, np.nan, np.nan])
    alone = bench_store.task(labels=[{"name": "x", "positive": "Pneumonia"}])
    np.testing.assert_array_equal(label_matrix(frame, alone)[:, 0], [1, 0, 1, 0])


def test_unknown_label_names_the_nearest() -> None:
    frame = pd.DataFrame({"label:Pneumonia": [1.0], "label:No Finding": [0.0]})
    with pytest.raises(UserError, match="Did you mean 'Pneumonia'"):
        label_matrix(frame, bench_store.task(labels=[{"name": "x", "positive": "Pneumonja"}]))


def test_views_and_splits_are_respected_and_unknown_patients_are_no_cluster() -> None:
    frame = frame_of(["train"] * 4 + ["val"] * 4 + ["test"] * 4, x=[1.0, 0.0, 0.0, 1.0] * 3)
    frame.loc[8:, "patient_id"] = "unknown"
    config = bench_store.task(labels=[{"name": "x", "positive": "x"}], views=["PA"])
    found = select(fake_store(frame), config)
    assert found["train"].sample_ids == ["i00", "i02"]
    assert found["test"].rows.tolist() == [8, 10]
    assert found["test"].patient_ids == ["study:s8", "study:s10"]


def test_empty_and_one_class_splits_are_refused() -> None:
    config = bench_store.task(labels=[{"name": "x", "positive": "x"}])
    with pytest.raises(UserError, match="'val' has no sample"):
        select(fake_store(frame_of(["train", "train", "test", "test"], x=[1.0, 0, 1, 0])), config)
    frame = frame_of(["train", "train", "val", "val", "test", "test"], x=[1.0, 0, 1, 0, 0, 0])
    with pytest.raises(UserError, match="both positives and negatives in the split 'test'"):
        select(fake_store(frame), config)


def test_fractions_are_stratified_nested_and_differ_between_draws() -> None:
    labels = np.zeros((400, 1))
    labels[:20] = 1
    train = make_samples(labels)
    subsets = {draw: [fraction_subset(train, fraction, draw) for fraction in (0.01, 0.1, 0.5)] for draw in (0, 1)}
    for small, middle, large in subsets.values():
        assert [len(small), len(middle), len(large)] == [4, 40, 200]
        assert set(small.sample_ids) <= set(middle.sample_ids) <= set(large.sample_ids)
        assert small.labels.sum() >= 1
        assert middle.labels.sum() == pytest.approx(2, abs=1)
        assert large.labels.sum() == pytest.approx(10, abs=1)
    assert subsets[0][1].sample_ids != subsets[1][1].sample_ids
    assert subsets[0][1].sha256 == fraction_subset(train, 0.1, 0).sha256
    assert fraction_subset(train, 1.0, 0) is train


def test_every_label_has_a_positive_in_a_small_fraction_where_the_size_allows() -> None:
    labels = (np.random.default_rng(0).random((1000, 5)) < [0.4, 0.2, 0.1, 0.02, 0.004]).astype(float)
    labels[7, 4] = 1
    assert (fraction_subset(make_samples(labels), 0.02, 3).labels == 1).any(axis=0).all()


def test_few_shot_takes_exactly_k_of_each_class_per_label() -> None:
    rng = np.random.default_rng(1)
    labels = (rng.random((200, 3)) < 0.3).astype(float)
    labels[rng.random((200, 3)) < 0.1] = np.nan
    train = make_samples(labels)
    subset = few_shot_subset(train, 4, draw=0)
    assert ((subset.labels == 1).sum(axis=0) == 4).all()
    assert ((subset.labels == 0).sum(axis=0) == 4).all()
    known = ~np.isnan(subset.labels)
    np.testing.assert_array_equal(subset.labels[known], labels[subset.rows][known])
    assert few_shot_subset(train, 4, draw=1).sample_ids != subset.sample_ids
