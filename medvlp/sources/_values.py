"""Cells of data set tables -> labels, ages, sexes, numbers.

Guarantee: a cell that says nothing gives nothing (NaN or None), a cell that cannot be read raises `ValueError` with the
value found; nothing is filled in.
"""

from __future__ import annotations

import math
import re
from datetime import date

from medvlp.types import NOT_MENTIONED

_AGE = re.compile(r"0*(\d+(?:\.\d+)?)\s*([YMWD]?)", re.IGNORECASE)
_YEARS = {"": 1.0, "Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
OLDEST_AGE = 120
_SEXES = {"m": "M", "male": "M", "f": "F", "female": "F"}


def label_value(cell: str) -> float:
    """Return 1, 0, -1 or (blank) NaN.

    Raises:
        ValueError: The cell holds anything else.
    """
    if not cell:
        return NOT_MENTIONED
    value = float(cell)
    if value not in (1.0, 0.0, -1.0):
        raise ValueError(f"a label is {cell}; 1, 0, -1 or blank are allowed")
    return value


def number(cell: str) -> float:
    """Return the number of a cell, NaN where it is blank or no number."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def age_years(cell: str) -> float | None:
    """Return years from `58`, `058Y`, `012M`, `005D`; None for a blank, an impossible or an unreadable age."""
    match = _AGE.fullmatch(cell.strip())
    years = float(match[1]) * _YEARS[match[2].upper()] if match else None
    return years if years is not None and years <= OLDEST_AGE else None


def sex(cell: str) -> str | None:
    """Return M or F, None for anything else."""
    return _SEXES.get(cell.strip().lower())


def yyyymmdd(cell: str) -> str | None:
    """Return a date `YYYYMMDD`, `YYYY-MM-DD` or `YYYY-MM-DD hh:mm:ss` as YYYYMMDD, None for anything else.

    `20200101.0` is read too: so tables that passed through a data frame with missing cells write dates.
    """
    digits = re.sub(r"[-/]", "", cell.strip().split(" ")[0].split("T")[0]).removesuffix(".0")
    try:
        return date.fromisoformat(digits).strftime("%Y%m%d") if re.fullmatch(r"\d{8}", digits) else None
    except ValueError:
        return None
