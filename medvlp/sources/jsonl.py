"""JSON Lines: one examination a line, with images, text, labels, boxes, patient and split.

Guarantee: a line is a study or a `Problem`; no path leaves the root; a list of labels says what is present and nothing
of the others. Studies come in the order of the lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import box_mistake, check_patients_apart
from medvlp.sources._csv import read_text
from medvlp.sources._label_columns import check_classes
from medvlp.sources._pictures import only_file
from medvlp.sources._report import join_sections
from medvlp.sources._tables import SECTIONS, split_of, view_of
from medvlp.sources._values import age_years, label_value, sex
from medvlp.sources.base import Source
from medvlp.types import NOT_MENTIONED, PRESENT, UNKNOWN_PATIENT, Box, ImageRef, Study

FIELDS = {
    "id": ("id", "study_id"),
    "images": ("images", "image", "image_path", "path"),
    "text": ("text", "report", "caption"),
    "patient": ("patient", "patient_id", "subject_id"),
    "name": ("patient_name", "patientname", "PatientName"),
    "labels": ("labels", "label"),
    **{name: (name,) for name in ("boxes", "split", "age", "sex", "language", *SECTIONS)},
}
"""Meaning -> keys of a line, of which at most one is there."""
_BOX = {"label", "x", "y", "width", "height", "image"}
_FIX = "Correct the line, or remove it."


class Jsonl(Source):
    """The folder with the file and its images; see `data_cards/jsonl.md`."""

    _labels: tuple[str, ...] = ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """All labels of the file, in the order in which they first occur."""
        return self._labels

    def studies(self) -> Iterator[Study]:
        """Yield one study per line.

        Raises:
            UserError: There is no such file, or patients are in several splits.
        """
        self.problems, self.counts, self._labels = [], Counter(), ()
        path = only_file(self.root, "*.jsonl", "file", self.options["file"])
        if path is None:
            fix = "Put one there, or set options.file."
            raise UserError("There is no .jsonl file in the folder.", self.root, fix)
        lines: dict[str, list[tuple[int, Study]]] = {}
        for number, line in enumerate(read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                study = self._study(json.loads(line), number, path)
            except (ValueError, RecursionError) as error:
                self.problem(f"{path.name}:{number}", _reason(error), _FIX)
                continue
            lines.setdefault(study.study_id, []).append((number, study))
        studies = self._unique(lines, path)
        named = Counter(name for study in studies for name in study.labels)
        check_classes(named, "The labels", path, "Give labels the names of classes, not of people.")
        self._labels = tuple(named)
        check_patients_apart(self, studies, "Correct the splits: each patient in one split.")
        yield from studies

    def _unique(self, lines: Mapping[str, list[tuple[int, Study]]], path: Path) -> list[Study]:
        kept = []
        for name, same in lines.items():
            equal = len({repr(study) for _, study in same}) == 1
            numbers = ", ".join(str(number) for number, _ in same)
            for number, _ in same[1:] if equal else same:
                decision = "agree; the first is kept" if equal else "differ; none is kept"
                reason = f"duplicated id: lines {numbers} {decision}"
                self.problem(f"{path.name}:{number}", reason, "Keep one line per id.", name)
            if equal:
                kept.append(same[0][1])
        return kept

    def _study(self, line: Any, number: int, path: Path) -> Study:
        if not isinstance(line, dict):
            raise ValueError("the line is no JSON object")
        given = {}
        for meaning, names in FIELDS.items():
            present = [name for name in names if line.get(name) is not None]
            if len(present) > 1:
                raise ValueError(f"{' and '.join(present)} mean the same; give one of them")
            given[meaning] = line[present[0]] if present else None
        for key in set(line) - {name for names in FIELDS.values() for name in names}:
            self.counts[f"lines with the field {key}, not used"] += 1
        images = self._images(given["images"])
        if not images and given["id"] is None:
            raise ValueError("the line has neither an id nor an image")
        sections = [(name.upper(), _text(given[name], name) or "") for name in SECTIONS]
        report = _text(given["text"], "text")
        if report and any(text for _, text in sections):
            raise ValueError("the line has a text and sections of a report; give one of them")
        study_id = _text(given["id"], "id") or images[0].image_id
        years, person = age_years(_text(given["age"], "age") or ""), sex(_text(given["sex"], "sex") or "")
        for name, value in (("age", years), ("sex", person)):
            if value is None and given[name] is not None:
                self.counts[f"values of {name} that cannot be read, unknown"] += 1
        return Study(
            study_id=study_id,
            patient_id=_text(given["patient"], "patient") or UNKNOWN_PATIENT,
            images=images,
            report=report or join_sections(sections),
            labels=_labels(given["labels"]),
            boxes=self._boxes(given["boxes"], images, f"{path.name}:{number}", study_id),
            language=_code(given["language"], "language", r"[a-z]{2,3}(?:[-_][A-Za-z]{2,4})?"),
            identifiers=tuple(filter(None, [_text(given["name"], "the name of the patient")])),
            age=years,
            sex=person,
            split=split_of(_text(given["split"], "split") or ""),
        )

    def _images(self, given: Any) -> tuple[ImageRef, ...]:
        entries = given if isinstance(given, list) else [] if given is None else [given]
        images: list[ImageRef] = []
        for entry in entries:
            facts = entry if isinstance(entry, dict) else {"path": entry}
            name = facts.get("path")
            unknown = sorted(set(facts) - {"path", "view", "modality"})
            if not isinstance(name, str) or unknown:
                raise ValueError(
                    f"an image is a path, or has path, view and modality; found {', '.join(unknown) or 'else'}"
                )
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts:
                raise ValueError("the path of an image leaves the folder")
            if not (self.root / pure).is_file():
                raise ValueError("the file of an image is missing")
            modality = _code(facts.get("modality"), "modality", "[A-Z]{2,16}") or str(self.options["modality"])
            view = view_of(_text(facts.get("view"), "view") or "")
            images.append(ImageRef(pure.as_posix(), pure.as_posix(), modality, view))
        if len({image.path for image in images}) < len(images):
            raise ValueError("an image is named twice")
        return tuple(images)

    def _boxes(self, given: Any, images: tuple[ImageRef, ...], where: str, study_id: str) -> tuple[Box, ...]:
        boxes = []
        for entry in given if isinstance(given, list) else [] if given is None else [given]:
            try:
                boxes.append(_box(entry, images))
            except ValueError as error:
                self.problem(where, str(error), "Correct the box; the study is kept without it.", study_id)
        return tuple(boxes)


def _text(value: Any, field: str) -> str | None:
    """Return text or a number as text.

    Raises:
        ValueError: It is a list, an object or a truth value.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{field} is no text")
    return str(value).strip() or None


