"""What has to be known beside the scores, one sentence for all labels that it holds for."""

from __future__ import annotations

from collections.abc import Iterable

Note = tuple[str, str]
"""A statement, and the label that it holds for."""


def sentences(notes: Iterable[Note]) -> list[str]:
    """Return `statement: label, label.` for each statement, in the order of their first labels."""
    found: dict[str, list[str]] = {}
    for statement, label in notes:
        found.setdefault(statement, []).append(label)
    return [f"{statement}: {', '.join(labels)}." for statement, labels in found.items()]
