"""Where in a text the rule reader sees a finding, and what the text says of it.

Guarantee: the pieces of a text, joined, are the text. What is marked is what the labeler reads (`labeler.label_report`
counts the same statements), sentence by sentence, in the sections that say what was seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medvlp.text.rules import OTHER
from medvlp.text.sections import BODY_SECTIONS, find_sections, sentence_spans
from medvlp.text.statements import Statement, normalise_with_offsets, read_sentence


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a text; `finding` and `value` (1, 0, -1) where it names one."""

    text: str
    finding: str | None = None
    value: float | None = None


def marked(text: str) -> list[Piece]:
    """Return the pieces of a text, those that name a finding apart; of two that overlap the first and longer one."""
    pieces: list[Piece] = []
    done = 0
    for start, end, statement in sorted(_statements(text), key=lambda item: (item[0], -item[1])):
        if start < done:
            continue
        if start > done:
            pieces.append(Piece(text[done:start]))
        finding = "another abnormality" if statement.finding == OTHER else statement.finding
        pieces.append(Piece(text[start:end], finding, statement.value))
        done = end
    return [*pieces, Piece(text[done:])] if done < len(text) else pieces


def _statements(text: str) -> Iterator[tuple[int, int, Statement]]:
    for section in find_sections(text):
        if section.name not in BODY_SECTIONS:
            continue
        for start, end in sentence_spans(text[section.start : section.end]):
            at = section.start + start
            sentence, offsets = normalise_with_offsets(text[at : section.start + end])
            for statement in read_sentence(sentence):
                if statement.end > statement.start:
                    yield at + offsets[statement.start], at + offsets[statement.end - 1] + 1, statement
