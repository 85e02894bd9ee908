"""Hashed ids: nothing of the originals in a store, the same hash for the same id, and a key for who may know."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import nih_layout as nih
import pyarrow.parquet as pq
import pytest

from medvlp.config.identifiers import IdentifierConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.cards import load_card
from medvlp.store.array_store import Store
from medvlp.store.identifiers import Protection, Pseudonyms, read_salt, without_values
from medvlp.store.prepare import prepare
from medvlp.types import UNKNOWN_PATIENT, Box, Study


def config(folder: Path, name: str, **identifiers: Any) -> PrepareConfig:
    return PrepareConfig(
        source="nih_chestxray14",
        root=folder / "raw",
        out=folder / name,
        image={"size": 16},
        num_workers=1,
        max_quarantine_share=1,
        identifiers={"salt": str(folder / "secret" / "salt"), **identifiers},
    )


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    layout = nih.small(8, 2, images_each=2)
    layout.boxes = [f"{nih.name(1)},Pneumonia,1.0,2.0,3.0,4.0"]
    layout.write(tmp_path / "raw")
    (tmp_path / "raw" / "images" / nih.name(3)).write_bytes(b"broken")
    (tmp_path / "raw" / "images" / "00000099_000.png").write_bytes(b"not in the CSV")
    return tmp_path


def everything(folder: Path) -> bytes:
    """Return the contents of all files; tables also as text, because they are compressed."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    tables = [str(pq.read_table(file).to_pylist()).encode() for file in files if file.suffix == ".parquet"]
    return b"".join([*tables, *(file.read_bytes() for file in files)])


def test_no_original_id_is_in_the_store_and_the_key_names_them(raw: Path) -> None:
    summary = prepare(config(raw, "store", ids="hash"))
    store = Store.open(summary.store)
    for number in (1, 3, 8, 99):
        assert f"{number:08d}".encode() not in everything(summary.store)
    assert store.images["path"].eq("").all()
    assert store.studies["study_id"].str.fullmatch(r"[0-9a-f]{20}").all()
    box = next(boxes for boxes in map(json.loads, store.studies["boxes"]) if boxes)[0]
    assert box["image_id"] in set(store.images["image_id"])
    assert summary.key is not None
    assert summary.key.stat().st_mode & 0o077 == 0
    with summary.key.open() as file:
        rows = list(csv.DictReader(file))
    originals = {row["hash"]: row for row in rows}
    assert {originals[name]["original"] for name in store.studies["patient_id"]} == {str(n) for n in range(1, 9)}
    assert originals[box["image_id"]]["path"] == f"images/{nih.name(1)}"
    lines = [json.loads(line) for line in (summary.store / "quarantine.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert {originals[line["path"].split()[1]]["original"] for line in lines} == {
        nih.name(3).removesuffix(".png"),
        "images/00000099_000.png",
    }


def test_the_most_frequent_reasons_are_printed_without_values(raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (97, 98):
        (raw / "raw" / "images" / f"000000{number}_000.png").write_bytes(b"not in the CSV either")
    prepare(config(raw, "store", ids="hash"))
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("  ")]
    assert said[0] == "  3: not in the CSV"
    assert len(said) == 2
    assert "0000" not in caplog.text


def test_the_same_salt_gives_the_same_hash_and_another_salt_another(raw: Path) -> None:
    first = Store.open(prepare(config(raw, "one", ids="hash")).store)
    again = Store.open(prepare(config(raw, "two", ids="hash")).store)
    other = Store.open(prepare(config(raw, "three", ids="hash", salt=str(raw / "other"))).store)
    assert first.hash == again.hash
    assert list(first.studies["patient_id"]) == list(again.studies["patient_id"])
    assert not set(first.studies["patient_id"]) & set(other.studies["patient_id"])
    assert sorted(first.studies.groupby("patient_id").size()) == [1, *[2] * 7]


def test_published_surrogate_ids_are_kept_unless_asked(raw: Path) -> None:
    summary = prepare(config(raw, "store"))
    assert summary.key is None
    assert nih.name(1).removesuffix(".png") in set(Store.open(summary.store).images["image_id"])
    assert not (raw / "secret").exists()


def test_a_store_is_not_continued_with_another_salt(raw: Path) -> None:
    prepare(config(raw, "store", ids="hash"))
    with pytest.raises(UserError, match="salt_sha256"):
        prepare(config(raw, "store", ids="hash", salt=str(raw / "other")))


@pytest.mark.parametrize("place", ["raw/salt", "store/salt"])
def test_the_salt_must_lie_elsewhere(raw: Path, place: str) -> None:
    with pytest.raises(UserError, match="outside of store and data"):
        prepare(config(raw, "store", ids="hash", salt=str(raw / place)))


def test_a_salt_is_made_once_readable_by_its_owner_and_refused_if_short(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "salt"
    salt = read_salt(path, [])
    assert len(salt) == 64
    assert read_salt(path, []) == salt
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("short\n")
    with pytest.raises(UserError, match="5 characters"):
        read_salt(path, [])


def test_texts_beside_the_report_lose_what_names_the_patient(tmp_path: Path) -> None:
    config = IdentifierConfig(ids="hash", salt=tmp_path / "salt")
    protection = Protection(config, load_card("jsonl"), [tmp_path / "store"])
    study = Study(
        "S1", "P1", boxes=(Box("i", "Nodule of Mueller", 1, 2, 3, 4),), identifiers=("Müller^Anna",),
        attributes={"manufacturer": "Acme (MULLER)", "body_part": "CHEST"},
    )  # fmt: skip
    kept = protection.study(study)
    assert kept.boxes[0].label == "Nodule of [REMOVED]"
    assert kept.attributes == {"manufacturer": "Acme ([REMOVED])", "body_part": "CHEST"}
    assert kept.identifiers == ()


def test_kinds_of_ids_do_not_share_hashes_and_unknown_stays() -> None:
    hashed = Pseudonyms(b"s" * 32)
    assert hashed("patient", "7") != hashed("study", "7")
    assert hashed("patient", UNKNOWN_PATIENT) == UNKNOWN_PATIENT
    assert hashed.originals[("patient", hashed("patient", "7"))] == "7"


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("unknown label 'DOE^JANE'", "unknown label '...'"),
        ("the image is also at exports/DOE/1.dcm", "the image is also at ..."),
        ("file smith.dcm is truncated", "file ... is truncated"),
        ("line 12 names 12345678", "line 12 names ..."),
        ("DOE^JANE stands twice", "... stands twice"),
        ("2 frames, 512 x 512 pixels", "2 frames, 512 x 512 pixels"),
    ],
)
def test_reasons_lose_values_and_keep_their_sense(message: str, expected: str) -> None:
    assert without_values(message) == expected
