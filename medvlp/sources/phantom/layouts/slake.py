"""The raw layout of SLAKE; see `data_cards/slake.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._questions import asked_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, Box, ImageRef, Question, Study

_TABLES = {"train": "train.json", "val": "validate.json", "test": "test.json"}
_KINDS = {"presence": "Abnormality", "finding": "Abnormality", "view": "Plane"}
_CHINESE = {"presence": "图像中有{}吗？", "finding": "图像中有什么异常？", "view": "这是什么体位？"}
_ANSWERS = {"Yes": "是", "No": "否"}


class SlakeLayout(Layout):
    """A folder per image with picture, mask and boxes, and three tables with questions in English and Chinese."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"language": ("en", "zh", "all")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by number."""
        tables: dict[str, list[dict[str, Any]]] = {split: [] for split in _TABLES}
        counted = [0]
        studies = [self._study(example, tables, counted) for example in examples]
        for split, file in _TABLES.items():
            self.put_text(file, json.dumps(tables[split], ensure_ascii=False))
        self.put_text("mask.txt", "Lung:1\n")
        return studies

    def _study(self, example: Example, tables: dict[str, list[dict[str, Any]]], counted: list[int]) -> Study:
        name = f"xmlab{example.number}"
        front = next(image for image in example.images if image.view != "LATERAL")
        self.put_image(f"imgs/{name}/source.jpg", front.pixels)
        self.put_image(f"imgs/{name}/mask.png", np.zeros_like(front.pixels))
        places = [{box.finding: [box.x, box.y, box.width, box.height]} for box in front.boxes]
        self.put_text(f"imgs/{name}/detection.json", json.dumps(places))
        questions = []
        for asked in asked_of(example):
            finding = asked.text.removeprefix("Is there ").removesuffix("?")
            chinese = _CHINESE[asked.about].format(finding), _ANSWERS.get(asked.answer, asked.answer)
            for language, (text, answer) in (("en", (asked.text, asked.answer)), ("zh", chinese)):
                row = {
                    "img_id": example.number,
                    "img_name": f"{name}/source.jpg",
                    "question": text,
                    "answer": answer,
                    "q_lang": language,
                    "location": "Lung",
                    "modality": "X-Ray",
                    "answer_type": "CLOSED" if asked.closed else "OPEN",
                    "base_type": "vqa",
                    "content_type": _KINDS[asked.about],
                    "triple": ["vhead", "_", "_"],
                    "qid": counted[0],
                }
                tables[example.split].append(row)
                number = f"{example.split}_{counted[0]}"
                counted[0] += 1
                if self.options["language"] in ("all", language):
                    questions.append(Question(number, name, text, answer, asked.closed, _KINDS[asked.about], language))
        return Study(
            name,
            UNKNOWN_PATIENT,
            (ImageRef(name, f"imgs/{name}/source.jpg", "CR"),),
            boxes=tuple(Box(name, box.finding, box.x, box.y, box.width, box.height) for box in front.boxes),
            questions=tuple(questions),
            attributes={"location": "Lung", "modality": "X-Ray"},
            split=example.split,
        )
