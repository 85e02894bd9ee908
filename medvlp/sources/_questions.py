"""What data sets of questions share: cells that are numbers or text, and whether a question is closed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def cell(row: Mapping[str, Any], name: str) -> str:
    """Return a value as text without outer blanks: answers are numbers in places; blank where there is none."""
    value = row.get(name)
    return "" if value is None or isinstance(value, list | dict) else str(value).strip()


def closed_question(row: Mapping[str, Any]) -> bool | None:
    """Return whether `answer_type` says CLOSED; None where it says neither CLOSED nor OPEN."""
    return {"CLOSED": True, "OPEN": False}.get(cell(row, "answer_type").upper())
