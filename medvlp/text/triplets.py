"""Triplets of a report: which finding is where, and whether it is affirmed, denied or doubted.

Guarantee: the reading follows from `lexicon.yaml` and the statement rules alone, and the same text gives the same
triplets. A place is one that the sentence names for the finding, or the one where such a finding always lies (an
effusion in the pleural space); a side is never guessed, and where nothing is named the place is "unspecified".
Conventions: docs/explanation/knowledge.md.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache

from medvlp.text.attach import Named, places_of
from medvlp.text.lexicon import lexicon
from medvlp.text.places import Place, find_places, leftmost_longest
from medvlp.text.rules import rules
from medvlp.text.sections import BODY_SECTIONS, find_sections, sentence_spans
from medvlp.text.statements import Scopes, Statement, alternatives, normalise_with_offsets, place_states
from medvlp.types import ABSENT, Triplet

UNSPECIFIED = "unspecified"


@dataclass(frozen=True, slots=True)
class Mention:
    """A finding stated at `start:end` of a text.

    Args:
        finding: Its name in the lexicon.
        place: Where it is, side in front ("left pleural space"); "unspecified" where the text does not say.
        value: 1 present, 0 absent, -1 uncertain.
        start: First character.
        end: Character after the last.
        cells: What it is among 51 places and 75 findings: (place, finding), perhaps several.
    """

    finding: str
    place: str
    value: float
    start: int
    end: int
    cells: tuple[tuple[str, str], ...]


def _named(text: str) -> list[Named]:
    matches = leftmost_longest(
        (match, entry) for entry in lexicon().findings.values() for match in entry.pattern.finditer(text)
    )
    return [Named(entry, match.start(), match.end()) for match, entry in matches]


def _mentions(named: Named, value: float, places: list[Place]) -> list[Mention]:
    if not places:
        nowhere = ((UNSPECIFIED, named.entry.book),)
        return [Mention(named.entry.name, UNSPECIFIED, value, named.start, named.end, nowhere)]
    made = []
    for place in places:
        several = place.names()
        for name in several:
            books = place.books()
            if len(several) == len(books) > 1:
                books = (books[several.index(name)],)
            cells = tuple((book, named.entry.book) for book in books)
            where = UNSPECIFIED if place.entry.kind == "side" else name
            made.append(Mention(named.entry.name, where, value, named.start, named.end, cells))
    return made


def _heart(text: str, scopes: Scopes) -> list[Mention]:
    """Return what the state of the heart says of cardiomegaly: "heart size is normal" denies it."""
    entry = lexicon().findings["cardiomegaly"]
    cells = (("heart_size", entry.book),)
    return [
        Mention(entry.name, "heart", statement.value, statement.start, statement.end, cells)
        for statement, kind in place_states(text, scopes, rules())
        if statement.finding == "Cardiomegaly" and kind != "unstated"
    ]


@lru_cache(maxsize=1 << 15)
def read_sentence_triplets(sentence: str) -> tuple[Mention, ...]:
    """Return the mentions of one normalised sentence, in their order; offsets are those of the sentence."""
    named = _named(sentence)
    places = find_places(sentence, [(n.start, n.end) for n in named if not n.entry.inside])
    scopes = Scopes(sentence, [(n.entry.name, n.start, n.end) for n in named], rules())
    valued: list[tuple[Named, float]] = []
    for item in named:
        value = scopes.value(item.start, item.end)
        if value is not None:
            valued.append((item, value))
    things = [(item, value) for item, value in valued if not item.entry.state]
    statements = alternatives(sentence, [Statement(n.entry.name, v, n.start, n.end) for n, v in things], scopes)
    values = {statement.start: statement.value for statement in statements}
    where = places_of(sentence, named, places)
    mentions: list[Mention] = []
    for item, value in valued:
        value = values.get(item.start, value)
        found = where[item.start]
        if found is None or (item.entry.denied and value != ABSENT):
            continue
        mentions += _mentions(item, value, found)
    mentions += _heart(sentence, scopes)
    unique = {(m.finding, m.place, m.value): m for m in reversed(mentions)}
    return tuple(sorted(unique.values(), key=lambda m: (m.start, m.place)))


def read_mentions(report: str) -> list[Mention]:
    """Return the mentions of what a report says about the images, with offsets of the report, in order.

    Only the sections that state what was seen are read (`sections.BODY_SECTIONS`).
    """
    found: list[Mention] = []
    for section in find_sections(report):
        if section.name not in BODY_SECTIONS:
            continue
        body = report[section.start : section.end]
        for start, end in sentence_spans(body):
            sentence, offsets = normalise_with_offsets(body[start:end])
            base = section.start + start
            found += [
                replace(m, start=base + offsets[m.start], end=base + offsets[m.end - 1] + 1)
                for m in read_sentence_triplets(sentence)
            ]
    return found


def triplets_of(mentions: Iterable[Mention]) -> tuple[Triplet, ...]:
    """Return the triplets that mentions state, each once, in the order of the text."""
    return tuple(dict.fromkeys(Triplet(m.place, m.finding, m.value) for m in mentions))


def cells_of(mentions: Iterable[Mention]) -> tuple[Triplet, ...]:
    """Return the same in the words of the 51 places and 75 findings."""
    return tuple(dict.fromkeys(Triplet(place, finding, m.value) for m in mentions for place, finding in m.cells))


def report_triplets(report: str) -> tuple[Triplet, ...]:
    """Return the triplets of a report, each once: place, finding, and 1 present, 0 absent or -1 uncertain."""
    return triplets_of(read_mentions(report))