def _code(value: Any, field: str, pattern: str) -> str | None:
    """Return a code such as `en` or `DX`.

    Raises:
        ValueError: It is none; free text has no place in such a field.
    """
    text = _text(value, field)
    if text is not None and not re.fullmatch(pattern, text):
        raise ValueError(f"{field} is no code")
    return text


def _labels(given: Any) -> dict[str, float]:
    """Return the labels of an object `{name: 1, 0, -1 or null}`, of a list of present ones, or of one name."""
    if isinstance(given, dict):
        return {str(name): _label(str(name), value) for name, value in given.items()}
    names = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(name, str) for name in names):
        raise ValueError("labels are an object with 1, 0, -1 or null, or a list of names")
    return dict.fromkeys(names, PRESENT)


def _label(name: str, value: Any) -> float:
    if value is None:
        return NOT_MENTIONED
    try:
        return label_value(str(float(value)))
    except (TypeError, ValueError):
        raise ValueError(f"the label {name} is none of 1, 0, -1 and null") from None


def _box(entry: Any, images: tuple[ImageRef, ...]) -> Box:
    """Return a box `{label, x, y, width, height, image}` in pixels; `image` may be left out where there is one only."""
    if not isinstance(entry, dict) or set(entry) - _BOX or _BOX - {"image"} - set(entry):
        raise ValueError("a box has label, x, y, width, height and perhaps image")
    named = entry.get("image", images[0].path if len(images) == 1 else None)
    if named not in {image.path for image in images}:
        raise ValueError("the image of a box is none of the line's")
    try:
        x, y, width, height = (float(entry[name]) for name in ("x", "y", "width", "height"))
    except (TypeError, ValueError):
        raise ValueError("box with a value that is no number") from None
    mistake = box_mistake(x, y, width, height)
    if mistake:
        raise ValueError(mistake)
    return Box(str(named), str(entry["label"]), x, y, width, height)


def _reason(error: Exception) -> str:
    """Return why a line cannot be used, without what stands in it."""
    if isinstance(error, json.JSONDecodeError):
        return f"the line is no JSON: {error.msg} at column {error.colno}"
    return "the line is nested too deeply" if isinstance(error, RecursionError) else str(error)
