"""VQA-RAD: questions about radiographs and single slices of CT and MR, in clinicians' words.

Guarantee: every row of the table is a question of a study or a recorded problem. Rephrased questions of an image share
a group. The official split is one of questions, whose images stand in both parts; it is never used unless asked for.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlparse

from medvlp.sources._files import PICTURES, index_files, read_json, require_files, table_path
from medvlp.sources._questions import cell, closed_question
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Question, Study

TABLE, FOLDER = "VQA_RAD Dataset Public.json", "VQA_RAD Image Folder"
PHRASES = ("freeform", "para", "test_freeform", "test_para")
MODALITIES = {"CHEST": "CR", "ABD": "CT"}
"""By organ, as the authors chose the images; of heads they took CT and MR, and the table does not say which."""
OTHER = "OT"
SHARES = (("test", 0.2), ("val", 0.3))
"""Upper ends of the splits by image, as shares of the range of hashes; the rest is train."""


class VqaRad(Source):
    """The data set below a root folder; see `data_cards/vqa_rad.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image with a question, in the order of the image names.

        Raises:
            UserError: The table or all images are missing, the table is no list, or a full edition has other counts
                than the card.
        """
        self.problems, self.counts = [], Counter()
        path = table_path(self, TABLE)
        files = index_files(self, [f"{FOLDER}/*"], PICTURES, by="name")
        require_files(self, files, f"{FOLDER}/")
        rows = read_json(path)
        of_image: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for number, row in enumerate(rows if isinstance(rows, list) else [], 1):
            mistake = _mistake(row, files)
            if mistake:
                self.problem(f"{TABLE}:{number}", *mistake)
            else:
                of_image.setdefault(cell(row, "image_name"), []).append((number, row))
        tested = sum(_tested(row) for own in of_image.values() for _, row in own)
        total = sum(map(len, of_image.values()))
        self.check_counts({"questions": total, "test questions": tested}, "questions")
        for name, own in sorted(of_image.items()):
            yield self._study(name, files[name], own)
        self.counts["images without a question, left out"] = len(set(files) - set(of_image))

    def _study(self, name: str, path: str, rows: list[tuple[int, dict[str, Any]]]) -> Study:
        organs, cases = ({read(row) for _, row in rows} for read in (_organ, _case))
        case = next(iter(cases)) if len(cases) == 1 else UNKNOWN_PATIENT
        self.counts["images of several cases, whose patient is unknown"] += len(cases) > 1
        official = self.options["split"] == "official"
        image = name.rsplit(".", 1)[0]
        self.counts["images with questions in training and test"] += (
            official and len({_tested(row) for _, row in rows}) == 2
        )
        questions = tuple(
            Question(
                question_id=f"{image}_{number}",
                image_id=image,
                text=cell(row, "question"),
                answer=cell(row, "answer"),
                closed=closed_question(row) is True,
                kind=cell(row, "question_type").upper(),
                language=self.card.language,
                split="test" if official and _tested(row) else None,
                group=cell(row, "qid_linked_id") or None,
            )
            for number, row in rows
        )
        if official:
            split = "test" if all(_tested(row) for _, row in rows) else "train"
        else:
            split = split_by_hash(image if case == UNKNOWN_PATIENT else case)
        organ = organs.pop() if len(organs) == 1 else ""
        modality = MODALITIES.get(organ, OTHER)
        return Study(
            study_id=image,
            patient_id=case,
            images=(ImageRef(image, path, modality),),
            questions=questions,
            attributes={"organ": organ} if organ else {},
            split=split,
        )


def split_by_hash(name: str) -> str:
    """Return the split of a case (or of an image whose case is unknown): by its SHA-256, whatever the others are."""
    place = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32
    return next((split for split, end in SHARES if place < end), "train")


def _mistake(row: Any, files: dict[str, str]) -> tuple[str, str] | None:
    """Return what is wrong with a row: reason and next step."""
    again = "Download the table again."
    if not isinstance(row, dict):
        return "the row is no record", again
    for name in ("image_name", "question", "answer"):
        if not cell(row, name):
            return f"the row has no {name}", again
    if cell(row, "image_name") not in files:
        return f"row without image: {FOLDER}/{cell(row, 'image_name')} is missing", "Download the image."
    if cell(row, "phrase_type") not in PHRASES:
        return f"unknown phrase_type '{cell(row, 'phrase_type')}'", again
    if closed_question(row) is None:
        return f"answer_type '{cell(row, 'answer_type')}' is neither OPEN nor CLOSED", again
    return None


def _tested(row: dict[str, Any]) -> bool:
    return cell(row, "phrase_type").startswith("test_")


def _organ(row: dict[str, Any]) -> str:
    return cell(row, "image_organ").upper()


def _case(row: dict[str, Any]) -> str:
    """Return the MedPix case of an image: its images are of one patient."""
    found = parse_qs(urlparse(cell(row, "image_case_url")).query).get("id", [""])[0]
    return found or UNKNOWN_PATIENT
