"""Checks that many data sets need: rows that repeat an id, images without a row, boxes, patients in two splits.

Guarantee: what is left out is recorded with its reason; identical rows keep the first, contradicting rows keep none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations

from medvlp.errors import UserError
from medvlp.sources._csv import Row
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, Study

MOST_LINES = 5
"""Lines that a message about a repeated id names: it stands once for each of them."""


def unique_rows(
    source: Source, rows: Iterable[Row], key: Callable[[Row], str], table: str, thing: str = "image"
) -> dict[str, Row]:
    """Return one row per key, in the order of the table: the first of identical rows, none of contradicting ones.

    Args:
        source: The data set; it records every row that is left out.
        rows: Rows of one table.
        key: What must be unique.
        table: Name of the table in messages.
        thing: What the key stands for, in messages.
    """
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(key(row), []).append(row)
    kept = {}
    for name, same in grouped.items():
        lines = ", ".join(str(row.line) for row in same[:MOST_LINES])
        lines += f" and {len(same) - MOST_LINES:,} more" if len(same) > MOST_LINES else ""
        if len({tuple(row.cells.values()) for row in same}) == 1:
            kept[name], doubtful, decision = same[0], same[1:], "agree; the first is kept"
        else:
            doubtful, decision = same, "differ; none is kept"
        for row in doubtful:
            reason = f"duplicated id: {name} is on lines {lines}, which {decision}"
            source.problem(f"{table}:{row.line}", reason, f"Keep one row per {thing}.", name)
    return kept


def name_unlisted(source: Source, images: Mapping[str, str], listed: Iterable[str], table: str) -> None:
    """Record every image (key -> path) whose key is in no row of the table and that no problem names already."""
    known = {*listed, *(problem.study_id for problem in source.problems)}
    for name in sorted(set(images) - known):
        fix = f"Add its row to {table}, or remove the image."
        source.problem(images[name], f"the image is not in {table}", fix, name)


def refuse_no_match(source: Source, studies: Sequence[Study], missing: str, what: str, where: str) -> None:
    """Refuse a table or archive whose ids are those of no study at all: every study would lack what it holds.

    Args:
        source: The data set.
        studies: Those that were made.
        missing: Key of `source.counts`: how many studies or images found nothing.
        what: What is looked up, in words, such as `labels`.
        where: Table or archive.

    Raises:
        UserError: Nothing matched.
    """
    if studies and source.counts[missing] >= len(studies):
        fix = (
            f"Compare them with those of the other tables (a spreadsheet may have changed them), or do without {where}."
        )
        raise UserError(f"No study finds its {what}: the ids of {where} are others.", source.root, fix)


def box_mistake(x: float, y: float, width: float, height: float) -> str | None:
    """Return what is wrong with a box in pixels, None where it is sound."""
    if not all(math.isfinite(value) for value in (x, y, width, height)):
        return "box with a value that is no number"
    if min(x, y) < 0:
        return "box outside the image"
    if min(width, height) <= 0:
        return "box without an area"
    return None


def check_patients_apart(source: Source, studies: Sequence[Study], fix: str) -> None:
    """Refuse official splits that share patients: results would be too good.

    Raises:
        UserError: A known patient is in two splits.
    """
    patients: dict[str, set[str]] = {}
    for study in studies:
        if study.split is not None and study.patient_id != UNKNOWN_PATIENT:
            patients.setdefault(study.split, set()).add(study.patient_id)
    for one, other in combinations(sorted(patients), 2):
        both = sorted(patients[one] & patients[other])
        if both:
            first = "" if source.card.identifiers == "personal" else f" (the first: {both[0]})"
            raise UserError(
                f"{len(both)} patients are in both {one} and {other}{first}: results would be too good.",
                source.root,
                fix,
            )
