"""Prompts for zero-shot classification: sentences around a prompt, descriptions of a finding, generated wordings.

Guarantee: prompts are a function of the finding, or of the prompts given, and of the seed; no label is looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.errors import UserError, nearest
from medvlp.knowledge.books import finding_book, finding_names
from medvlp.knowledge.questions import read_question


@cache
def _file() -> dict[str, Any]:
    import yaml

    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("zero_shot.yaml").read_text(encoding="utf-8"))
    return found


def finding_of(name: str) -> str:
    """Return the entry of the finding book that a label names.

    Raises:
        UserError: It names none, or several.
    """
    found = {finding_names()[question.finding] for question in read_question(name)}
    if len(found) != 1:
        which = f"names {' and '.join(sorted(found))}" if found else "names no finding of the book"
        raise UserError(
            f"The label '{name}' {which}.{nearest(name.lower(), list(finding_names()))}",
            "labels",
            "Give the label `finding: NAME`, an entry of the finding book.",
        )
    return found.pop()


def ensemble(prompts: Sequence[str]) -> list[str]:
    """Return every prompt in every sentence of the file."""
    return [sentence.format(prompt) for prompt in prompts for sentence in _file()["ensemble"]]


def descriptions(finding: str) -> list[str]:
    """Return what the finding book says of a finding, a sentence each with the finding's name before it.

    Raises:
        UserError: The book has no such entry.
    """
    notes = {note.name: note for note in finding_book()}
    if finding not in notes:
        raise UserError(
            f"The finding book has no entry '{finding}'.{nearest(finding, list(notes))}", "labels", "Use one of it."
        )
    note = notes[finding]
    sentences = [note.definition, *note.appearance]
    return [f"{finding}: {text[:1].lower()}{text[1:].rstrip('.')}" for text in sentences]


def generated(finding: str, count: int, seed: int) -> list[str]:
    """Return wordings of severity, kind and place of a finding, drawn without repeats.

    Args:
        finding: Entry of the finding book.
        count: How many; all of them where there are fewer.
        seed: Of the draw.

    Raises:
        UserError: The file has no words for the finding.
    """
    known = _file()["generated"]
    if finding not in known:
        raise UserError(
            f"There are no words to make prompts of '{finding}' from.{nearest(finding, list(known))}",
            "labels",
            f"Use another kind of prompts for it; there are: {', '.join(known)}.",
        )
    parts = (known[finding][name] for name in ("severity", "kind", "place"))
    wordings = [" ".join(filter(None, words)) for words in itertools.product(*parts)]
    order = np.random.default_rng([seed, list(known).index(finding)]).permutation(len(wordings))
    return [wordings[i] for i in order[:count]]
