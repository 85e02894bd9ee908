"""The written data set: the same bytes whatever the workers, resumable, and read back as it was made."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.phantom.study import generate_study
from medvlp.sources.phantom.write import write_phantom

STUDIES, SEED, SIZE, PIXELS = 9, 5, 32, 64


def digest(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantom") / "data"
    write_phantom(out, STUDIES, SEED, SIZE, volumes=True, image_size=PIXELS)
    return out


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_two_processes_write_the_same_bytes(written: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path / "two", STUDIES, SEED, SIZE, num_workers=2, volumes=True, image_size=PIXELS)
    assert digest(tmp_path / "two") == digest(written)


def test_a_study_depends_on_seed_and_index_alone(written: Path) -> None:
    study = generate_study(SEED, 7, SIZE, PIXELS)
    stored = cv2.imread(str(written / f"studies/s000007/{study.images[0].view.lower()}.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(stored, study.images[0].pixels)
    other = generate_study(SEED + 1, 7, SIZE, PIXELS)
    assert not np.array_equal(other.images[0].pixels, study.images[0].pixels)


def test_resume_makes_only_what_is_missing_or_broken(copy: Path, written: Path) -> None:
    mask = next(copy.glob("studies/s*/mask_*.png"))
    broken = {mask.parent.name, "s000001", "s000004"}
    mask.write_bytes(b"half a file")
    (copy / "studies/s000001/study.json").unlink()
    (copy / "studies/s000004/volume.nii.gz").unlink()
    (copy / "studies.jsonl").unlink()
    before = {path.name: path.stat().st_mtime_ns for path in (copy / "studies").iterdir()}
    write_phantom(copy, STUDIES, SEED, SIZE, volumes=True, image_size=PIXELS)
    after = {path.name: path.stat().st_mtime_ns for path in (copy / "studies").iterdir()}
    assert digest(copy) == digest(written)
    assert {name for name in after if after[name] != before.get(name)} == broken


def test_killed_writer_goes_on(written: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from medvlp.sources.phantom import write\n"
        "made, real = [], write._write_study\n"
        "def stop(study, folder, settings):\n"
        "    row = real(study, folder, settings)\n"
        "    made.append(1)\n"
        "    if len(made) == 4: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return row\n"
        "write._write_study = stop\n"
        f"write.write_phantom(Path(sys.argv[1]), {STUDIES}, {SEED}, {SIZE}, volumes=True, image_size={PIXELS})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(out)], check=False)
    assert done.returncode == -9
    assert len(list(out.glob("studies/s*"))) == 3
    write_phantom(out, STUDIES, SEED, SIZE, volumes=True, image_size=PIXELS)
    assert digest(out) == digest(written)


def test_source_reads_back(written: Path) -> None:
    source = SOURCES.get("phantom")(written)
    studies = list(source.studies())
    assert not source.problems
    assert [study.study_id for study in studies] == [f"s{index:06d}" for index in range(STUDIES)]
    for index, study in enumerate(studies):
        made = generate_study(SEED, index, SIZE, PIXELS)
        assert study.report == made.report.text
        assert study.triplets == made.triplets
        assert dict(study.labels) == made.labels
        assert (study.patient_id, study.split, study.sex) == (made.visit.patient_id, made.visit.split, made.patient.sex)
        assert [image.view for image in study.images] == [image.view for image in made.images]
        for box, drawn in zip(study.boxes, study.masks, strict=True):
            assert drawn.image_id == box.image_id
            mask = cv2.imread(str(written / str(drawn.path)), cv2.IMREAD_UNCHANGED) > 0
            x, y, width, height = (int(value) for value in (box.x, box.y, box.width, box.height))
            assert mask[y : y + height, x : x + width].sum() == mask.sum() > 0
    assert source.summary()["studies"] == STUDIES


def test_report_labels_are_kept_apart(written: Path) -> None:
    rows = [json.loads(line) for line in (written / "studies.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(set(row["labels"].values()) <= {0.0, 1.0} for row in rows)
    assert any(None in row["report_labels"].values() for row in rows)
    assert all(not Path(image["path"]).is_absolute() for row in rows for image in row["images"])


def test_nifti_is_what_simpleitk_reads(written: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for index in range(3):
        made = generate_study(SEED, index, SIZE, PIXELS)
        image = sitk.ReadImage(str(written / f"studies/s{index:06d}/volume.nii.gz"))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), made.volume)
        np.testing.assert_allclose(image.GetSpacing()[::-1], made.spacing_mm, rtol=1e-5)
        # ITK speaks LPS: the first two coordinates have the other sign.
        corner = np.array(image.TransformIndexToPhysicalPoint((3, 5, 7))) * (-1, -1, 1)
        np.testing.assert_allclose(corner, (made.affine @ (7, 5, 3, 1))[:3], rtol=1e-4)
        bits = sitk.GetArrayFromImage(sitk.ReadImage(str(written / f"studies/s{index:06d}/masks.nii.gz")))
        for number, mask in enumerate(made.masks):
            np.testing.assert_array_equal((bits >> number & 1).astype(bool), mask.full(SIZE))


def test_missing_image_is_a_problem_not_a_crash(copy: Path) -> None:
    row = json.loads((copy / "studies.jsonl").read_text(encoding="utf-8").splitlines()[2])
    (copy / row["images"][0]["path"]).unlink()
    with (copy / "studies.jsonl").open("a", encoding="utf-8") as lines:
        lines.write('{"half a row\n')
        lines.write(json.dumps({**row, "study_id": "s000000"}) + "\n")
    source = SOURCES.get("phantom")(copy)
    assert len(list(source.studies())) == STUDIES - 1
    assert [problem.study_id for problem in source.problems] == [row["study_id"], None, "s000000"]


def test_wrong_folders_are_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another phantom: seed 5 there, 6 asked for"):
        write_phantom(written, STUDIES, SEED + 1, SIZE, image_size=PIXELS)
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="not empty"):
        write_phantom(tmp_path, 1, 0, SIZE)
    with pytest.raises(UserError, match="at least 1"):
        write_phantom(tmp_path / "none", 0, 0)
    with pytest.raises(UserError, match="cannot be written"):
        write_phantom(tmp_path / "mine" / "below", 1, 0, SIZE)
    with pytest.raises(UserError, match="holds no phantom"):
        list(SOURCES.get("phantom")(tmp_path).studies())


def test_package_is_light() -> None:
    code = "import sys, medvlp.sources.phantom; print(*{'cv2', 'torch', 'pandas', 'scipy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
