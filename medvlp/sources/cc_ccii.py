"""CC-CCII: chest CT as folders of pictures, in three classes that their folders name.

Guarantee: the class is the name of the folder and of the row, never a number. Slices are ordered by their numbers; a
scan that is not whole is left out. Studies come by class, patient and scan.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping

from medvlp.errors import UserError, nearest
from medvlp.sources._checks import unique_rows
from medvlp.sources._csv import Row, csv_columns, read_csv
from medvlp.sources._files import table_path
from medvlp.sources._slices import numbered_slices
from medvlp.sources._values import age_years, number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, ImageRef, Intensity, Study, VolumeFacts

TABLE, METADATA, LESIONS = "unzip_filenames.csv", "metadata.csv", "lesions_slices.csv"
LESION_COLUMN = "imgpath"
SEX_COLUMN = "Sex(Male1/Female2)"
SEXES = {"1": "M", "2": "F", "1.0": "M", "2.0": "F"}
NUMBERS = ("Critical_illness", "Liver_function", "Lung_function", "Progression (Days)")
_LESION = re.compile(
    r"(?P<label>[^/]+)/(?P<patient>[^/]+)/(?P<scan>[^/]+)/(?P<slice>[^/]+)\.(?:png|jpe?g)", re.IGNORECASE
)


class CcCcii(Source):
    """The data set below a root folder; see `data_cards/cc_ccii.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per scan, by class, patient and scan.

        Raises:
            UserError: The table of scans or a column is missing, no scan is there, or a full edition has other counts
                than the card.
        """
        self.problems, self.counts = [], Counter()
        rows = read_csv(table_path(self, TABLE), ("label", "patient_id", "scan_id", "n_slice"), ("zip_file",))
        table = unique_rows(self, rows, self._key, TABLE, "scan")
        folders = self._folders()
        self._count(table)
        classes: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            classes[_person_and_scan(row)].add(self._label(row.cells["label"]))
        metadata = self._metadata()
        lesions = self._lesions()
        for name, row in sorted(table.items(), key=lambda item: _order(item[0])):
            try:
                if len(own := classes[_person_and_scan(row)]) > 1:
                    raise ValueError(f"the scan is listed in the classes {' and '.join(sorted(own))}; none is kept")
                yield self._study(name, row, folders, metadata, lesions)
            except ValueError as error:
                self.problem(f"{TABLE}:{row.line}", str(error), "Unpack its archive again, or correct the row.", name)
        listed = {self._key(row) for row in rows}
        for name in sorted(set(folders) - listed, key=_order):
            self.problem(folders[name], f"the scan is not in {TABLE}", "Add its row, or remove the folder.", name)

    def _key(self, row: Row) -> str:
        return f"{self._label(row.cells['label'])}_{row.cells['patient_id']}_{row.cells['scan_id']}"

    def _label(self, name: str) -> str:
        return self.card.label_aliases.get(name, name)

    def _folders(self) -> dict[str, str]:
        """Return study id -> folder of the scan, relative to the root."""
        found: dict[str, str] = {}
        for label in (*self.card.labels, *self.card.label_aliases):
            for folder in sorted(self.root.glob(f"{label}/*/*")):
                if folder.is_dir() and not folder.name.startswith("."):
                    name = f"{self._label(label)}_{folder.parent.name}_{folder.name}"
                    path = folder.relative_to(self.root).as_posix()
                    if name in found:
                        fix = "Remove one of the two folders; the first is kept."
                        self.problem(path, f"the scan is also at {found[name]}", fix, name)
                        continue
                    found[name] = path
        if not found:
            where = ", ".join(f"{label}/<patient>/<scan>" for label in self.card.labels)
            raise UserError(f"There is no scan in {where}.", self.root, "Unpack the archives below the root.")
        return found

    def _study(
        self, name: str, row: Row, folders: Mapping[str, str], metadata: Mapping[str, Row],
        lesions: Mapping[str, list[str]],
    ) -> Study:  # fmt: skip
        """Return one study.

        Raises:
            ValueError: It cannot be used; the message says why.
        """
        label, cells = self._label(row.cells["label"]), row.cells
        if label not in self.card.labels:
            raise ValueError(f"unknown class '{label}'.{nearest(label, list(self.card.labels))}")
        if name not in folders:
            archive = f" (archive {cells['zip_file']})" if cells["zip_file"] else ""
            raise ValueError(f"row without scan: {name} has no folder{archive}")
        slices, unnumbered = numbered_slices(self.root / folders[name])
        if number(cells["n_slice"]) != len(slices):
            raise ValueError(f"n_slice is '{cells['n_slice']}', but the folder holds {len(slices)} numbered slices")
        for path in unnumbered:
            where = path.relative_to(self.root).as_posix()
            self.problem(where, "the name of the picture is no number", "Remove it, or number it.", name)
        files = tuple(path.relative_to(self.root).as_posix() for path in slices)
        about = metadata.get(_person_and_scan(row))
        values = {column: number(about.cells[column]) for column in NUMBERS} if about else {}
        marked = lesions.get(name, [])
        return Study(
            study_id=name,
            patient_id=cells["patient_id"],
            images=(ImageRef(name, folders[name], "CT", files=files, facts=VolumeFacts(Intensity.STORED)),),
            labels={own: PRESENT if own == label else ABSENT for own in self.card.labels},
            values={key: value for key, value in values.items() if not math.isnan(value)}
            | ({"lesion_slices": float(len(marked))} if marked else {}),
            attributes={"lesion_slices": " ".join(marked)} if marked else {},
            age=age_years(about.cells["Age"]) if about else None,
            sex=SEXES.get(about.cells[SEX_COLUMN]) if about else None,
            subsets=("covidx_ct_removed",) if name in self.card.adapter["covidx_ct_removed"] else (),
        )

    def _metadata(self) -> dict[str, Row]:
        """Return patient/scan -> row of the optional metadata."""
        path = self.root / METADATA
        if not path.is_file():
            self.counts[f"{METADATA}: missing"] = 1
            return {}
        rows = read_csv(path, ("patient_id", "scan_id", "Age", SEX_COLUMN, *NUMBERS), may_be_empty=True)
        return unique_rows(self, rows, _person_and_scan, METADATA, "scan")

    def _lesions(self) -> dict[str, list[str]]:
        """Return study id -> names of the slices with lesions, in their order."""
        path = self.root / LESIONS
        found: dict[str, set[str]] = defaultdict(set)
        columns = csv_columns(path) if path.is_file() else []
        column = LESION_COLUMN if LESION_COLUMN in columns or len(columns) != 1 else columns[0]
        if column in columns:
            for row in read_csv(path, (column,), may_be_empty=True):
                match = _LESION.search(row.cells[column].replace("\\", "/"))
                if match is None:
                    reason = f"'{row.cells[column]}' is no path class/patient/scan/slice"
                    self.problem(f"{LESIONS}:{row.line}", reason, "Correct the row.")
                    continue
                found[f"{self._label(match['label'])}_{match['patient']}_{match['scan']}"].add(match["slice"])
        elif columns:
            self.counts[f"{LESIONS}: no column {LESION_COLUMN}, not read"] = 1
        return {name: sorted(own, key=lambda text: (len(text), text)) for name, own in found.items()}

    def _count(self, table: Mapping[str, Row]) -> None:
        labels = Counter(name.split("_")[0] for name in table)
        classes: dict[str, set[str]] = defaultdict(set)
        for name, row in table.items():
            classes[row.cells["patient_id"]].add(name.split("_")[0])
        found = {"scans": len(table), "patients": len(classes)}
        self.check_counts(found | {f"{label} scans": labels[label] for label in self.card.labels}, "scans")
        self.counts["patients with scans of several classes"] = sum(len(own) > 1 for own in classes.values())


def _person_and_scan(row: Row) -> str:
    return f"{row.cells['patient_id']}/{row.cells['scan_id']}"


def _order(name: str) -> tuple[str, list[tuple[int, str]]]:
    label, *ids = name.split("_")
    return label, [(len(part), part) for part in ids]
