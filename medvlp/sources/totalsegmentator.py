"""TotalSegmentator: one CT per folder, one binary file per structure, one row of `meta.csv` per scan.

Guarantee: the masks of a case are all structures of the chosen version in the order of the card, or none; files of the
other version stop the run. Cases come in the order of their names.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import table_path
from medvlp.sources._label_maps import case_of
from medvlp.sources._values import age_years, number, sex
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Mask, Study, VolumeFacts

TABLE = "meta.csv"
COLUMNS = ("image_id", "age", "gender", "institute", "study_type", "split")
SPLITS = ("train", "val", "test")


class TotalSegmentator(Source):
    """The unpacked data set; see `data_cards/totalsegmentator.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per scan.

        Raises:
            UserError: `meta.csv` or a column is missing, or the files are those of the other version.
        """
        self.problems, self.counts = [], Counter()
        path = table_path(self, TABLE)
        extra = tuple(name for name in (*self.card.attributes, "kvp") if name not in COLUMNS)
        table = read_csv(path, COLUMNS, extra, delimiter=";")
        rows = unique_rows(self, table, lambda row: row.cells["image_id"], TABLE, "scan")
        version = str(self.options["version"])
        self.check_counts({f"{version} scans": len(rows)}, f"{version} scans")
        folders = {child.name: child for child in self.root.iterdir() if re.fullmatch(r"s\d{4}", child.name)}
        for name in sorted(set(folders) - {row.cells["image_id"] for row in table}):
            self.problem(name, f"the folder is not in {TABLE}", "Add its row, or remove the folder.", name)
        for name, row in sorted(rows.items()):
            study = self._study(name, row, folders.get(name))
            if study is not None:
                yield study

    def _study(self, name: str, row: Row, folder: Path | None) -> Study | None:
        cells, where = row.cells, f"{TABLE}:{row.line}"
        if folder is None or not (folder / "ct.nii.gz").is_file():
            missing = name if folder is None else f"{name}/ct.nii.gz"
            self.problem(where, f"row without volume: there is no {missing}", "Download the scan again.", name)
            return None
        if cells["split"] not in SPLITS:
            self.problem(where, f"unknown split '{cells['split']}'", f"Write one of {', '.join(SPLITS)}.", name)
            return None
        return Study(
            study_id=name,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(name, f"{name}/ct.nii.gz", "CT", facts=VolumeFacts(Intensity.HU, label_values=(1,))),),
            masks=self._masks(name, folder / "segmentations"),
            values={"kvp": number(cells["kvp"])} if cells["kvp"] else {},
            attributes={key: cells[key] for key in self.card.attributes if cells[key]},
            age=age_years(cells["age"]),
            sex=sex(cells["gender"]),
            site=cells["institute"] or None,
            split=cells["split"],
        )

    def _masks(self, name: str, folder: Path) -> tuple[Mask, ...]:
        structures = self.structures_of(str(self.options["version"]))
        files = {
            case_of(path.name): path.name
            for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
            if not path.name.startswith(".") and path.name.endswith((".nii.gz", ".nii"))
        }
        missing = [structure for structure in structures if structure not in files]
        if missing:
            self._refuse_other_version(set(files), folder)
            reason = f"{len(missing)} of {len(structures)} structures have no file (the first: {missing[0]})"
            fix = "Download the scan again; the volume is kept without masks."
            self.problem(f"{name}/segmentations", reason, fix, name)
            return ()
        if other := len(set(files) - set(structures)):
            self.counts["files of structures that the card does not list"] += other
        return tuple(Mask(name, label, f"{name}/segmentations/{files[label]}") for label in structures)

    def structures_of(self, version: str) -> tuple[str, ...]:
        """Return the structures of v1 or v2 in the order in which they are painted."""
        return self.card.structures if version == "v2" else tuple(self.card.adapter["v1"])

    def _refuse_other_version(self, files: set[str], folder: Path) -> None:
        other = "v1" if self.options["version"] == "v2" else "v2"
        if files >= set(self.structures_of(other)):
            raise UserError(
                f"These are the structures of version {other[1]}, and options.version is {self.options['version']}.",
                folder,
                f"Set options.version={other}.",
            )
