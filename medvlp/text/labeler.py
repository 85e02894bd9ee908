"""Rule labeler for the fourteen CheXpert findings.

Guarantee: labels are 1 present, 0 absent, -1 uncertain and NaN not mentioned; the same text always gets the same
labels; a finding is never inferred from what a report leaves out, except "No Finding", which says just that.
Conventions: docs/explanation/labeler.md.
"""

from __future__ import annotations

import math

from medvlp.text.rules import FINDINGS, OTHER, rules
from medvlp.text.sections import body_text, split_sentences
from medvlp.text.statements import Statement, normalise, read_sentence
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN

__all__ = ["FINDINGS", "label_report", "label_sentence", "label_sentences"]

_RANK = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}


def _aggregate(statements: list[Statement]) -> tuple[dict[str, float], bool]:
    """Join statements by 1 > -1 > 0; also say whether anything but a device is positive or uncertain."""
    labels = dict.fromkeys(FINDINGS, NOT_MENTIONED)
    abnormal = False
    for statement in statements:
        if statement.value != ABSENT and statement.finding != "Support Devices":
            abnormal = True
        if statement.finding == OTHER:
            continue
        known = labels[statement.finding]
        if math.isnan(known) or _RANK[statement.value] > _RANK[known]:
            labels[statement.finding] = statement.value
    return labels, abnormal


def label_report(text: str) -> dict[str, float]:
    """Label a report, or any text of several sentences.

    Only what the report says about the images counts (`sections.BODY_SECTIONS`): an indication that asks to rule out
    pneumonia states none. A finding named several times takes 1 before -1 before 0. "No Finding" is 1 where no
    finding but support devices is positive or uncertain, also none outside the fourteen (emphysema, scoliosis, ...),
    else NaN. Without such text every label is NaN.

    Returns:
        Value of each of `FINDINGS`.
    """
    body = body_text(text)
    sentences = split_sentences(body)
    labels, abnormal = _aggregate(
        [statement for sentence in sentences for statement in read_sentence(normalise(sentence))]
    )
    if not abnormal and any(char.isalnum() for char in body):
        labels["No Finding"] = PRESENT
    return labels


def label_sentence(text: str) -> dict[str, float]:
    """Label one sentence by itself. "No Finding" is 1 only where the sentence says that something is healthy or absent.

    Returns:
        Value of each of `FINDINGS`.
    """
    sentence = normalise(text)
    labels, abnormal = _aggregate(list(read_sentence(sentence)))
    if not abnormal and (ABSENT in labels.values() or rules().healthy.search(sentence)):
        labels["No Finding"] = PRESENT
    return labels


def label_sentences(text: str) -> list[tuple[str, dict[str, float]]]:
    """Return every sentence of what a report says about the images, with its labels (see `label_sentence`)."""
    return [(sentence, label_sentence(sentence)) for sentence in split_sentences(body_text(text))]
