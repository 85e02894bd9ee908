"""Split lists on the way into a store, and `medvlp data check-splits`."""

from __future__ import annotations

import json
from pathlib import Path

import nih_layout as nih
import pandas as pd
import pytest
from typer.testing import CliRunner

from medvlp.cli.data import app
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.splits import read_split_lists
from medvlp.store.prepare import prepare
from medvlp.store.split_check import check


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nih.small(patients=12).write(tmp_path_factory.mktemp("raw"))


def lists(root: Path, **numbers: list[int]) -> Path:
    root.mkdir(exist_ok=True)
    for name, own in numbers.items():
        (root / f"{name}.txt").write_text("\n".join(map(nih.name, own)) + "\n")
    return root


def run(raw: Path, out: Path, **changes: object) -> Path:
    fields = {"source": "nih_chestxray14", "root": raw, "out": out, "image": {"size": 16}, "num_workers": 1}
    prepare(PrepareConfig.model_validate(fields | changes))
    return out


def test_the_lists_decide_the_splits_and_are_recorded(raw: Path, tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train=[1, 2, 3, 4], val=[5, 12], test=[6, 7, 77], train_1=[1])
    store = run(raw, tmp_path / "store", split_lists=folder)
    studies = pd.read_parquet(store / "studies.parquet").set_index("study_id")
    found = {name.split("_")[0].lstrip("0"): split for name, split in studies["split"].items()}
    assert found == {
        "1": "train",
        "2": "train",
        "3": "train",
        "4": "train",
        "5": "val",
        "12": "val",
        "6": "test",
        "7": "test",
    }
    assert [json.loads(own) for own in studies["subsets"][:2]] == [["train_1"], []]
    meta = json.loads((store / "store.json").read_text())
    recorded = meta["source"]["split lists"]
    assert recorded["faults"] == ["test: 1 of 3 names are no image of the data set"]
    assert recorded["images in no list"] == 4
    assert recorded["lines"] == {"test": 3, "train": 4, "train_1": 1, "val": 2}
    assert meta["split_rule"]["rule"].startswith("the given split lists")
    lists(folder, train=[1, 2, 3])
    with pytest.raises(UserError, match="split_lists"):
        run(raw, tmp_path / "store", split_lists=folder)


def test_images_in_two_splits_are_refused_unless_accepted(raw: Path, tmp_path: Path) -> None:
    folder = lists(tmp_path / "lists", train=[1, 2, 3, 6], val=[5], test=[6, 7])
    with pytest.raises(UserError, match="1 names are in both train and test"):
        run(raw, tmp_path / "store", split_lists=folder)
    store = run(raw, tmp_path / "store", split_lists=folder, accept_split_overlap=True)
    studies = pd.read_parquet(store / "studies.parquet").set_index("study_id")
    assert studies["split"][nih.name(6)[:-4]] == "test"
    with pytest.raises(ValueError, match="no effect without split_lists"):
        run(raw, tmp_path / "other", accept_split_overlap=True)


def test_check_splits_tells_everything_and_fails_on_leaks_when_strict(raw: Path, tmp_path: Path) -> None:
    store = run(raw, tmp_path / "store")
    folder = lists(tmp_path / "lists", train=[1, 2, 3, 6, 6], test=[6, 7], train_1=[9])
    result = CliRunner().invoke(app, ["check-splits", str(folder), "--store", str(store), "--strict"])
    assert result.exit_code == 2
    for sentence in (
        "overlap: 1 names are in both train and test",
        "fault: train: 1 of 5 lines repeat a name",
        "fault: train_1: only 0 of 1 names are in train",
        "7 images of the store are in no list",
        "note: 2 images are in another split than the data set's own",
    ):
        assert sentence in result.output
    fields = {"ids": "hash", "salt": str(tmp_path / "salt")}
    hashed = run(raw, tmp_path / "hashed", identifiers=fields, split_lists=lists(tmp_path / "two", train=[1], test=[2]))
    refused = CliRunner().invoke(app, ["check-splits", str(folder), "--store", str(hashed)])
    assert "ids of the store are hashed" in str(refused.exception)
    assert len(pd.read_parquet(hashed / "studies.parquet")) == 2
    alone = CliRunner().invoke(app, ["check-splits", str(folder)])
    assert alone.exit_code == 0
    assert "No known lists have these numbers." in alone.output


def test_a_store_without_splits_has_nothing_that_the_lists_could_change(tmp_path: Path) -> None:
    import cv2
    import numpy as np

    for number in range(1, 5):
        path = tmp_path / "raw/ChinaSet_AllFiles/CXR_png" / f"CHNCXR_000{number}_0.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((20, 20), 40 * number, np.uint8))
    store = run(tmp_path / "raw", tmp_path / "store", source="shenzhen")
    for name, number in (("train", 1), ("test", 2)):
        (tmp_path / f"{name}.txt").write_text(f"CHNCXR_000{number}_0\n")
    report = check(read_split_lists(tmp_path), store)
    assert report.images == {"train": 1, "test": 1}
    assert report.unlisted == 2
    assert report.notes == []
    assert report.faults == []
