"""Identifiers planted in 200 DICOM files and their reports are nowhere in store, logs, MLflow, run or pages."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_store
from typer.testing import CliRunner

from medvlp.cli import app
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.store.array_store import Store

PATIENTS, FILES = 100, 200
FAMILY = (
    "Quistgaard",
    "Oyelaran",
    "Brzeziński",
    "Nakagawara",
    "O'Featherstone",
    "Vandermeulen",
    "Okonjo",
    "Weißmüller",
)
GIVEN = ("Ingeborg", "Temitope", "Zbigniew", "Haruhiko", "Clémentine", "Hans-Joost", "Adaeze", "Lyudmila")
DOCTORS = ("Wolfenbuettel", "Abernathy", "Castellanos", "Ramanujam")
PLAIN = str.maketrans({"ń": "n", "é": "e", "ß": "ss", "ü": "ue"})


@dataclass
class Export:
    """A hospital's folder and everything in it that must not leave it."""

    root: Path
    secrets: set[str] = field(default_factory=set)

    def hide(self, *texts: str) -> None:
        self.secrets.update(texts)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Two examinations of each of 100 patients; some files are broken, some rows contradict or belong to no file."""
    made = Export(tmp_path_factory.mktemp("hospital") / "export")
    rng = np.random.default_rng(0)
    labels, reports = [["AccessionNumber", "Edema", "Effusion", "split"]], [["AccessionNumber", "Report"]]
    for number in range(FILES):
        person, visit = number % PATIENTS, number // PATIENTS
        family = f"{FAMILY[person % 8]}{person:03d}x"
        given, doctor = GIVEN[person // 8 % 8], DOCTORS[person % 4]
        mrn, accession = f"MR{7_310_000 + 37 * person}", f"ACC{55_000_000 + 811 * number}"
        birth, day = f"19{30 + person % 60}0{1 + person % 9}1{person % 10}", f"2019{1 + visit:02d}{10 + person % 19}"
        institution, uid = f"St. Hildegard Hospital Ward {900 + person}", uid_of("planted", number)
        made.hide(family, given, doctor, mrn, accession, birth, day, institution, "Hildegard", uid)
        made.hide(family.translate(PLAIN), given.translate(PLAIN))
        pixels = rng.integers(1, 255, (48, 40), dtype=np.uint8)
        data = radiograph_file(
            pixels,
            uid,
            PatientName=f"{family}^{given}",
            PatientID=mrn,
            PatientBirthDate=birth,
            PatientAddress=f"{person} Rosenstrasse",
            PatientSex="MF"[person % 2],
            PatientAge=f"{30 + person % 60:03d}Y",
            AccessionNumber=accession,
            StudyInstanceUID=uid_of("study", number),
            SeriesInstanceUID=uid_of("series", number),
            StudyDate=day,
            StudyTime="101500",
            InstitutionName=institution,
            ReferringPhysicianName=f"{doctor}^Otto",
            OperatorsName=doctor,
            ViewPosition="PA",
            StudyDescription=f"Chest of {family}",
            Manufacturer=f"Acme for {family}" if number % 25 == 3 else "Acme",
            SpecificCharacterSet="ISO_IR 192",
        )
        if number % 50 == 7:
            data = data[: len(data) // 2]
        folder = made.root / f"{family}_{given}" / day
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{accession}.dcm").write_bytes(data)
        split = ("train", "train", "train", "test")[person % 4]
        labels.append([accession, str(number % 2), "-1" if number % 3 else "", split])
        reports.append([accession, report(number, (family, given, doctor), mrn, accession, day, visit)])
    made.hide("Rosenstrasse", "24105", "555-0142", "lyudmila@example.org")
    labels.append(["ACC99999999", "1", "0", "train"])
    labels.append([labels[1][0], "1" if labels[1][1] == "0" else "0", "", "train"])
    made.hide("ACC99999999")
    for name, rows in (("labels_Quistgaard000x.csv", labels), ("reports_of_Ingeborg.csv", reports)):
        with (made.root.parent / name).open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    return made


def report(number: int, people: tuple[str, str, str], mrn: str, accession: str, day: str, visit: int) -> str:
    """A report that names everybody: the patient by header and in the text, doctors by title and signature."""
    family, given, doctor = people
    finding = "There is edema." if visit else "The lungs are clear."
    if number % 4 == 1:
        return f"pt {given.lower()}\n{family.translate(PLAIN)} ({mrn.removeprefix('MR')}) {finding} seen, {doctor}"
    if number % 4 == 2:
        return (
            f"Patient {given} {family}, geb. {day[6:]}.{day[4:6]}.1950, Fall-Nr. {accession}. "
            f"Zuweiser: Dr. med. {doctor}. {finding} Herr\n{family} wohnt Rosenstrasse 12, 24105 Kiel. gez. {doctor}"
        )
    if number % 4 == 3:
        return f"Paciente: {given} {family}. {finding} Sra. {family.upper()} refiere tos. Informado por {doctor}."
    return (
        f"PATIENT: {family.upper()}, {given.upper()}  MRN: {mrn}\nACCESSION: {accession}\nDATE: {day}\n"
        f"INDICATION: {given} {family} with cough, referred by Dr. {doctor} of St. Hildegard Hospital Ward 9.\n"
        f"COMPARISON: {day[:4]}-{day[4:6]}-{day[6:]}.\n"
        f"FINDINGS: {finding} No effusion. "
        f"Called to 555-0142 and lyudmila@example.org.\n"
        f"IMPRESSION: {'Edema.' if visit else 'Normal chest.'}\n"
        f"Electronically signed by: Otto {doctor} MD"
    )


def everything(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield names and contents of all files; tables are compressed, so that their bytes alone would hide everything."""
    for file in sorted(folder.rglob("*")):
        yield file, str(file.relative_to(folder)).encode()
        if file.suffix == ".parquet":
            yield file, str(pq.read_table(file).to_pylist()).encode()
        if file.is_file():
            yield file, file.read_bytes()


