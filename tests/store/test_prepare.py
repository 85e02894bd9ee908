"""Preparing a store: contents against independent readings, and the same result whatever happens on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import imagehash
import nih_layout as nih
import numpy as np
import pandas as pd
import pytest
import zarr
from PIL import Image

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.store.prepare import PrepareSummary, prepare

IMAGE = {"size": 16}


def run(root: Path, out: Path, **changes: object) -> PrepareSummary:
    fields = {
        "source": "nih_chestxray14",
        "root": root,
        "out": out,
        "image": IMAGE,
        "shard_images": 4,
        "num_workers": 1,
    }
    return prepare(PrepareConfig.model_validate(fields | changes))


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nih.small(patients=14, images_each=1).write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def reference(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "store"
    run(raw, out)
    return out


@pytest.mark.data
def test_real_images_equal_an_independent_reading(test_data: Path, tmp_path: Path) -> None:
    root = test_data / "nih_chestxray14_mini"
    summary = run(root, tmp_path / "store", limit=40, image={"size": 256}, shard_images=16)
    assert (summary.studies, summary.images, summary.quarantined) == (40, 40, 0)
    images = pd.read_parquet(tmp_path / "store" / "images.parquet")
    array = zarr.open_array(tmp_path / "store" / "images.zarr", mode="r")
    assert array.shape == (40, 256, 256)
    assert array.dtype == np.uint8
    assert (array.chunks, array.shards) == ((1, 256, 256), (16, 256, 256))
    assert list(images["index"]) == list(range(40))
    for row in images.itertuples():
        file = root / row.path
        grey = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)
        by_four = grey.reshape(256, 2, 256, 2).mean(axis=(1, 3))
        stored = array[row.index]
        assert np.abs(stored - by_four).max() <= 0.5 + 1e-6
        assert (row.height, row.width) == grey.shape
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row.pixels_sha256 == hashlib.sha256(stored.tobytes()).hexdigest()
        assert row.phash == str(imagehash.phash(Image.fromarray(stored)))
        assert len(row.phash) == 16
        assert row.mean == pytest.approx(stored.mean() / 255)
        assert np.isnan(row.spacing_row_mm)


def test_tables_hold_what_the_csv_says(reference: Path) -> None:
    studies = pd.read_parquet(reference / "studies.parquet")
    assert list(studies["study_id"]) == [f"{patient:08d}_000" for patient in range(1, 15)]
    assert list(studies["label:Pneumonia"]) == [float(patient % 2) for patient in range(1, 15)]
    assert list(studies["label:No Finding"]) == [float(1 - patient % 2) for patient in range(1, 15)]
    assert set(studies["split"]) == {"train", "val", "test"}
    assert list(studies["split"][-4:]) == ["test"] * 4
    images = pd.read_parquet(reference / "images.parquet")
    assert list(images["split"]) == list(studies["split"])
    meta = json.loads((reference / "store.json").read_text())
    assert meta["counts"]["splits"]["test"] == {"studies": 4, "images": 4, "patients": 4}
    assert meta["source"]["edition"] == "subset: 14 of 112,120"
    for name in ("images.parquet", "studies.parquet"):
        assert meta["sha256"][name] == hashlib.sha256((reference / name).read_bytes()).hexdigest()
    assert meta["sha256"]["card"] == hashlib.sha256((reference / "card.md").read_bytes()).hexdigest()
    assert not (reference / ".progress").exists()


def test_number_of_workers_changes_nothing(raw: Path, reference: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "store", num_workers=2)
    assert tree(tmp_path / "store") == tree(reference)


def test_hash_depends_on_content_alone(raw: Path, reference: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(raw, moved)
    known = Store.open(reference).hash
    assert run(moved, tmp_path / "a").hash == known
    assert tree(tmp_path / "a") == tree(reference)
    assert run(moved, tmp_path / "b", shard_images=5).hash == known
    assert run(moved, tmp_path / "c", split_seed=3).hash != known
    assert run(moved, tmp_path / "d", image={"size": 17}).hash != known
    nih.cv2.imwrite(str(moved / "images" / nih.name(3)), nih.picture(77, 24))
    assert run(moved, tmp_path / "e").hash != known


def test_no_path_of_the_machine_is_in_the_store(tmp_path: Path) -> None:
    layout = nih.small()
    layout.boxes = [f"{nih.name(11)},Infiltrate,1,2,3,4"]
    root = layout.write(tmp_path / "secret_place")
    (root / "images" / nih.name(2)).write_bytes(b"no image")
    run(root, tmp_path / "store", max_quarantine_share=1)
    for path in (tmp_path / "store").rglob("*"):
        if path.is_file():
            assert b"secret_place" not in path.read_bytes(), path
    for name in ("images.parquet", "studies.parquet"):  # compressed columns too
        assert "secret_place" not in pd.read_parquet(tmp_path / "store" / name).to_json()


def test_the_same_command_again_has_nothing_to_do(raw: Path, reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*")}
    summary = run(raw, reference)
    assert summary.already_complete
    assert (summary.images, summary.hash) == (14, Store.open(reference).hash)
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*")} == before


def test_other_settings_are_refused_with_the_differences(raw: Path, reference: Path) -> None:
    before = tree(reference)
    with pytest.raises(
        UserError, match=r"(?s)settings\.image\.size: 16 in the store, 32 now.*split_seed: 0 .* 9 now"
    ) as e:
        run(raw, reference, image={"size": 32}, split_seed=9)
    assert "choose another --out" in e.value.fix
    assert tree(reference) == before


def test_another_raw_list_is_refused(raw: Path, reference: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(raw, changed)
    table = changed / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Pneumonia|Edema", "Mass", 1))
    with pytest.raises(UserError, match=r"other raw data:\s+raw data.sha256"):
        run(changed, reference)


def test_an_unfinished_store_with_other_settings_is_refused(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr("medvlp.store.prepare.finish", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(raw, out)
    with pytest.raises(UserError, match="not finished"):
        Store.open(out)
    with pytest.raises(UserError, match="was begun with other settings"):
        run(raw, out, shard_images=5)
    assert run(raw, out).images == 14


@pytest.mark.parametrize("kind", ["foreign folder", "file", "raw data set"])
def test_nothing_else_is_overwritten(raw: Path, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "foreign folder":
        out.mkdir()
        (out / "thesis.tex").write_text("mine")
    else:
        out = raw
    with pytest.raises(UserError, match=r"a file of this name|holds no store|into the raw data set"):
        run(raw, out)


def bad_copy(raw: Path, root: Path) -> Path:
    """A copy with a truncated, an empty and a foreign image."""
    shutil.copytree(raw, root)
    whole = (root / "images" / nih.name(2)).read_bytes()
    (root / "images" / nih.name(2)).write_bytes(whole[: len(whole) // 2])
    (root / "images" / nih.name(5)).write_bytes(b"")
    (root / "images" / nih.name(14)).write_bytes(b"%PDF-1.7 of 10 MB")
    return root


def test_bad_images_are_quarantined_and_mended_ones_taken_in(raw: Path, reference: Path, tmp_path: Path) -> None:
    root, out = bad_copy(raw, tmp_path / "bad"), tmp_path / "store"
    with pytest.raises(UserError, match=r"21\.4% of the studies") as caught:
        run(root, out)
    assert caught.value.where.endswith("quarantine.jsonl")

    store = Store.open(out)
    assert list(store.images["index"]) == [0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert len(store.studies) == 11
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["path"], line["row"]) for line in lines] == [
        (f"images/{nih.name(patient)}", patient - 1) for patient in (2, 5, 14)
    ]
    assert all(line["reason"] and line["next"] for line in lines)
    assert np.array_equal(store.read(np.array([1, 4])), np.zeros((2, 16, 16), np.uint8))
    everything = Store.open(reference).read(store.images["index"].to_numpy())
    assert np.array_equal(store.read(store.images["index"].to_numpy()), everything)

    accepted = run(root, out, max_quarantine_share=0.25)
    assert accepted.already_complete
    assert accepted.quarantined == 3

    for patient in (2, 5):
        shutil.copy(raw / "images" / nih.name(patient), root / "images" / nih.name(patient))
    assert run(root, out, max_quarantine_share=0.25).images == 13
    shutil.copy(raw / "images" / nih.name(14), root / "images" / nih.name(14))
    assert run(root, out).quarantined == 0
    assert tree(out) == tree(reference)


def test_an_unexpected_error_of_a_decoder_is_quarantined(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, config: object) -> object:
        raise RuntimeError(f"cannot decode {path}")

    monkeypatch.setattr("medvlp.io.read_radiograph", broken)
    assert run(raw, tmp_path / "store", max_quarantine_share=1).images == 0
    line = json.loads((tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["reason"] == f"The file cannot be read: RuntimeError: cannot decode images/{nih.name(1)}"


def test_rows_left_out_by_the_adapter_are_in_the_quarantine(tmp_path: Path) -> None:
    layout = nih.small()
    layout.rows[0] = nih.row(1, labels="Pnuemonia")
    run(layout.write(tmp_path / "raw"), tmp_path / "store", max_quarantine_share=0.1)
    (line,) = [json.loads(text) for text in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert line["path"] == "Data_Entry_2017_v2020.csv:2"
    assert "Did you mean 'Pneumonia'" in line["reason"]
    assert line["row"] is None


def test_a_data_set_without_a_usable_study(tmp_path: Path) -> None:
    layout = nih.small()
    layout.rows = [line.replace("No Finding", "x").replace("Pneumonia|Edema", "y") for line in layout.rows]
    with pytest.raises(UserError, match=r"No study of nih_chestxray14 can be used; 12 rows.*unknown label 'y'"):
        run(layout.write(tmp_path / "raw"), tmp_path / "store")
    assert not (tmp_path / "store").exists()
