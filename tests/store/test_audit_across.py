"""Audit between data sets: ties of the leak map, exposure of test images, contradictions, texts and identifiers."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import nih_layout as nih
import numpy as np
import pandas as pd
import pytest
from browser import open_page
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from typer.testing import CliRunner

from medvlp.cli import app
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.cards import load_card
from medvlp.store.array_store import Store
from medvlp.store.audit import _patient_leaks, audit
from medvlp.store.audit_labels import conflicts
from medvlp.store.audit_report import AuditReport, findings
from medvlp.store.audit_texts import normalised, repeated_texts, text_identifiers
from medvlp.store.burnt_in import text_lines
from medvlp.store.exposure import PERSONAL, exposures, id_pairs, overlap_rows, picture_groups
from medvlp.store.header_identifiers import header_identifiers
from medvlp.store.leak_map import leak_map, overlaps_between
from medvlp.store.prepare import prepare

UUID = "00436515-870c-4b36-a041-de91049b9ab4"


def table(*rows: tuple[str, str, str, str, str, dict[str, str]]) -> pd.DataFrame:
    """Rows of (dataset, image, patient, split, picture, attributes) as the joint image table."""
    frame = pd.DataFrame(rows, columns=["dataset", "image_id", "patient_id", "split", "picture", "attributes"])
    frame["study_id"], frame["store"] = frame["image_id"], frame["dataset"]
    frame["place"], frame["people"] = frame["dataset"].factorize()[0], ""
    return frame.assign(sha256=frame["picture"], pixels_sha256=frame["picture"])


def exposed(images: pd.DataFrame, near: list[tuple[int, int]] | None = None) -> dict[str, list[str]]:
    tied = id_pairs(images)
    found = exposures(images, picture_groups(images, near or []), tied)
    return {row["image"].split("/")[1].split(" ")[0]: row["by"] for row in found}


def test_a_test_image_is_exposed_by_picture_id_or_patient_and_by_nothing_else() -> None:
    images = table(
        ("nih_chestxray14", "00000001_000", "1", "train", "a", {}),
        ("nih_chestxray14", "00000002_000", "2", "train", "b", {}),
        ("nih_chestxray14", "00000003_000", "3", "test", "c", {}),
        ("nih_chestxray14", "00000009_000", "9", "test", "x", {}),
        ("rsna_pneumonia", "r1", "1", "test", "d", {"nih_image": "00000001_000.png"}),
        ("rsna_pneumonia", "r2", "unknown", "test", "b", {}),
        ("rsna_pneumonia", "r3", "3", "train", "e", {}),
        ("rsna_pneumonia", "r4", "unknown", "test", "f", {}),
    )
    assert exposed(images) == {"r1": ["id", "patient"], "r2": ["picture"], "00000003_000": ["patient"]}


def test_exposure_follows_copies_of_copies() -> None:
    images = table(
        ("siim_acr", "s1", "unknown", "test", "a", {}),
        ("siim_acr", "s2", "unknown", None, "b", {}),
        ("nih_chestxray14", "n1", "1", "train", "c", {}),
        ("nih_chestxray14", "n2", "2", "test", "d", {}),
    )
    assert exposed(images) == {}
    assert exposed(images, [(0, 1), (1, 2)]) == {"s1": ["picture"]}


def test_images_without_a_split_are_training_images_for_other_data_sets() -> None:
    images = table(
        ("rsna_pneumonia", "r1", "1", None, "a", {}),
        ("rsna_pneumonia", "r2", "2", None, "b", {"nih_image": "00000002_000.png"}),
        ("rsna_pneumonia", "r3", "3", "test", "c", {}),
        ("rsna_pneumonia", "r4", "3", None, "d", {}),
        ("nih_chestxray14", "00000001_000", "7", "test", "a", {}),
        ("nih_chestxray14", "00000002_000", "8", "test", "e", {}),
        ("nih_chestxray14", "00000009_000", "2", "test", "f", {}),
    )
    assert exposed(images) == {"00000001_000": ["picture"], "00000002_000": ["id"], "00000009_000": ["patient"]}


def test_patients_hashed_with_one_salt_are_compared_across_data_sets_of_personal_ids() -> None:
    images = table(
        ("dicom_folder", "d1", "aa", "train", "a", {}),
        ("jsonl", "j1", "aa", "test", "b", {}),
        ("padchest", "p1", "aa", "test", "c", {}),
    )
    assert exposed(images) == {}
    salted = images.assign(people=[f"{PERSONAL}x ", f"{PERSONAL}x ", "ids hashed with x "])
    assert exposed(salted) == {"j1": ["patient"]}
    assert exposed(images.assign(people=[f"{PERSONAL}x ", f"{PERSONAL}y ", ""])) == {}
    assert [(row["dataset"], row["patient_id"]) for row in _patient_leaks(salted)] == [("dicom_folder and jsonl", "aa")]
    assert _patient_leaks(images) == []


def test_images_are_tied_by_their_own_ids_and_only_else_by_their_study() -> None:
    images = table(
        ("mimic_cxr", "i1", "p", "train", "a", {}),
        ("mimic_cxr", "i2", "p", "train", "b", {}),
        ("mimic_cxr_jpg", "i1", "p", "train", "c", {}),
        ("mimic_cxr_jpg", "i2", "p", "train", "d", {}),
        ("mimic_cxr_jpg", "i3", "p", "train", "e", {}),
    ).assign(study_id="s")
    tied = id_pairs(images)
    assert sorted((first, second) for first, second, _ in tied) == [(0, 2), (1, 3), (1, 4)]
    (row,) = [row for row in overlap_rows(images, picture_groups(images, []), tied) if row["both_here"]]
    assert row["tied_by_id"] == 3


def test_the_same_patient_number_in_unrelated_data_sets_is_no_leak() -> None:
    images = table(
        ("nih_chestxray14", "n1", "1", "train", "a", {}),
        ("padchest", "p1", "1", "test", "b", {}),
    )
    assert exposed(images) == {}


def test_names_of_another_data_set_are_counted_without_that_data_set() -> None:
    images = table(
        ("covidx", f"{UUID}.png", "p", "train", "a", {}),
        ("covidx", "sub-S1_ses-1.png", "q", "test", "b", {}),
    )
    rows = overlap_rows(images, picture_groups(images, []), id_pairs(images))
    by_outer = {row["outer"]: row for row in rows}
    assert by_outer["rsna_pneumonia"]["names_of_outer"] == 1
    assert not by_outer["rsna_pneumonia"]["both_here"]


def test_ids_tie_what_the_leak_map_says_shares_them() -> None:
    images = table(
        ("rsna_pneumonia", UUID, "p", "test", "a", {}),
        ("covidx", f"{UUID}.png", "q", "train", "b", {}),
        ("nih_chestxray14", UUID, "q", "train", "c", {}),
    )
    assert [(first, second) for first, second, _ in id_pairs(images)] == [(0, 1)]


def test_every_name_of_the_leak_map_is_a_data_set_or_known_to_have_no_adapter() -> None:
    without_adapter = {
        *("chestx_det10", "cxr_lt", "ms_cxr", "chest_imagenome", "mimic_cxr_vqa", "radgraph", "radnli"),
        *("mimic_5x200", "chexpert_5x200", "vinbigdata", "rocov2", "medicat", "pmc_oa", "rexgroundingct", "m3d_seg"),
        *("lits", "abdomenct_1k", "flare22", "flare23", "lidc_idri", "cholect50", "covidx_ct"),
        *("m3d_vqa", "ct_org", "kits23", "brats"),
    }
    for overlap in leak_map():
        for name in (overlap.outer, overlap.inner):
            assert (name in SOURCES.names()) != (name in without_adapter), name


@pytest.fixture(scope="module")
def two_stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same pictures twice as NIH, the second time with other labels, reports and one picture less."""
    folder = tmp_path_factory.mktemp("two")
    stores = []
    for name, labels in (("a", "Pneumonia"), ("b", "No Finding")):
        layout = nih.small(6, 2)
        layout.rows = [nih.row(p, labels=labels if p < 4 else "Pneumonia|Edema") for p in range(1, 7)]
        config = {"val_fraction": 0, "num_workers": 1, "image": {"size": 32}}
        root = layout.write(folder / f"raw_{name}")
        stores.append(prepare(PrepareConfig(source="nih_chestxray14", root=root, out=folder / name, **config)).store)
    studies = pd.read_parquet(stores[1] / "studies.parquet")
    texts = ["Lungs are clear.", "lungs are CLEAR", "Seen by Dr. Alan Turing on 2014-03-05.", "Edema.", None, "clear"]
    studies["report"] = pd.array(texts, dtype=studies["report"].dtype)
    studies.to_parquet(stores[1] / "studies.parquet")
    return stores[0], stores[1]


