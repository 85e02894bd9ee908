"""CT-RATE: chest CT volumes by patient, scan and reconstruction, with reports, predicted labels and metadata.

Guarantee: slope, intercept and geometry come from the metadata table in version v1 and from nowhere else in v2, so that
HU is never applied twice; the user names the version, and folders that contradict it stop the run. Studies come by
split, number of the patient, scan.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._files import table_path
from medvlp.sources._report import join_sections
from medvlp.sources._values import age_years, label_value, number, sex, yyyymmdd
from medvlp.sources._volumes import dicom_affine, nifti_files, number_list, without_nifti_suffix
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

SPLITS = {"train": "train", "valid": "test"}
FOLDERS = {"v1": {"train": "train", "valid": "valid"}, "v2": {"train": "train_fixed", "valid": "valid_fixed"}}
METADATA = {"train": "train_metadata.csv", "valid": "validation_metadata.csv"}
NO_CHEST = {"train": "no_chest_train.txt", "valid": "no_chest_valid.txt"}
REPORTS = {"train": "train_reports.csv", "valid": "validation_reports.csv"}
LABELS = {"train": "train_predicted_labels.csv", "valid": "valid_predicted_labels.csv"}
SECTIONS = {
    "ClinicalInformation_EN": "CLINICAL INFORMATION",
    "Technique_EN": "TECHNIQUE",
    "Findings_EN": "FINDINGS",
    "Impressions_EN": "IMPRESSION",
}
ABSENT = "Not given."
_SCALE = (
    "RescaleSlope",
    "RescaleIntercept",
    "XYSpacing",
    "ZSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
_SIZE = ("Columns", "Rows", "NumberofSlices")
_ABOUT = ("PatientSex", "PatientAge", "StudyDate")
_SCANNER = {
    "manufacturer": "Manufacturer",
    "scanner_model": "ManufacturerModelName",
    "convolution_kernel": "ConvolutionKernel",
}
_NAME = re.compile(r"(?P<scan>(?P<patient>(?P<split>train|valid)_(?P<number>\d+))_(?P<letters>[a-z]+))_(?P<kind>\d+)")


@dataclass(frozen=True, slots=True)
class _Volume:
    """One reconstruction with what the tables say of it."""

    name: str
    path: str
    meta: Row
    report: str | None
    labels: dict[str, float]
    facts: VolumeFacts


class CtRate(Source):
    """The data set below a root folder that holds `dataset/`; see `data_cards/ct_rate.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per scan.

        Raises:
            UserError: No folder of the named version is there, a table or list of a split is missing or lacks a column,
                or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        here = [split for split in SPLITS if (self.root / "dataset" / self._folder(split)).is_dir()]
        if not here:
            self._refuse_version()
        labels = {split: self._rows("multi_abnormality_labels", LABELS[split], self.card.labels) for split in here}
        self._count(labels)
        for split in SPLITS:
            if split in here:
                yield from self._split(split, labels[split])
            else:
                self.counts[f"split {split}: no folder, left out"] = 1

    def _folder(self, split: str) -> str:
        return FOLDERS[self.options["version"]][split]

    def _refuse_version(self) -> None:
        version = self.options["version"]
        other = next(name for name in FOLDERS if name != version)
        wanted = " or ".join(f"dataset/{folder}" for folder in FOLDERS[version].values())
        found = [f"dataset/{folder}" for folder in FOLDERS[other].values() if (self.root / "dataset" / folder).is_dir()]
        if found:
            what = f"The root holds version {other} ({', '.join(found)}), but options.version is {version}."
            raise UserError(what, self.root, f"Give options.version={other}, or download {wanted}.")
        raise UserError(f"There is no folder {wanted}.", self.root, "Give the folder that holds dataset/.")

    def _rows(self, folder: str, name: str, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Row]:
        """Return name of the volume -> its row."""
        path = table_path(self, f"dataset/{folder}/{name}")
        rows = read_csv(path, ("VolumeName", *columns), optional)
        return unique_rows(self, rows, lambda row: without_nifti_suffix(row.cells["VolumeName"]), name, "volume")

    def _split(self, split: str, labels: dict[str, Row]) -> Iterator[Study]:
        scale, rest = (_SCALE, ()) if self.options["version"] == "v1" else ((), _SCALE)
        optional = (*rest, *_SIZE, *_ABOUT, *_SCANNER.values(), "GantryDetectorTilt")
        meta = self._rows("metadata", METADATA[split], scale, optional)
        reports = self._rows("radiology_text_reports", REPORTS[split], tuple(SECTIONS))
        files = nifti_files(self, [f"dataset/{self._folder(split)}/*/*/*"])
        left_out = self._no_chest(split)
        for table, rows in ((REPORTS, reports), (LABELS, labels)):
            self.counts[f"rows of {table[split]} without a volume"] = len(set(rows) - set(files) - set(meta))
        volumes = []
        for name in sorted(set(files) | set(meta), key=_order):
            if name in left_out:
                self.counts["volumes left out: on a no_chest list"] += 1
                continue
            try:
                volumes.append(self._volume(name, split, files, meta, reports, labels))
            except ValueError as error:
                where = files.get(name) or f"{METADATA[split]}:{meta[name].line}"
                self.problem(where, str(error), "Download it again, or correct the table.", name)
        for scan, own in groupby(volumes, key=lambda volume: _parts(volume.name)["scan"]):
            study = self._study(scan, split, list(own))
            if study is not None:
                yield study

    def _no_chest(self, split: str) -> set[str]:
        path = table_path(self, f"dataset/metadata/{NO_CHEST[split]}")
        return {without_nifti_suffix(line) for line in read_text(path).splitlines() if line.strip()}

    def _volume(
        self, name: str, split: str, files: dict[str, str], meta: dict[str, Row], reports: dict[str, Row],
        labels: dict[str, Row],
    ) -> _Volume:  # fmt: skip
        """Return one volume.

        Raises:
            ValueError: It cannot be used; the message says why.
        """
        parts = _NAME.fullmatch(name)
        if parts is None or parts["split"] != split:
            raise ValueError(f"'{name}' is no name of a volume of {split}")
        if name in self.card.adapter["unusable"]:
            raise ValueError("the volume is known to be unusable")
        if name not in files:
            raise ValueError(f"row without volume: {name} is not below {self._folder(split)}")
        if files[name].split("/")[-3:-1] != [parts["patient"], parts["scan"]]:
            raise ValueError(f"{name} lies in the folder of another scan")
        tables = ((METADATA, meta), (REPORTS, reports), (LABELS, labels))
        for table, rows in tables:
            if name not in rows:
                raise ValueError(f"{name} has no (or no unambiguous) row in {table[split]}")
        report = join_sections(((SECTIONS[key], reports[name].cells[key]) for key in SECTIONS), [ABSENT])
        values = {label: label_value(labels[name].cells[label]) for label in self.card.labels}
        return _Volume(name, files[name], meta[name], report, values, self._facts(meta[name]))

    def _facts(self, row: Row) -> VolumeFacts:
        if self.options["version"] == "v2":
            return VolumeFacts(Intensity.HU)
        cells = row.cells
        slope, intercept = number(cells["RescaleSlope"]), number(cells["RescaleIntercept"])
        if not (math.isfinite(slope) and slope > 0 and math.isfinite(intercept)):
            raise ValueError(f"slope '{cells['RescaleSlope']}' and intercept '{cells['RescaleIntercept']}' give no HU")
        if number(cells["GantryDetectorTilt"] or "0") != 0:
            raise ValueError(
                f"gantry tilt {cells['GantryDetectorTilt']}: the table does not say how slices are shifted"
            )
        affine = dicom_affine(
            number_list(cells["ImagePositionPatient"], 3),
            number_list(cells["ImageOrientationPatient"], 6),
            number_list(cells["XYSpacing"], 2),
            number(cells["ZSpacing"]),
        )
        numbers = [number(cells[column]) for column in _SIZE]
        told = all(value.is_integer() and value > 0 for value in numbers)
        self.counts["volumes whose size the table does not give"] += not told
        size = (int(numbers[0]), int(numbers[1]), int(numbers[2])) if told else None
        return VolumeFacts(Intensity.HU, slope, intercept, affine, size)

    def _study(self, scan: str, split: str, volumes: list[_Volume]) -> Study | None:
        first = volumes[0]
        if any((volume.report, str(volume.labels)) != (first.report, str(first.labels)) for volume in volumes):
            reason = f"the reconstructions of {scan} have different reports or labels"
            self.problem(first.path, reason, f"Correct {REPORTS[split]} or {LABELS[split]}.", scan)
            return None
        if self.options["reconstructions"] == "first":
            self.counts["reconstructions left out: not the first"] += len(volumes) - 1
            volumes = volumes[:1]
        scanners = {name: [volume.meta.cells[column] for volume in volumes] for name, column in _SCANNER.items()}
        about = first.meta.cells
        return Study(
            study_id=scan,
            patient_id=_parts(first.name)["patient"],
            images=tuple(ImageRef(volume.name, volume.path, "CT", facts=volume.facts) for volume in volumes),
            report=first.report,
            labels=first.labels,
            attributes={name: " | ".join(dict.fromkeys(cells)) for name, cells in scanners.items() if any(cells)},
            language=self.card.language if first.report else None,
            age=age_years(about["PatientAge"]),
            sex=sex(about["PatientSex"]),
            date=yyyymmdd(about["StudyDate"]),
            split=SPLITS[split],
        )

    def _count(self, labels: dict[str, dict[str, Row]]) -> None:
        found = {"volumes": sum(map(len, labels.values()))}
        for split, rows in labels.items():
            parts = [match for name in rows if (match := _NAME.fullmatch(name))]
            found[f"{split} volumes"] = len(rows)
            found[f"{split} scans"] = len({match["scan"] for match in parts})
            found[f"{split} patients"] = len({match["patient"] for match in parts})
        self.check_counts(found, "volumes")


def _parts(name: str) -> dict[str, str]:
    match = _NAME.fullmatch(name)
    return match.groupdict() if match else {}


def _order(name: str) -> tuple[int, int, str, int, str]:
    parts = _parts(name) or {"number": "0", "letters": "", "kind": "0"}
    return int(parts["number"]), len(parts["letters"]), parts["letters"], int(parts["kind"]), name
