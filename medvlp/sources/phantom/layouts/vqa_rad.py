"""The raw layout of VQA-RAD; see `data_cards/vqa_rad.md`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._questions import asked_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Question, Study

_KINDS = {"presence": "PRES", "finding": "ABN", "view": "PLANE"}


class VqaRadLayout(Layout):
    """One JSON table and one folder; images of the examples' test split have questions in both official parts."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"split": ("image", "official")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by image name."""
        rows: list[dict[str, Any]] = []
        studies = [self._study(example, rows) for example in examples]
        self.put_text("VQA_RAD Dataset Public.json", json.dumps(rows, indent=1))
        return sorted(studies, key=lambda study: study.study_id)

    def _study(self, example: Example, rows: list[dict[str, Any]]) -> Study:
        name, case = f"synpic{20000 + example.number}", f"0000{example.patient:04d}-aaaa"
        front = next(image for image in example.images if image.view != "LATERAL")
        self.put_image(f"VQA_RAD Image Folder/{name}.jpg", front.pixels)
        official, questions = self.options["split"] == "official", []
        for place, asked in enumerate(asked_of(example)):
            tested = example.split == "test" and place % 2 == 0
            group = f"{name}-{place}"
            for kind, text in (("freeform", asked.text), ("para", asked.again)):
                rows.append(
                    {
                        "qid": str(len(rows) + 1),
                        "phrase_type": f"test_{kind}" if tested else kind,
                        "qid_linked_id": group,
                        "image_case_url": f"https://medpix.nlm.nih.gov/case?id={case}",
                        "image_name": f"{name}.jpg",
                        "image_organ": "CHEST",
                        "evaluation": "not evaluated",
                        "question": text,
                        "question_rephrase": "NULL",
                        "question_relation": "NULL",
                        "question_frame": "NULL",
                        "question_type": _KINDS[asked.about],
                        "answer": asked.answer,
                        "answer_type": "CLOSED " if asked.closed else "OPEN",
                    }
                )
                number = f"{name}_{len(rows)}"
                of_test = "test" if official and tested else None
                kind = _KINDS[asked.about]
                questions.append(Question(number, name, text, asked.answer, asked.closed, kind, "en", of_test, group))
        share = int(hashlib.sha256(case.encode()).hexdigest()[:8], 16) / 2**32
        by_case = "test" if share < 0.2 else "val" if share < 0.3 else "train"
        return Study(
            name,
            case,
            (ImageRef(name, f"VQA_RAD Image Folder/{name}.jpg", "CR"),),
            questions=tuple(questions),
            attributes={"organ": "CHEST"},
            split="train" if official else by_case,
        )
