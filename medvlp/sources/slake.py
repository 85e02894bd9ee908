"""SLAKE: questions in English and Chinese about radiographs and slices of CT and MR, with boxes of organs.

Guarantee: an image has the split of its questions; one whose questions stand in several splits is left out. Every row
is a question of a study or a recorded problem.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import box_mistake
from medvlp.sources._files import read_json, table_path
from medvlp.sources._questions import cell, closed_question
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, Box, ImageRef, Question, Study

TABLES = {"train": ("train.json",), "val": ("validate.json", "validation.json"), "test": ("test.json",)}
"""Files of each split; the copy on the Hub calls the middle one validation.json."""
MODALITIES = {"X-RAY": "CR", "CT": "CT", "MRI": "MR"}
DETECTION = "detection.json"


class Slake(Source):
    """The data set below a root folder; see `data_cards/slake.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image with a question in the chosen languages, in the order of the image numbers.

        Raises:
            UserError: A table or all images are missing, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        of_image: dict[str, dict[str, list[dict[str, Any]]]] = {}
        found = Counter[str]()
        for split, names in TABLES.items():
            path = table_path(self, *names)
            rows = read_json(path)
            same: dict[str, list[Any]] = {}
            for row in rows if isinstance(rows, list) else []:
                if isinstance(row, dict):
                    same.setdefault(cell(row, "qid"), []).append(row)
            for place, row in enumerate(rows if isinstance(rows, list) else [], 1):
                where = f"{path.name}:{place}"
                mistake = self._mistake(row) or _repeated(row, same[cell(row, "qid")])
                if mistake:
                    self.problem(where, *mistake)
                    continue
                found["questions"] += 1
                found[f"{split} questions"] += 1
                if self.options["language"] in ("all", cell(row, "q_lang")):
                    of_image.setdefault(cell(row, "img_name"), {}).setdefault(split, []).append(row)
        self.check_counts(found, "questions")
        if not of_image:
            raise UserError(
                "No question of the chosen language has an image.",
                self.root,
                "Unpack imgs.zip into the root folder; check options.language.",
            )
        for name, splits in sorted(of_image.items(), key=lambda item: _order(item[0])):
            if len(splits) > 1:
                reason = f"its questions are in {' and '.join(sorted(splits))}"
                self.problem(f"imgs/{name}", reason, "Choose one language: its splits share no image.", _image(name))
                continue
            split, rows = next(iter(splits.items()))
            yield self._study(name, split, rows)

    def _mistake(self, row: Any) -> tuple[str, str] | None:
        again = "Download the table again."
        if not isinstance(row, dict):
            return "the row is no record", again
        for key in ("img_name", "question", "answer", "qid"):
            if not cell(row, key):
                return f"the row has no {key}", again
        if ".." in cell(row, "img_name") or not (self.root / "imgs" / cell(row, "img_name")).is_file():
            return f"row without image: imgs/{cell(row, 'img_name')} is missing", "Unpack imgs.zip again."
        if cell(row, "q_lang") not in ("en", "zh"):
            return f"unknown q_lang '{cell(row, 'q_lang')}'", again
        if closed_question(row) is None:
            return f"answer_type '{cell(row, 'answer_type')}' is neither OPEN nor CLOSED", again
        return None

    def _study(self, name: str, split: str, rows: list[dict[str, Any]]) -> Study:
        image, first = _image(name), rows[0]
        boxes = tuple(self._boxes(name, image))
        self.counts["boxes"] += len(boxes)
        facts = {key: cell(first, key) for key in ("location", "modality") if cell(first, key)}
        return Study(
            study_id=image,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(image, f"imgs/{name}", MODALITIES.get(cell(first, "modality").upper(), "OT")),),
            boxes=boxes,
            questions=tuple(
                Question(
                    question_id=f"{split}_{cell(row, 'qid')}",
                    image_id=image,
                    text=cell(row, "question"),
                    answer=cell(row, "answer"),
                    closed=closed_question(row) is True,
                    kind=cell(row, "content_type"),
                    language=cell(row, "q_lang"),
                )
                for row in rows
            ),
            attributes=facts,
            split=split,
        )

    def _boxes(self, name: str, image: str) -> Iterator[Box]:
        """Yield the organs and findings of `detection.json`: a list of {label: [x, y, width, height]}."""
        path = (self.root / "imgs" / name).with_name(DETECTION)
        where = path.relative_to(self.root).as_posix()
        if not path.is_file():
            return
        for entry in read_json(path):
            for label, place in entry.items() if isinstance(entry, dict) else ():
                sides = [number(str(side)) for side in place] if isinstance(place, list) else []
                if len(sides) != 4:
                    mistake: str | None = f"box with {len(sides)} numbers"
                else:
                    mistake = (
                        box_mistake(*sides) if all(map(math.isfinite, sides)) else "box with a value that is no number"
                    )
                if mistake:
                    self.problem(where, mistake, "Correct the box; the image is kept without it.", image)
                else:
                    yield Box(image, label, sides[0], sides[1], sides[2], sides[3])


def _repeated(row: Any, same: list[Any]) -> tuple[str, str] | None:
    """Return what is wrong with a row whose qid others have, too."""
    fix = "Keep one row per qid."
    if any(other != row for other in same):
        return f"several rows of qid {cell(row, 'qid')} differ; none is used", fix
    return None if row is same[0] else (f"the row repeats another one of qid {cell(row, 'qid')}", fix)


def _image(name: str) -> str:
    """Return the id of `xmlab7/source.jpg`: xmlab7."""
    return name.rsplit("/", 1)[0]


def _order(name: str) -> tuple[int, str]:
    digits = "".join(filter(str.isdigit, name.split("/", 1)[0]))
    return int(digits or 0), name
