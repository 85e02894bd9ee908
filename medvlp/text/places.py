"""Places that one sentence names, with their sides.

Guarantee: a side is taken from words that stand with the place ("right upper lobe", "base on the left", "left upper and
lower lobes") or from the place itself (lingula); it is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from medvlp.text.lexicon import FindingEntry, PlaceEntry, lexicon

LEFT, RIGHT = "left", "right"
BOTH = frozenset((LEFT, RIGHT))
_SIDE_WORDS = r"left|right|bilateral(?:ly)?|both|lt|rt"
_SIDES = re.compile(rf"(?<![\w-])(?:{_SIDE_WORDS})(?![\w])")
_GAP_WORD = r"(?!(?:of|in|with|and|or|the|is|are|at|on|to|from|over|near|than|no|without|a|an|but)\b)[\w'-]+"
_SECOND = (  # "right greater than left effusions", "small right and moderate left effusions"
    r" (?:(?:(?:much |slightly )?(?:greater|larger|bigger|more|worse|less|smaller) )?than|>|and|or|/)"
    r"(?: (?:trace|tiny|small|moderate|large|mild|minimal|severe|(?:moderate(?:ly)?|very)[ -](?:small|large)))?"
)
_BEFORE = re.compile(
    rf"(?<![\w-])(?P<first>{_SIDE_WORDS})(?:[ -]sided)?(?:{_SECOND} (?P<second>left|right))?"
    rf"(?:(?<= )|(?:[ -]{_GAP_WORD}){{0,3}}[ -])\Z"
)
_AFTER = re.compile(
    r"(?: line)?(?: (?:is|are|was|were|again|also|now))*(?: (?:seen|noted|present|identified|demonstrated|visualized))?"
    r" (?:on|to|at) the (left|right)\b(?! (?:lateral|\w+ ?lobe|lung|hilum|base|apex))"
)
_BILATERALLY = re.compile(r"(?: [\w-]+){0,2} bilaterally\b")
_JOINT = re.compile(
    rf"(?:,|,? (?:and|or|and/or|as well as)|/)(?: the)?(?: (?:{_SIDE_WORDS}|bony|osseous|visualized))*\s*\Z"
)
_ORDINALS = {
    word: f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number, 'th') }"
    for number, word in enumerate(
        ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
         "twelfth"), 1
    )
}  # fmt: skip
_RIB = re.compile(r"(?<!\w)(\d{1,2}(?:st|nd|rd|th)|" + "|".join(_ORDINALS) + r")(?!\w)")

E = TypeVar("E", FindingEntry, PlaceEntry)


@dataclass(frozen=True, slots=True)
class Place:
    """A place at `start:end` of a sentence; `sides` is empty where the sentence names none."""

    entry: PlaceEntry
    start: int
    end: int
    sides: frozenset[str] = frozenset()
    ordinal: str = ""

    def names(self) -> tuple[str, ...]:
        """Return what triplets call it: one name, or one for each side."""
        base = f"{self.ordinal} {self.entry.name}".strip()
        if self.entry.midline or self.entry.side or not self.sides:
            return (f"{self.entry.side} {base}" if self.entry.side and self.entry.name != "lingula" else base,)
        one = f"{self.ordinal} {self.entry.one}".strip()
        return tuple(f"{side} {one}" for side in sorted(self.sides))

    def books(self) -> tuple[str, ...]:
        """Return its entries of the 51 places."""
        side = "both" if self.sides == BOTH else next(iter(self.sides), "none")
        return self.entry.books[side] or self.entry.books["none"]


def sides_in(words: Iterable[str | None]) -> frozenset[str]:
    """Return the sides that side words mean."""
    found: set[str] = set()
    for word in words:
        if word in (LEFT, "lt"):
            found.add(LEFT)
        elif word in (RIGHT, "rt"):
            found.add(RIGHT)
        elif word:
            found |= BOTH
    return frozenset(found)


def side_near(text: str, start: int, end: int) -> frozenset[str]:
    """Return the sides of what stands at `start:end`, from the words of its noun phrase or from "on the left" after."""
    before = _BEFORE.search(text[max(0, start - 60) : start])
    if before:
        return sides_in((before["first"], before["second"]))
    after = _AFTER.match(text, end)
    if after:
        return sides_in((after[1],))
    return BOTH if _BILATERALLY.match(text, end) else frozenset()


def leftmost_longest(matches: Iterable[tuple[re.Match[str], E]]) -> list[tuple[re.Match[str], E]]:
    """Return the matches that do not overlap: the earlier wins, and at one start the longer."""
    kept: list[tuple[re.Match[str], E]] = []
    for match, entry in sorted(matches, key=lambda m: (m[0].start(), -m[0].end())):
        if match.end() > match.start() and (not kept or match.start() >= kept[-1][0].end()):
            kept.append((match, entry))
    return kept


def joined(text: str, first: int, second: int) -> bool:
    """Say whether what ends at `first` and what begins at `second` are joined as a list ("heart and mediastinum")."""
    return _JOINT.match(text[first:second]) is not None


def _is_part(part: Place, whole: Place, text: str) -> bool:
    """Say whether two places are one, the second giving the side: "the lower lobe of the left lung"."""
    lung = part.entry.kind == whole.entry.kind == "lung" and whole.entry.generic and not part.entry.generic
    return (
        lung
        and not part.sides
        and re.fullmatch(r"(?: of)? (?:the )?(?:left |right )?", text[part.end : whole.start]) is not None
    )


def find_places(text: str, taken: Sequence[tuple[int, int]]) -> list[Place]:
    """Return the places of a normalised sentence in order.

    Args:
        text: The sentence.
        taken: Spans of findings of which a place word ("pleural effusion") is a part.
    """
    matches = leftmost_longest(
        (match, entry) for entry in lexicon().places.values() for match in entry.pattern.finditer(text)
    )
    places: list[Place] = []
    for match, entry in matches:
        if any(match.start() < end and start < match.end() for start, end in taken):
            continue
        sides = frozenset((entry.side,)) if entry.side else side_near(text, match.start(), match.end())
        own = _SIDES.match(match.group())
        if own and not entry.side:
            sides = sides_in((own.group(),))
        rib = _RIB.search(match.group()) if entry.name == "rib" else None
        place = Place(entry, match.start(), match.end(), sides, _ORDINALS.get(rib[1], rib[1]) if rib else "")
        before = places[-1] if places else None
        whole = place.sides or (BOTH if match.groupdict().get("both") else frozenset[str]())
        if before and whole and _is_part(before, place, text):
            places[-1] = replace(before, end=place.end, sides=whole)
            continue
        if before and len(before.sides) == 1 and not before.entry.side and not sides:
            between = text[before.end : place.start]
            if joined(text, before.end, place.start) and not _SIDES.search(between) and not before.entry.midline:
                place = replace(place, sides=before.sides)
        if not place.sides and match.groupdict().get("both"):
            place = replace(place, sides=BOTH)
        places.append(place)
    return places