def test_contradictions_about_one_picture_are_counted(two_stores: tuple[Path, Path]) -> None:
    stores = [Store.open(path) for path in two_stores]
    images = pd.concat(
        [store.images.assign(place=at, store=store.path.name, dataset=f"set_{at}") for at, store in enumerate(stores)],
        ignore_index=True,
    )
    groups = list(picture_groups(images, []).members().values())
    assert sorted(map(len, groups)) == [2] * 6
    found = {row["finding"]: row for row in conflicts(stores, images, groups)}
    assert {name: (row["compared"], row["conflicts"]) for name, row in found.items()} == {
        "Pneumonia": (6, 3),
        "No Finding": (6, 3),
    }


def test_repeated_texts_and_their_false_negatives(two_stores: tuple[Path, Path]) -> None:
    (row,) = repeated_texts([Store.open(path) for path in two_stores])
    assert (row["texts"], row["distinct"], row["shared"], row["most_frequent"]) == (5, 4, 2, 2)
    assert row["false_negatives"] == pytest.approx(2 / 5)
    assert normalised("  No\n effusion; ") == "no effusion"


def test_identifiers_in_texts_are_counted_by_kind_and_not_quoted(two_stores: tuple[Path, Path]) -> None:
    rows = text_identifiers([Store.open(two_stores[1])])
    assert {row["kind"]: row["texts"] for row in rows} == {"date": 1, "name": 1}
    assert "Turing" not in json.dumps(rows)