def found(secrets: set[str], name: object, data: bytes) -> list[str]:
    text = data.decode("utf-8", "replace").lower()
    return [f"{name}: {secret}" for secret in secrets if secret.lower() in text]


def test_nothing_that_was_planted_is_found_again(
    export: Export, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MEDVLP_SALT", str(tmp_path / "private" / "salt"))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.chdir(out)
    caplog.set_level(logging.DEBUG)
    parent = export.root.parent
    printed = ""
    verbs = [
        ["prepare", "dicom_folder", "--root", str(export.root), "--labels", str(parent / "labels_Quistgaard000x.csv"),
         "--reports", str(parent / "reports_of_Ingeborg.csv"), "--out", "store", "image.size=32", "num_workers=1",
         "max_quarantine_share=0.2"],
        ["show", "store", "--html", "show.html"],
        ["audit", "store", "--html", "audit.html", "--json", "audit.json", "--raw", str(export.root)],
    ]  # fmt: skip
    for verb in verbs:
        done = CliRunner().invoke(app, ["-v", "data", *verb])
        assert done.exit_code == 0, done.output
        printed += done.output
    store = Store.open(out / "store")
    assert len(store.images) == FILES - 4
    assert store.studies["report"].str.contains("lungs are clear|edema").sum() >= FILES - 6
    assert set(store.studies["day"].dropna()) == {0.0, 28.0, 31.0} & set(store.studies["day"].dropna()) | {0.0}
    assert store.studies.groupby("patient_id").size().max() == 2
    train(out)
    leaks = [leak for file, data in everything(out) for leak in found(export.secrets, file.relative_to(out), data)]
    leaks += found(export.secrets, "printed", printed.encode()) + found(export.secrets, "log", caplog.text.encode())
    assert not leaks, leaks[:20]
    key = next((tmp_path / "private" / "salt.keys").iterdir()).read_text()
    assert all(secret in key for secret in ("MR7310000", "ACC55000000"))


def train(out: Path) -> None:
    """Pre-train two steps on images and reports, with MLflow."""
    from medvlp.train.loop import pretrain

    changes = {"train": {"steps": 2, "validate_every": 2}, "track": {"mlflow": True}, "data": {"num_workers": 0}}
    pretrain(tiny_store.config(out / "store", out / "run", "convirt", **changes))
    assert (out / "mlflow.db").is_file()
