"""Patients set aside: never across splits, whatever the order of rows, with every label shared out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medvlp.config.finetune import FinetuneDataConfig
from medvlp.errors import UserError
from medvlp.finetune.splits import SplitStore
from medvlp.store.array_store import Store


def table(patients: int = 60, split: Any = None) -> pd.DataFrame:
    """Return two images a patient; label A is rare, B frequent, C never there."""
    rows = [
        {
            "image_id": f"i{p}.{i}",
            "patient_id": f"p{p}",
            "study_id": f"s{p}",
            "split": split,
            "label:A": float(p % 10 == 0 and i == 0),
            "label:B": float(p % 2),
            "label:C": np.nan,
        }
        for p in range(patients)
        for i in range(2)
    ]
    return pd.DataFrame(rows).astype({"split": object})


def completed(monkeypatch: pytest.MonkeyPatch, frame: pd.DataFrame, **changes: Any) -> tuple[pd.DataFrame, SplitStore]:
    monkeypatch.setattr(Store, "samples", lambda self: frame.copy())
    store = SplitStore.__new__(SplitStore)
    store.path = Path("stores/ours")
    store.complete(FinetuneDataConfig.model_validate({"store": "x", **changes}))
    return store.samples(), store


def test_a_store_without_splits_is_dealt_patient_by_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    found, store = completed(monkeypatch, table())
    assert found.groupby("patient_id")["split"].nunique().max() == 1
    people = found.groupby("split")["patient_id"].nunique().to_dict()
    assert people == {"test": 12, "val": 9, "train": 39}
    for name, share in (("label:A", 0.1), ("label:B", 0.5)):
        of_patients = found.groupby(["split", "patient_id"])[name].max().groupby("split").mean()
        assert (abs(of_patients - share) <= 0.06).all(), (name, of_patients)
    assert "60 patients 9 for val and 12 for test" in store.split_rule
    assert store.warnings == ()


def test_the_order_of_rows_and_the_share_of_validation_move_no_test_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table()
    one, _ = completed(monkeypatch, frame)
    two, _ = completed(monkeypatch, frame.sample(frac=1, random_state=0), val_fraction=0.3)
    other, _ = completed(monkeypatch, frame, split_seed=1)
    test = [set(found.loc[found["split"] == "test", "patient_id"]) for found in (one, two, other)]
    assert test[0] == test[1] != test[2]


def test_splits_of_the_store_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table()
    frame["split"] = np.where(frame["patient_id"].isin([f"p{p}" for p in range(45)]), "train", "val")
    frame.loc[:1, "split"] = None
    found, store = completed(monkeypatch, frame)
    assert (found["split"] == "val").equals(frame["split"] == "val")
    assert found.loc[:1, "split"].isna().all(), "images without a split in a store that has splits stay out"
    assert set(found.loc[found["split"] == "test", "patient_id"]) < {f"p{p}" for p in range(1, 45)}
    assert "9 for test set aside" in store.split_rule
    frame["split"] = np.resize(["train", "val", "test"], len(frame))
    found, store = completed(monkeypatch, frame)
    assert found["split"].equals(frame["split"])
    assert store.split_rule == "splits of the store"


def test_unknown_patients_are_dealt_by_study_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = table()
    frame["patient_id"] = "unknown"
    found, store = completed(monkeypatch, frame)
    assert set(found["split"]) == {"train", "val", "test"}
    assert found.groupby("study_id")["split"].nunique().max() == 1
    assert "does not say whose some images are" in store.warnings[0]


def test_too_few_patients_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="2 patients are too few"):
        completed(monkeypatch, table(2))
