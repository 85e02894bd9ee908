"""Output of scispaCy's UMLS linker, saved as JSON -> spans, in the same form as medvlp's own linking.

Guarantee: only candidates at or above the score asked for are taken, of each entity the best one; offsets are those of
the text in the file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.linking import Span

_FIX = "Save texts as {'id', 'text', 'ents': [{'start', 'end', 'kb_ents': [[CUI, score], ...]}]}, a list or one a line."


@dataclass(frozen=True, slots=True)
class LinkedText:
    """A text with its spans; ids are "UMLS:C0032285"."""

    key: str
    text: str
    spans: tuple[Span, ...]


def read_umls(path: str | Path, min_score: float = 0.95) -> Iterator[LinkedText]:
    """Yield the texts of a file with linked entities.

    Args:
        path: JSON (a list, or id -> entry) or JSON lines. An entry has `text` and `ents` (or `entities`) with character
            `start` and `end`, and candidates as `kb_ents` (or `umls_ents`) [[CUI, score], ...] or `cui` and `score`.
        min_score: Least score of a candidate; 0.95 as in ARL.

    Raises:
        UserError: The file is missing or not in the format.
    """
    file = Path(path)
    number = 0
    try:
        for key, entry in _entries(file):
            text = str(entry["text"])
            given = entry.get("ents", entry.get("entities"))
            spans = [span for item in given or () if (span := _span(item, len(text), min_score)) is not None]
            number += 1
            yield LinkedText(key, text, tuple(sorted(spans, key=lambda s: (s.start, s.end))))
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"The file of linked entities cannot be read after {number} texts: {error}.", file, _FIX
        ) from error


def _entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    content = file.read_text(encoding="utf-8")
    try:
        data = json.loads(content)
    except ValueError:
        data = [json.loads(line) for line in content.splitlines() if line.strip()]
    if isinstance(data, dict) and "text" in data:
        data = [data]
    if isinstance(data, dict):
        yield from data.items()
    else:
        for k, entry in enumerate(data):
            yield str(entry.get("id", entry.get("study_id", k))), entry


def _span(item: dict[str, Any], length: int, min_score: float) -> Span | None:
    start = int(item["start"] if "start" in item else item["start_char"])
    end = int(item["end"] if "end" in item else item["end_char"])
    if not 0 <= start < end <= length:
        raise ValueError(f"the span {start}:{end} lies outside its text of {length} characters")
    candidates = item.get("kb_ents", item.get("umls_ents"))
    if candidates is None:
        candidates = [[item["cui"], item.get("score", 1.0)]] if item.get("cui") else []
    good = [(float(score), str(cui)) for cui, score in candidates if min_score <= float(score) <= math.inf]
    if not good:
        return None
    score, cui = max(good, key=lambda pair: (pair[0], pair[1]))
    return Span(cui if ":" in cui else f"UMLS:{cui}", start, end, None, score)


def to_book(spans: tuple[Span, ...], book: ConceptBook) -> list[Span]:
    """Return the spans with the ids of a concept book, by its cross references; what it does not know is left out.

    Where several concepts give a reference, the first id is taken.
    """
    found = ((span, book.by_xref.get(span.concept_id)) for span in spans)
    return [replace(span, concept_id=ids[0]) for span, ids in found if ids]
