"""RadGraph files (1.0 and XL) -> mentions and triplets, in the same form as medvlp's own reading of a report.

Guarantee: an entity becomes a cell of 51 places x 75 findings by rules alone: an observation is the finding that its
words name, first match wins, and otherwise `tail_abnorm_obs`; its place is what it is `located_at`, with the words that
modify it, else `other`, and `unspecified` where it is located nowhere. A file that breaks the format is a `UserError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.knowledge.books import finding_names
from medvlp.text.lexicon import lexicon
from medvlp.text.places import find_places, leftmost_longest
from medvlp.text.spelling import stem
from medvlp.text.statements import normalise
from medvlp.text.triplets import UNSPECIFIED, Mention
from medvlp.types import ABSENT, PRESENT, UNCERTAIN

OTHER_PLACE, OTHER_FINDING = "other", "tail_abnorm_obs"
_CERTAINTY = {
    "dp": PRESENT, "da": ABSENT, "u": UNCERTAIN,
    "definitely present": PRESENT, "definitely absent": ABSENT, "uncertain": UNCERTAIN,
}  # fmt: skip
_FIX = "Give a RadGraph file as published: report -> text and entities."


@dataclass(frozen=True, slots=True)
class Entity:
    """An entity at characters `start:end`; `relations` are (type, id of the other)."""

    id: str
    words: str
    anatomy: bool
    value: float
    start: int
    end: int
    relations: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class RadGraphReport:
    """A report with its entities by id, in the order of the text."""

    key: str
    text: str
    entities: dict[str, Entity]


def read_radgraph(path: str | Path, labeler: str | None = None) -> Iterator[RadGraphReport]:
    """Yield the reports of a RadGraph file, in its order.

    Args:
        path: JSON: report key -> text, entities. A test file holds one set of entities for each labeler.
        labeler: Whose entities to take where there are several; None takes the first by name.

    Raises:
        UserError: The file is missing, no JSON, or not in the format.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The RadGraph file cannot be read: {error}.", file, _FIX) from error
    if not isinstance(data, dict):
        raise UserError("The RadGraph file must be a JSON object.", file, _FIX)
    for number, (key, entry) in enumerate(data.items(), 1):
        try:
            yield _report(key, entry, labeler)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(f"Report {number} of the file breaks the format: {error!r}.", file, _FIX) from error


def _report(key: str, entry: dict[str, Any], labeler: str | None) -> RadGraphReport:
    if "entities" not in entry:
        labelers = {name: part for name, part in entry.items() if isinstance(part, dict) and "entities" in part}
        chosen = labeler if labeler is not None else min(labelers)
        entry = {**entry, **labelers[chosen]}
    text = entry["text"]
    starts, position = [], 0
    for word in text.split(" "):
        starts.append((position, position + len(word)))
        position += len(word) + 1
    entities = [_entity(name, given, text, starts) for name, given in (entry["entities"] or {}).items()]
    return RadGraphReport(key, text, {entity.id: entity for entity in sorted(entities, key=lambda e: (e.start, e.id))})


def _entity(name: str, given: dict[str, Any], text: str, starts: list[tuple[int, int]]) -> Entity:
    anatomy, value = _label(given["label"])
    first, last = int(given["start_ix"]), int(given["end_ix"])
    if not 0 <= first <= last:
        raise ValueError(f"words {first} to {last} of entity {name}")
    start, end = starts[first][0], starts[last][1]
    if text[start:end].split() != given["tokens"].split():
        raise ValueError(f"the words of entity {name} do not stand at {first} to {last}")
    return Entity(
        id=str(name),
        words=given["tokens"],
        anatomy=anatomy,
        value=value,
        start=start,
        end=end,
        relations=tuple((str(kind), str(other)) for kind, other in given.get("relations", ())),
    )


def _label(label: str) -> tuple[bool, float]:
    """Return whether a label is of an anatomy, and its value: "OBS-DA", "Observation::definitely absent"."""
    parts = [part.strip().lower() for part in re.split(r"::|-", label)]
    if parts[0] not in ("anat", "anatomy", "obs", "observation") or parts[-1] not in _CERTAINTY:
        raise ValueError(f"unknown label {label!r}")
    return parts[0].startswith("anat"), _CERTAINTY[parts[-1]]


def radgraph_mentions(report: RadGraphReport) -> list[Mention]:
    """Return one mention for each observation and each place that it is located at.

    An observation that only modifies another ("mild") is a mention as well where its words name one of the 75 findings.
    """
    mentions = []
    for entity in report.entities.values():
        if entity.anatomy:
            continue
        name, book = finding_of(entity.words)
        if book == OTHER_FINDING and any(kind == "modify" for kind, _ in entity.relations):
            continue
        places = [other for kind, other in entity.relations if kind == "located_at" and other in report.entities]
        found = [place_of(_phrase(other, report)) for other in places] or [((UNSPECIFIED,), (UNSPECIFIED,))]
        for names, books in found:
            for k, place in enumerate(names):
                own = books if len(names) != len(books) else (books[k],)
                cells = tuple((row, book) for row in own)
                mentions.append(Mention(name, place, entity.value, entity.start, entity.end, cells))
    return list(dict.fromkeys(mentions))


def _phrase(anatomy: str, report: RadGraphReport) -> str:
    """Return the words of an anatomy with all that modifies it, in the order of the text."""
    members, grown = {anatomy}, True
    while grown:
        more = {
            entity.id
            for entity in report.entities.values()
            if entity.anatomy
            and entity.id not in members
            and any(kind == "modify" and other in members for kind, other in entity.relations)
        }
        grown = bool(more)
        members |= more
    return normalise(" ".join(entity.words for entity in report.entities.values() if entity.id in members))


def finding_of(words: str) -> tuple[str, str]:
    """Return (name, entry of the 75) of the words of an observation.

    First as a phrase of the lexicon ("free air", "airspace disease"), then by the lemma of a word, then by the words of
    the lexicon in it.
    """
    text = normalise(words)
    whole = next(
        (entry for entry in lexicon().findings.values() if " " in text and entry.pattern.fullmatch(text)), None
    )
    if whole:
        return whole.name, whole.book
    lemmas = {stem(name): name for name in finding_names()}
    for word in text.split():
        found = lemmas.get(stem(word))
        if found:
            return found, found
    matches = leftmost_longest((m, e) for e in lexicon().findings.values() for m in e.pattern.finditer(text))
    if matches:
        return matches[0][1].name, matches[0][1].book
    return text, OTHER_FINDING


def place_of(words: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (names, entries of the 51) of the words of an anatomy; the most exact place in them counts."""
    text = normalise(words)
    places = find_places(text, ())
    exact = [place for place in places if not place.entry.generic] or places
    if not exact:
        return (text,), (OTHER_PLACE,)
    return exact[0].names(), exact[0].books()
