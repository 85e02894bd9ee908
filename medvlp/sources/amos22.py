"""AMOS 2022: abdominal CT and MR with 15 structures in one label map.

Guarantee: a number up to 500 is CT in HU, 501 to 600 is MR in arbitrary units; any other file is a `Problem`. The names
in `dataset.json` must mean what the card says. Cases come in the order of split and number.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import read_json
from medvlp.sources._label_maps import check_label_names, label_map_masks, values_of
from medvlp.sources._values import age_years, sex, yyyymmdd
from medvlp.sources._volumes import nifti_files
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Study, VolumeFacts

TABLE = "labeled_data_meta_0000_0599.csv"
SEX, AGE, MAKER, MODEL = "Patient's Sex", "Patient's Age", "Manufacturer", "Manufacturer's Model Name"
DATE, SITE = "Acquisition Date", "Site"
_ROW = re.compile(r"(?:amos_)?0*(\d+)")
SPLITS = {"Tr": "train", "Va": "val", "Ts": "test"}


class Amos22(Source):
    """The folder `amos22`, or the folder that holds it; see `data_cards/amos22.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per volume.

        Raises:
            UserError: There is no volume, `dataset.json` gives the values other meanings, or a full edition has other
                counts than the card.
        """
        self.problems, self.counts = [], Counter()
        inside = "amos22/" if (self.root / "amos22").is_dir() else ""
        base = self.root / inside
        lists = self._lists(base / "dataset.json")
        images = {end: nifti_files(self, [f"{inside}images{end}/*"]) for end in SPLITS}
        if not any(images.values()):
            where = "imagesTr/, imagesVa/ or imagesTs/"
            raise UserError(f"There is no volume in {where}.", base, "Give the unpacked folder amos22 as the root.")
        self._count(images)
        rows = self._rows(base)
        for end, split in SPLITS.items():
            labels = nifti_files(self, [f"{inside}labels{end}/*"])
            for case in sorted(set(labels) - set(images[end])):
                self.problem(labels[case], "a label map without volume", f"Download images{end} again.", case)
            for case in sorted(lists.get(split, set()) - set(images[end])):
                self.problem("dataset.json", f"{case} has no file in images{end}", "Download it again.", case)
            for case, path in images[end].items():
                study = self._study(case, path, labels.get(case), split, rows)
                if study is not None:
                    yield study

    def _lists(self, path: Path) -> dict[str, set[str]]:
        """Return split -> cases of `dataset.json`, where it is there, and check its names of the values."""
        if not path.is_file():
            self.counts["dataset.json is missing"] = 1
            return {}
        content = read_json(path)
        if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
            raise UserError("dataset.json has no mapping `labels`.", path, "Download it again.")
        check_label_names(content["labels"], self.card.adapter["value_names"], path)
        keys = {"training": "train", "validation": "val", "test": "test"}
        lists = {split: content.get(key) or [] for key, split in keys.items()}
        if not all(isinstance(entries, list) for entries in lists.values()):
            raise UserError(f"{', '.join(keys)} of dataset.json are not lists.", path, "Download it again.")
        return {split: {_case(entry) for entry in entries} for split, entries in lists.items()}

    def _rows(self, base: Path) -> dict[str, Row]:
        path = next((folder / TABLE for folder in (base, self.root) if (folder / TABLE).is_file()), None)
        if path is None:
            self.counts["no table of patients"] = 1
            return {}
        rows = read_csv(path, ("amos_id",), (SEX, AGE, MAKER, MODEL, DATE, SITE))
        numbered = [row for row in rows if _number(row.cells["amos_id"])]
        for row in rows:
            if not _number(row.cells["amos_id"]):
                reason = f"amos_id '{row.cells['amos_id']}' is no number of a volume"
                self.problem(f"{TABLE}:{row.line}", reason, "Correct the row; its volume is kept without it.")
        kept = unique_rows(self, numbered, lambda row: _number(row.cells["amos_id"]), TABLE, "volume")
        for number in self.card.adapter["ambiguous_rows"]:
            if kept.pop(str(number), None) is not None:
                self.counts["rows of the table that may belong to another volume, not used"] += 1
        return kept

    def _study(self, case: str, path: str, labels: str | None, split: str, rows: Mapping[str, Row]) -> Study | None:
        match = re.fullmatch(r"amos_(\d{4})", case)
        number = int(match[1]) if match else 0
        if not 1 <= number <= int(self.card.adapter["last_mr"]):
            reason = "only amos_0001 to amos_0600 have labels and a known modality"
            self.problem(path, reason, "Move other volumes out of this folder.", case)
            return None
        if labels is None and split != "test":
            self.problem(path, "the volume has no label map", "Download the label maps again.", case)
        ct = number <= int(self.card.adapter["last_ct"])
        meaning = Intensity.HU if ct else Intensity.STORED
        facts = VolumeFacts(meaning, label_values=values_of(self.card.structures))
        cells = rows[str(number)].cells if str(number) in rows else {}
        given = {"manufacturer": cells.get(MAKER, ""), "model": cells.get(MODEL, "")}
        return Study(
            study_id=case,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(case, path, "CT" if ct else "MR", facts=facts),),
            masks=() if labels is None else label_map_masks(case, labels, self.card.structures),
            attributes={name: value for name, value in given.items() if value},
            age=age_years(cells.get(AGE, "")),
            sex=sex(cells.get(SEX, "")),
            site=cells.get(SITE) or None,
            date=yyyymmdd(cells.get(DATE, "")),
            split=split,
        )

    def _count(self, images: Mapping[str, Mapping[str, str]]) -> None:
        found = {f"{SPLITS[end]} volumes": len(cases) for end, cases in images.items()}
        self.check_counts({"volumes": sum(found.values()), **found}, "volumes")


def _number(cell: str) -> str:
    """Return the number of `1`, `0001` or `amos_0001`, empty where the cell is none of these."""
    match = _ROW.fullmatch(cell)
    return match[1] if match else ""


def _case(entry: Any) -> str:
    """Return the case of an entry `{image, label}` or of a bare path."""
    path = entry.get("image", "") if isinstance(entry, dict) else entry
    return Path(str(path)).name.split(".")[0]
