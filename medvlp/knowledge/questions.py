"""What a prompt asks, in the entries of the books: which finding, at which place, there or not there.

Guarantee: the reading is that of reports (`text.triplets`), so that a question and a training label mean the same. The
fourteen label names of ChestX-ray14 read as MedKLIP and MeDSLIP map them.
"""

from __future__ import annotations

from dataclasses import dataclass

from medvlp.knowledge.books import anatomy_names, finding_names
from medvlp.text.triplets import read_mentions
from medvlp.types import ABSENT


@dataclass(frozen=True)
class Question:
    """One thing that a prompt asks.

    Args:
        finding: Row of the finding book.
        place: Row of the anatomy book, where the prompt names one that lies on one side; else None.
        denied: The prompt says that it is not there.
    """

    finding: int
    place: int | None = None
    denied: bool = False


def sided_places() -> tuple[int, ...]:
    """Return the rows of the anatomy book that lie on one side of the chest (not the chambers of the heart)."""
    words = [set(name.split("_")) for name in anatomy_names()]
    return tuple(row for row, own in enumerate(words) if own & {"left", "right"} and not own & {"atrium", "ventricle"})


def read_question(prompt: str) -> tuple[Question, ...]:
    """Return what a prompt asks, each thing once; empty where it names no finding of the book.

    A name of the book ("tail_abnorm_obs"), a label ("Pleural_Thickening") or a sentence ("small left effusion") will
    do. A doubted finding is asked for like an affirmed one.
    """
    findings, places, sided = finding_names(), anatomy_names(), sided_places()
    name = "_".join(prompt.lower().split())
    if name in findings:
        return (Question(findings.index(name)),)
    asked = []
    for mention in read_mentions(prompt.replace("_", " ")):
        for place, finding in mention.cells:
            row = places.index(place)
            asked.append(Question(findings.index(finding), row if row in sided else None, mention.value == ABSENT))
    return tuple(dict.fromkeys(asked))