def test_strict_ends_with_its_own_status_and_the_page_opens(two_stores: tuple[Path, Path], tmp_path: Path) -> None:
    page, report = tmp_path / "audit.html", tmp_path / "audit.json"
    done = CliRunner().invoke(app, ["data", "audit", str(two_stores[0]), "--strict"])
    assert done.exit_code == 0, done.output
    studies = pd.read_parquet(two_stores[1] / "images.parquet")
    studies["split"] = ["test", "train"] * 3
    studies.to_parquet(two_stores[1] / "images.parquet")
    arguments = ["data", "audit", *map(str, two_stores), "--strict", "--html", str(page), "--json", str(report)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2, done.output
    assert json.loads(report.read_text())["has_leaks"]
    with open_page(page) as opened:
        assert opened.locator("h1").inner_text() == "Leaks were found"
        assert opened.locator("#pairs img").count() >= 2


def test_two_stores_of_one_name_would_be_mixed_up(two_stores: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(two_stores[1])
    with pytest.raises(UserError, match="Two stores are called a"):
        audit([two_stores[0], tmp_path / "a"])


def test_names_of_a_data_set_that_is_not_here_are_no_leak() -> None:
    images = table(("covidx", f"{UUID}.png", "p", "train", "a", {}))
    rows = overlap_rows(images, picture_groups(images, []), [])
    report = AuditReport([], [], [], [], [], [], overlaps=rows)
    (sentence,) = [text for text in findings(report, []) if "names of" in text]
    assert sentence.startswith("Overlap: 1 images of covidx have names of rsna_pneumonia, which is not examined here.")
    assert not report.has_leaks


def test_printed_lines_are_found_and_side_markers_are_not() -> None:
    rng = np.random.default_rng(0)
    plain = cv2.GaussianBlur(rng.integers(20, 120, (256, 256)).astype(np.uint8), (0, 0), 5)
    marked = plain.copy()
    cv2.putText(marked, "R", (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.6, 255, 1, cv2.LINE_AA)
    printed = plain.copy()
    cv2.putText(printed, "DOE JANE 1948", (60, 200), cv2.FONT_HERSHEY_SIMPLEX, 0.4, 255, 1, cv2.LINE_AA)
    assert text_lines(plain) == text_lines(marked) == []
    (line,) = text_lines(printed)
    assert 55 <= line.x <= 65
    assert 185 <= line.y <= 200
    assert text_lines(printed.astype(np.uint16) << 8) == [line]


def test_personal_attributes_of_headers_are_counted_and_never_quoted(tmp_path: Path) -> None:
    for number, name in enumerate(("DOE^JANE", "DOE^JANE", "anonymous")):
        data = Dataset()
        data.file_meta = FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
        data.file_meta.MediaStorageSOPInstanceUID = UID(f"1.2.3.{number}")
        data.PatientName, data.StudyDate, data.Modality = name, "20200102", "CR"
        if number:
            data.StudyDescription = "Chest of JANE"
            data.private_block(0x0009, "ACME", create=True).add_new(1, "LO", "JANE")
        data.save_as(tmp_path / f"{number}.dcm", enforce_file_format=True)
    (tmp_path / "note.txt").write_text("no DICOM")
    rows = header_identifiers(tmp_path)
    assert [(row["attribute"], row["kind"], row["files"], row["values"]) for row in rows] == [
        ("PatientName", "person", 2, 1),
        ("StudyDescription", "free", 2, 1),
        ("private attributes", "free", 2, 1),
        ("StudyDate", "date", 3, 1),
    ]
    assert "JANE" not in json.dumps(rows)
    with pytest.raises(UserError, match="does not exist"):
        header_identifiers(tmp_path / "gone")


def test_overlaps_of_cards_and_of_the_leak_map_agree() -> None:
    pairs = {frozenset((overlap.outer, overlap.inner)) for overlap in leak_map()}
    by_cards = {frozenset((name, other)) for name in SOURCES.names() for other in load_card(name).overlaps}
    assert by_cards == pairs
    for overlap in leak_map():
        for name, other in ((overlap.outer, overlap.inner), (overlap.inner, overlap.outer)):
            if name in SOURCES.names():
                assert other in load_card(name).overlaps, f"{name} does not name {other}"
    assert [o.inner for o in overlaps_between(["nih_chestxray14", "siim_acr"])] == ["siim_acr"]
