"""RAD-ChestCT: chest CT volumes as NPZ, with 84 findings at 52 locations.

Guarantee: a finding is present where it stands at any location; the sixteen findings of the option are made from the
84, never from a table of others. Geometry is the distance that the metadata give, along axes towards inferior,
posterior and left. Studies come in the order of their names.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from medvlp.errors import UserError, nearest
from medvlp.sources._checks import check_patients_apart, name_unlisted, unique_rows
from medvlp.sources._csv import Row, csv_columns, iterate_csv, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._values import label_value
from medvlp.sources._volumes import Affine, repeated_numbers
from medvlp.sources.base import Source
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, ImageRef, Intensity, Study, VolumeFacts

SUMMARY = "Summary_3630.csv"
METADATA = "CT_Scan_Metadata_Complete_35747.csv"
LABELS = "img{split}_Abnormality_and_Location_Labels.csv"
SPLITS = {"train": ("train", "trn"), "valid": ("val", "val"), "test": ("test", "tst")}
"""Name in the tables -> split of a study, start of the file names."""
KEY, PATIENT = "NoteAcc_DEID", "MRN_DEID"
_SUBSET = re.compile(r"img(train|valid|test)(_[a-d])?")
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


class RadChestCt(Source):
    """The data set below a root folder; see `data_cards/rad_chestct.md`."""

    def __init__(self, root: Path, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(root, options)
        self._findings: tuple[str, ...] = self.card.labels
        self._locations: set[str] = set()
        if self.options["labels"] == 16:
            self.card = self.card.model_copy(update={"labels": tuple(self.card.adapter["findings_16"])})

    def studies(self) -> Iterator[Study]:
        """Yield one study per volume, in the order of their names.

        Raises:
            UserError: A table or column is missing, a label column is of no known finding, no volume is there, patients
                are in two splits, or a full edition has other counts than the card.
        """
        self.problems, self.counts, self._locations = [], Counter(), set()
        rows = read_csv(table_path(self, SUMMARY), (PATIENT, KEY, "Set_Assigned", "Subset_Assigned"))
        summary = unique_rows(self, rows, lambda row: row.cells[KEY], SUMMARY, "volume")
        files = index_files(self, ["*"], [".npz"])
        require_files(self, files, "*.npz")
        scans = read_csv(table_path(self, METADATA), (PATIENT, KEY, "final_spacing"))
        wanted = [row for row in scans if row.cells[KEY] in summary]
        metadata = unique_rows(self, wanted, lambda row: row.cells[KEY], METADATA, "volume")
        labels = {split: dict(self._labels(split)) for split in SPLITS}
        self._count(summary)
        studies = []
        for name, row in sorted(summary.items()):
            try:
                studies.append(self._study(name, row, files, metadata, labels))
            except ValueError as error:
                self.problem(f"{SUMMARY}:{row.line}", str(error), "Download it again, or correct the table.", name)
        name_unlisted(self, files, (row.cells[KEY] for row in rows), SUMMARY)
        check_patients_apart(self, studies, f"Download {SUMMARY} again.")
        yield from studies

    def _study(
        self, name: str, row: Row, files: Mapping[str, str], metadata: Mapping[str, Row],
        labels: Mapping[str, Mapping[str, dict[str, float]]],
    ) -> Study:  # fmt: skip
        """Return one study.

        Raises:
            ValueError: It cannot be used; the message says why.
        """
        cells = row.cells
        subset = _SUBSET.fullmatch(cells["Subset_Assigned"])
        if subset is None or not name.startswith(SPLITS[subset[1]][1]):
            raise ValueError(f"{name} and Subset_Assigned '{cells['Subset_Assigned']}' do not go together")
        if name not in files:
            raise ValueError(f"row without volume: {name}.npz is not in the root")
        if name not in metadata:
            raise ValueError(f"{name} has no (or no unambiguous) row in {METADATA}")
        if metadata[name].cells[PATIENT] != cells[PATIENT]:
            raise ValueError(f"{name} is of another patient in {METADATA}")
        if not cells[PATIENT]:
            raise ValueError(f"{name} has no patient in {SUMMARY}")
        if name not in labels[subset[1]]:
            raise ValueError(f"{name} has no (or no usable) row in {LABELS.format(split=subset[1])}")
        spacing = _NUMBER.findall(metadata[name].cells["final_spacing"])
        if len(spacing) not in (1, 3):
            raise ValueError(f"final_spacing '{metadata[name].cells['final_spacing']}' is neither one number nor three")
        facts = VolumeFacts(Intensity.HU, affine=_affine(repeated_numbers([float(value) for value in spacing])))
        return Study(
            study_id=name,
            patient_id=cells[PATIENT],
            images=(ImageRef(name, files[name], "CT", facts=facts),),
            labels=self._chosen(labels[subset[1]][name]),
            split=SPLITS[subset[1]][0],
            subsets=tuple(dict.fromkeys(cell for cell in (cells["Set_Assigned"], cells["Subset_Assigned"]) if cell)),
        )

    def _chosen(self, values: dict[str, float]) -> dict[str, float]:
        """Return the labels of the card: the 84 as they are, or the sixteen made from them."""
        if self.card.labels == self._findings:
            return values
        parts: Mapping[str, list[str]] = self.card.adapter["findings_16"]
        return {label: present_anywhere(values[part] for part in parts[label]) for label in self.card.labels}

    def _labels(self, split: str) -> Iterator[tuple[str, dict[str, float]]]:
        """Yield (volume, finding -> label) of one table `finding*location`."""
        table = LABELS.format(split=split)
        path = table_path(self, table)
        columns: dict[str, list[str]] = {finding: [] for finding in self._findings}
        for column in csv_columns(path):
            finding, star, location = column.partition("*")
            if not star:
                continue
            if finding not in columns:
                what = f"{table} has a column of the unknown finding '{finding}'.{nearest(finding, list(columns))}"
                raise UserError(what, path, "Download it again; the findings are those of the data card.")
            columns[finding].append(column)
            self._locations.add(location)
        missing = [finding for finding, own in columns.items() if not own]
        if missing:
            raise UserError(f"{table} has no column of {', '.join(missing)}.", path, "Download it again.")
        seen: dict[str, dict[str, float]] = {}
        for row in iterate_csv(path, (KEY, *(column for own in columns.values() for column in own))):
            name, where = row.cells[KEY], f"{table}:{row.line}"
            try:
                values = {
                    finding: present_anywhere({label_value(cell) for cell in {row.cells[column] for column in own}})
                    for finding, own in columns.items()
                }
            except ValueError as error:
                self.problem(where, str(error), "Correct the row.", name)
                continue
            if name in seen:
                decision = "agree; the first is kept" if str(values) == str(seen[name]) else "differ; none is kept"
                self.problem(where, f"duplicated id: rows of {name} {decision}", "Keep one row per volume.", name)
                if decision.startswith("differ"):
                    seen[name] = {}
                continue
            seen[name] = values
        yield from ((name, values) for name, values in seen.items() if values)

    def _count(self, summary: Mapping[str, Row]) -> None:
        matches = [_SUBSET.fullmatch(row.cells["Subset_Assigned"]) for row in summary.values()]
        sizes = Counter(match[1] for match in matches if match)
        found = {"volumes": len(summary), "patients": len({row.cells[PATIENT] for row in summary.values()})}
        found |= {f"{split} volumes": sizes[split] for split in SPLITS}
        self.check_counts(found | {"locations": len(self._locations)}, "volumes")


def present_anywhere(values: Iterable[float]) -> float:
    """Return 1 where any value is 1, else NaN where any is NaN, else 0.

    Raises:
        ValueError: A value is uncertain, which this data set does not know.
    """
    given = set(values)
    if any(value not in (PRESENT, ABSENT) and not math.isnan(value) for value in given):
        raise ValueError("a label is neither 1 nor 0")
    if PRESENT in given:
        return PRESENT
    return NOT_MENTIONED if given != {ABSENT} else ABSENT


def _affine(step_mm: float) -> Affine:
    """Return the affine from (column, row, slice), which run towards left, posterior and inferior; voxel 0 is at 0."""
    return (
        (-step_mm, 0.0, 0.0, 0.0),
        (0.0, -step_mm, 0.0, 0.0),
        (0.0, 0.0, -step_mm, 0.0),
        (0.0, 0.0, 0.0, 1.0),
    )
