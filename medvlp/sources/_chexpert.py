"""What CheXpert and CheXpert Plus share: places `patient/study/view`, rows per image, labels per study.

Guarantee: the rows of one study must agree on labels and report, or none of them is kept; a row whose file is missing
and a file without a row are recorded problems. Studies come in the order of patient and study numbers.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medvlp.sources._checks import check_patients_apart, name_unlisted
from medvlp.sources._files import index_files, require_files
from medvlp.sources._values import age_years, sex
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Study

SPLITS = {"train": "train", "valid": "val", "test": "test"}
_PLACE = re.compile(r"(?:.*/)?(patient(\d+))/(study(\d+))/(view\d+_(frontal|lateral))\.\w+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where an image is: patient, study and view, without the folders above."""

    patient: str
    study: str
    view: str
    side: str
    """frontal or lateral."""
    order: tuple[int, int]

    @property
    def key(self) -> str:
        """The place as it ends a path, without suffix."""
        return f"{self.patient}/{self.study}/{self.view}"

    @property
    def study_id(self) -> str:
        """Id of the study."""
        return f"{self.patient}_{self.study}"


def place_of(path: str) -> Place | None:
    """Return the place that a path ends in, None where it ends in none."""
    match = _PLACE.fullmatch(path)
    return Place(match[1], match[3], match[5], match[6], (int(match[2]), int(match[4]))) if match else None


def file_key(path: str) -> str:
    """Return the key of the place of a file, or its path where it is at none."""
    place = place_of(path)
    return path if place is None else place.key


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: place, table and line, split as the data set names it, cells, and what its study must agree on."""

    place: Place
    where: str
    split: str
    cells: Mapping[str, str]
    """`side` (Frontal, Lateral), `position` (AP, PA), `age`, `sex`, blank where not given; and what else is needed."""
    labels: Mapping[str, float]
    report: str | None = None


class ChexpertSource(Source):
    """One of the two data sets."""

    tables: str
    """Names of the tables, in messages."""

    @abstractmethod
    def entries(self) -> list[Entry]:
        """Return every usable row, one per image; record the others; compare the counts with the card."""

    @property
    @abstractmethod
    def suffix(self) -> str:
        """Suffix of the images."""

    def facts(self, entries: Sequence[Entry]) -> dict[str, Any]:
        """Return further fields of a study."""
        return {}

    def studies(self) -> Iterator[Study]:
        """Yield one study per examination that has a usable image.

        Raises:
            UserError: A table is missing or lacks a column, no image is there, patients are in several official splits,
                or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        self._listed: set[str] = set()
        entries = self.entries()
        files = index_files(self, ["**/patient*/study*/*"], (self.suffix,), by=file_key)
        require_files(self, files, f"a folder patient*/study*/ with files view*{self.suffix}")
        name_unlisted(self, files, self._listed, self.tables)
        grouped: dict[tuple[int, int], list[Entry]] = {}
        for entry in entries:
            if entry.place.key in files:
                grouped.setdefault(entry.place.order, []).append(entry)
                continue
            reason = f"row without image: {entry.place.key}{self.suffix} is in no folder"
            self.problem(entry.where, reason, "Download the image, or remove the row.", entry.place.study_id)
        studies = [study for _, own in sorted(grouped.items()) if (study := self._study(own, files)) is not None]
        check_patients_apart(self, studies, "Download the tables again.")
        yield from studies

    def place(self, path: str, where: str) -> Place | None:
        """Return the place of a row and note that it is listed; record a path that is none."""
        place = place_of(path)
        if place is None:
            self.problem(where, f"the path '{path}' is no patient*/study*/view*", "Correct the row.")
            return None
        self._listed.add(place.key)
        return place

    def agreed(self, entries: Sequence[Entry], name: str) -> str:
        """Return the cell that all rows of a study share; blank, and counted, where they differ."""
        values = {entry.cells.get(name, "") for entry in entries} - {""}
        if len(values) > 1:
            self.counts[f"studies whose rows differ in {name}, read as unknown"] += 1
        return values.pop() if len(values) == 1 else ""

    def _study(self, entries: list[Entry], files: Mapping[str, str]) -> Study | None:
        entries = sorted(entries, key=lambda entry: entry.place.view)
        first = entries[0]
        for what, differ in (
            ("splits", len({entry.split for entry in entries}) > 1),
            ("labels", len({repr(sorted(entry.labels.items())) for entry in entries}) > 1),
            ("reports", len({entry.report for entry in entries}) > 1),
        ):
            if differ:
                reason = f"the rows of {first.place.study_id} have different {what}; none is kept"
                for entry in entries:
                    self.problem(entry.where, reason, "Download the tables again.", first.place.study_id)
                return None
        years = age_years(self.agreed(entries, "age"))
        if years == 0:
            self.counts["ages of 0, read as unknown"] += 1
        return Study(
            study_id=first.place.study_id,
            patient_id=first.place.patient,
            images=tuple(self._image(entry, files) for entry in entries),
            report=first.report,
            language=self.card.language if first.report else None,
            labels=first.labels,
            age=years or None,
            sex=sex(self.agreed(entries, "sex")),
            split=SPLITS[first.split],
            **self.facts(entries),
        )

    def _image(self, entry: Entry, files: Mapping[str, str]) -> ImageRef:
        side, position = entry.cells["side"].lower() or entry.place.side, entry.cells["position"].upper()
        view = "LATERAL" if side == "lateral" else position if position in ("AP", "PA") else None
        if side != entry.place.side:
            self.counts["views that table and file name tell differently, read as unknown"] += 1
            view = None
        elif view is None:
            self.counts[f"frontal view {position or 'not given'}, read as unknown"] += 1
        return ImageRef(entry.place.key.replace("/", "_"), files[entry.place.key], self.card.modality, view)
