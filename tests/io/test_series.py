"""A heap of DICOM files -> series: every file in one series or one problem."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from made_dicom import enhanced_dataset, random_slices, segmentation_dataset, slice_dataset, write_series
from pydicom.uid import SecondaryCaptureImageStorage

from medvlp.errors import UserError
from medvlp.io import find_series, read_volume
from medvlp.io.dicom_file import open_header
from medvlp.io.dicom_header import _WANTED, HEADER_TAGS
from medvlp.io.dicom_scan import HEAD_BYTES, scan


def save(ds, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_a_flat_heap_of_many_kinds(tmp_path):
    slices = random_slices(6)
    chest = write_series(
        tmp_path / "a", slices, SeriesInstanceUID="1.2.1", SeriesDescription="chest", StudyDate="20200131",
        AccessionNumber="77", PatientSex="F", PatientAge="061Y", Manufacturer="made", BodyPartExamined="CHEST",
    )  # fmt: skip
    write_series(tmp_path / "b", slices[:4], SeriesInstanceUID="1.2.2", PatientAge="018M")
    for number, file in enumerate([*(tmp_path / "a").iterdir(), *(tmp_path / "b").iterdir()]):
        file.rename(tmp_path / f"{number:04d}")
    scout = slice_dataset(
        slices[0], (0, 0, 0), SeriesInstanceUID="1.2.1", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]
    )
    save(scout, tmp_path / "scout")
    save(
        slice_dataset(slices[0], (0, 0, 0), Modality="DX", ViewPosition="PA", SeriesInstanceUID="1.2.4"),
        tmp_path / "dx",
    )
    frames = enhanced_dataset(slices, [(0, 0, k) for k in range(6)], SeriesInstanceUID="1.2.5")
    save(frames, tmp_path / "enhanced")
    save(segmentation_dataset(slices[:2] > 0, [(0, 0, 0), (0, 0, 1)], [1, 1]), tmp_path / "seg")
    (tmp_path / "notes.txt").write_text("no DICOM")
    (tmp_path / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\x08\x00")
    found = find_series(tmp_path)
    facts = [(s.series_uid, s.kind, s.modality, s.n, len(s.files)) for s in found]
    assert facts == [
        ("1.2.1", "volume", "CT", 6, 6),
        ("1.2.2", "volume", "CT", 4, 4),
        ("1.2.4", "image", "DX", 1, 1),
        ("1.2.5", "volume", "CT", 6, 1),
    ]
    first = found[0]
    assert (first.study_uid, first.patient_id, first.description, first.date) == ("1.2.3.1", "p1", "chest", "20200131")
    assert (first.accession_number, first.sex, first.age, first.body_part) == ("77", "F", 61.0, "CHEST")
    assert (first.manufacturer, first.rows, first.columns, first.part) == ("made", 12, 10, 0)
    assert found[1].age == pytest.approx(1.5)
    assert found[2].view == "PA"
    reasons = {problem.files[0].name: problem.reason for problem in found.problems}
    assert reasons["scout"] == "The file is a localiser."
    assert "mask (SEG)" in reasons["seg"]
    assert "header cannot be used" in reasons["broken"]
    assert set(reasons) == {"scout", "seg", "broken"}
    assert len(chest) == 6
    np.testing.assert_array_equal(read_volume(tmp_path, files=first.files).array, slices[:, ::-1, ::-1] - 1024)


def test_a_dose_sheet_of_the_modality_is_left_out_and_not_called_broken(tmp_path):
    write_series(tmp_path / "a", random_slices(4))
    sheet = slice_dataset(
        random_slices(1)[0], (0, 0, 0), SOPClassUID=SecondaryCaptureImageStorage, SOPInstanceUID="1.2.9",
        ImagePositionPatient=None, ImageOrientationPatient=None,
    )  # fmt: skip
    save(sheet, tmp_path / "sheet")
    placed = write_series(
        tmp_path / "b", random_slices(4, seed=1), SeriesInstanceUID="1.2.8", SOPClassUID=SecondaryCaptureImageStorage
    )
    found = find_series(tmp_path)
    assert [(p.files, p.broken) for p in found.problems] == [((tmp_path / "sheet",), False)]
    assert "capture" in found.problems[0].reason
    assert sorted(len(one.files) for one in found) == [4, len(placed)]


def test_files_of_one_series_that_do_not_fit_are_parted(tmp_path):
    slices = random_slices(4)
    write_series(tmp_path / "a", slices)
    write_series(tmp_path / "b", slices, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_series(tmp_path / "c", slices, PixelSpacing=[0.4, 0.4])
    write_series(tmp_path / "d", random_slices(4, 6, 6))
    write_series(tmp_path / "e", slices, FrameOfReferenceUID="1.2.3.99")
    save(slice_dataset(random_slices(1, 5, 5)[0], (0, 0, 0)), tmp_path / "f" / "single")
    found = find_series(tmp_path)
    assert [s.part for s in found] == [0, 1, 2, 3, 4]
    assert sorted({file.parent.name for s in found for file in s.files}) == ["a", "b", "c", "d", "e"]
    assert all(len({file.parent for file in s.files}) == 1 for s in found)
    assert [problem.files[0].name for problem in found.problems] == ["single"]


def test_a_series_of_two_patients_is_no_volume(tmp_path):
    files = write_series(tmp_path / "a", random_slices(6), each_PatientID=["p1", "p2"] * 3)
    write_series(tmp_path / "b", random_slices(4), each_PatientID=["p1", "", "p1", "p1"], SeriesInstanceUID="1.2.9")
    found = find_series(tmp_path)
    assert [(s.series_uid, s.n) for s in found] == [("1.2.9", 4)]
    (problem,) = found.problems
    assert (sorted(problem.files), problem.broken) == (sorted(files), True)
    assert "p1" not in problem.reason
    with pytest.raises(UserError, match="2 patients"):
        read_volume(tmp_path / "a")
    assert read_volume(tmp_path / "b").array.shape[0] == 4


def test_copies_are_left_out_and_named(tmp_path):
    files = write_series(tmp_path, random_slices(4))
    shutil.copy(files[1], tmp_path / "zz_copy.dcm")
    found = find_series(tmp_path)
    assert [s.n for s in found] == [4]
    assert [problem.reason for problem in found.problems] == ["The file is a copy of another one of its series."]
    assert read_volume(tmp_path).array.shape[0] == 4


def test_same_instance_with_other_pixels_is_no_copy(tmp_path):
    slices = random_slices(4)
    files = write_series(tmp_path, slices, each_SOPInstanceUID=["1.2.9.1", "1.2.9.2", "1.2.9.3", "1.2.9.4"])
    data = bytearray(files[1].read_bytes())
    data[-5] ^= 1
    (tmp_path / "zz.dcm").write_bytes(data)
    with pytest.raises(UserError, match="5 slices lie at 4 places"):
        read_volume(tmp_path)


def test_order_of_files_plays_no_part(tmp_path):
    files = write_series(tmp_path, random_slices(5))
    assert list(find_series(tmp_path)[0].files) == files


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        find_series(tmp_path / "none")


@pytest.mark.data
def test_scanned_headers_equal_those_of_pydicom(test_data):
    """Every real file whose header is scanned has the values that pydicom gives."""
    scanned = 0
    for path in sorted(test_data.rglob("*.dcm")):
        found = scan(path.read_bytes()[:HEAD_BYTES], _WANTED)
        if found is None:
            continue
        scanned += 1
        dataset, place = open_header(path, HEADER_TAGS)
        assert place is not None
        assert (place.offset, place.length) == (found.offset, found.length)
        assert str(dataset.file_meta.TransferSyntaxUID) == found.transfer_syntax
        for keyword in HEADER_TAGS:
            theirs, ours = dataset.get(keyword), found.values.get(keyword)
            if keyword == "ModalityLUTSequence" or theirs in (None, "") or not str(theirs):
                assert bool(theirs) == bool(ours), keyword
            elif isinstance(ours, list):
                assert [str(part).strip() for part in theirs] == ours, keyword
            elif isinstance(ours, int):
                assert (int(theirs) - ours) % 65536 == 0, keyword
            else:
                assert str(theirs) == ours or float(theirs) == float(ours), keyword
    assert scanned >= 40


def test_sequences_of_undefined_length_are_skipped():
    """Nested, in implicit and explicit VR: what follows them is found, and nothing of what is inside."""
    import io

    from pydicom.dataset import Dataset
    from pydicom.filewriter import dcmwrite

    for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1"):
        ds = slice_dataset(random_slices(1)[0], (1, 2, 3))
        ds.file_meta.TransferSyntaxUID = syntax
        inner, outer = Dataset(), Dataset()
        inner.Rows, inner.Modality = 99, "XX"
        outer.PurposeOfReferenceCodeSequence = [inner, inner]
        ds.ReferencedImageSequence = [outer, outer]
        for sequence in (ds["ReferencedImageSequence"], outer["PurposeOfReferenceCodeSequence"]):
            sequence.is_undefined_length = True
        outer.is_undefined_length_sequence_item = inner.is_undefined_length_sequence_item = True
        buffer = io.BytesIO()
        dcmwrite(buffer, ds, enforce_file_format=True)
        assert b"\xff\xff\xff\xff" in buffer.getvalue()
        found = scan(buffer.getvalue(), _WANTED)
        assert found is not None
        assert (found.values["Rows"], found.values["Modality"]) == (12, "CT")
        assert found.values["ImagePositionPatient"] == ["1", "2", "3"]
        assert buffer.getvalue()[found.offset :] == ds.PixelData
