"""LUNA16: chest CT as MetaImage in ten folds, nodules in world coordinates, masks of the lungs.

Guarantee: coordinates become RAS by changing the sign of the first two; which scan a row belongs to follows from the
series UID alone. Studies come in the order of their UIDs.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from medvlp.errors import UserError
from medvlp.sources._csv import Row, csv_columns, iterate_csv, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import (
    ABSENT,
    PRESENT,
    UNKNOWN_PATIENT,
    ImageRef,
    Intensity,
    Lesion,
    Mask,
    Study,
    VolumeFacts,
)

ANNOTATIONS = ("CSVFILES/annotations.csv", "annotations.csv")
CANDIDATES = ("CSVFILES/candidates_V2.csv", "candidates_V2.csv")
POINT = ("coordX", "coordY", "coordZ")
CLASSES = {"1": "candidate_nodule", "0": "candidate_other"}
VALUES = {"lungs": (3, 4), "trachea": (5,)}
PATIENT_COLUMNS = (("seriesuid", "patient_id"), ("Series UID", "Subject ID"))
_UID = re.compile(r"[0-9]+(?:\.[0-9]+)+")
_SUBSET = re.compile(r"subset[0-9]")


class Luna16(Source):
    """The data set below a root folder; see `data_cards/luna16.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per scan, in the order of the series UIDs.

        Raises:
            UserError: A table or column is missing, a nodule is of no series UID, or no scan is there.
        """
        self.problems, self.counts = [], Counter()
        scans = index_files(self, ["subset[0-9]/*", "subset[0-9]/subset[0-9]/*"], [".mhd"])
        require_files(self, scans, "subset0/*.mhd to subset9/*.mhd")
        self.check_counts({"scans": len(scans)}, "scans")
        lesions: dict[str, list[Lesion]] = defaultdict(list)
        with_nodule = self._annotations(scans, lesions)
        if self.options["candidates"] == "v2":
            self._candidates(scans, lesions)
        patients = self._patients(scans)
        masks = index_files(self, ["seg-lungs-LUNA16/*", "seg-lungs-LUNA16/seg-lungs-LUNA16/*"], [".mhd"])
        for name, path in sorted(scans.items()):
            if not self._has_data(path):
                self.problem(path, "the .mhd has neither .raw nor .zraw beside it", "Unpack the subset again.", name)
                continue
            label = PRESENT if name in with_nodule else ABSENT
            yield Study(
                study_id=name,
                patient_id=patients.get(name, UNKNOWN_PATIENT),
                images=(ImageRef(name, path, "CT", facts=VolumeFacts(Intensity.HU)),),
                labels=dict.fromkeys(self.card.labels, label),
                lesions=tuple(lesions[name]),
                masks=self._masks(name, masks),
                subsets=(_SUBSET.findall(path)[0],),
            )

    def _has_data(self, path: str) -> bool:
        header = self.root / path
        return any(header.with_suffix(suffix).is_file() for suffix in (".raw", ".zraw"))

    def _masks(self, name: str, masks: Mapping[str, str]) -> tuple[Mask, ...]:
        if name not in masks or not self._has_data(masks[name]):
            self.counts["scans without a mask of the lungs"] += 1
            return ()
        return tuple(Mask(name, structure, masks[name], VALUES[structure]) for structure in self.card.structures)

    def _annotations(self, scans: Mapping[str, str], lesions: dict[str, list[Lesion]]) -> set[str]:
        """Add the nodules, and return the scans that have any.

        Raises:
            UserError: The scan of a row cannot be told: no scan could then be called one without nodules.
        """
        path = table_path(self, *ANNOTATIONS)
        rows = read_csv(path, ("seriesuid", *POINT, "diameter_mm"))
        seen: dict[tuple[str, ...], int] = {}
        for row in rows:
            name, diameter = row.cells["seriesuid"], number(row.cells["diameter_mm"])
            if not _UID.fullmatch(name):
                what = f"Line {row.line}: '{name}' is no series UID, so nobody knows which scan has the nodule."
                raise UserError(what, path, "Write the UID alone, as the names of the .mhd files have it.")
            first = seen.setdefault(tuple(row.cells.values()), row.line)
            if first != row.line:
                reason = f"the row repeats line {first}; the first is used"
                self.problem(f"{path.name}:{row.line}", reason, "Remove it.", name)
                continue
            if not (diameter > 0 and math.isfinite(diameter)):
                reason = f"nodule with the diameter '{row.cells['diameter_mm']}'"
                self.problem(f"{path.name}:{row.line}", reason, "Correct the row; the scan is kept without it.", name)
                continue
            self._add(row, "nodule", diameter, path.name, scans, lesions)
        return {row.cells["seriesuid"] for row in rows}

    def _candidates(self, scans: Mapping[str, str], lesions: dict[str, list[Lesion]]) -> None:
        path = table_path(self, *CANDIDATES)
        for row in iterate_csv(path, ("seriesuid", *POINT, "class")):
            label = CLASSES.get(row.cells["class"])
            if label is None:
                reason = f"candidate of the class '{row.cells['class']}'"
                name = row.cells["seriesuid"]
                self.problem(f"{path.name}:{row.line}", reason, "Correct the row; 0 and 1 are allowed.", name)
                continue
            self._add(row, label, None, path.name, scans, lesions)

    def _add(
        self, row: Row, label: str, diameter: float | None, table: str, scans: Mapping[str, str],
        lesions: dict[str, list[Lesion]],
    ) -> None:  # fmt: skip
        name = row.cells["seriesuid"]
        if name not in scans:
            self.counts[f"rows of {table} whose scan is not there"] += 1
            return
        left, posterior, superior = (number(row.cells[column]) for column in POINT)
        if not all(math.isfinite(value) for value in (left, posterior, superior)):
            fix = "Correct the row; the scan is kept without it."
            self.problem(f"{table}:{row.line}", f"{label} with a coordinate that is no number", fix, name)
            return
        lesions[name].append(Lesion(name, label, (-left, -posterior, superior), diameter))

    def _patients(self, scans: Mapping[str, str]) -> dict[str, str]:
        """Return series UID -> patient of the optional table."""
        table = self.options["patients"]
        if not table:
            return {}
        path = table_path(self, str(table))
        columns = csv_columns(path)
        pair = next((pair for pair in PATIENT_COLUMNS if set(pair) <= set(columns)), None)
        if pair is None:
            wanted = " or ".join(" and ".join(pair) for pair in PATIENT_COLUMNS)
            raise UserError(f"{path.name} lacks the columns {wanted}.", path, "Correct options.patients.")
        found: dict[str, str] = {}
        for row in read_csv(path, pair):
            name, patient = row.cells[pair[0]], row.cells[pair[1]]
            if found.setdefault(name, patient) != patient:
                raise UserError(f"{path.name} gives two patients for one series.", path, f"Correct line {row.line}.")
        self.counts["scans without a known patient"] = sum(not found.get(name) for name in scans)
        folds: dict[str, set[str]] = defaultdict(set)
        for name, path_of_scan in scans.items():
            folds[found.get(name, "")].add(_SUBSET.findall(path_of_scan)[0])
        self.counts["patients in several subsets"] = sum(len(own) > 1 for name, own in folds.items() if name)
        return {name: patient for name, patient in found.items() if patient}
