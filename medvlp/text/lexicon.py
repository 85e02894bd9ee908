"""Words for findings and places, read from `lexicon.yaml`: what a report calls them and which book entry they are.

Guarantee: every phrase matches whole words of normalised text. Each finding names one entry of the 75 findings and each
place its entries of the 51 places; the tests compare both with the books. A mistake in the file is reported with the
entry that holds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medvlp.errors import UserError

LEXICON = Path(__file__).with_name("lexicon.yaml")
SIDES = ("left", "right", "none", "both")


@dataclass(frozen=True)
class FindingEntry:
    """A finding.

    Args:
        name: What triplets call it.
        book: Its entry of the 75 findings.
        home: Place where it lies when the sentence names none; None where the word does not say.
        at: Kinds of places that it can take; empty: any.
        fixed: It lies at home whatever is named, which then only tells the side.
        state: It is a property that a place has ("clear", "tortuous"), not a thing that lies somewhere.
        inside: A place word within its own words counts ("interstitial markings").
        denied: It says something only when it is denied ("no acute findings").
        pattern: Its words.
    """

    name: str
    book: str
    home: str | None
    at: frozenset[str]
    fixed: bool
    state: bool
    inside: bool
    denied: bool
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class PlaceEntry:
    """A place.

    Args:
        name: What triplets call it; a side is put in front.
        kind: What findings ask for by `FindingEntry.at`.
        generic: Gives way to a more exact place beside it ("right upper lobe pulmonary nodule").
        midline: Its name takes no side.
        one: Its name with a side in front.
        side: The side that it lies on by itself (lingula: left).
        books: Side -> its entries of the 51 places.
        pattern: Its words; the group `both` stands for words that mean both sides.
    """

    name: str
    kind: str
    generic: bool
    midline: bool
    one: str
    side: str | None
    books: Mapping[str, tuple[str, ...]]
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Lexicon:
    """All findings and places by name."""

    findings: Mapping[str, FindingEntry]
    places: Mapping[str, PlaceEntry]


def _compile(words: list[str], where: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?<![\w-])(?:{'|'.join(f'(?:{word})' for word in words)})(?!\w)")
    except (re.error, TypeError) as error:
        raise UserError(
            f"A phrase is no regular expression: {error}.", f"{LEXICON.name}, {where}", "Mend the phrase."
        ) from error


def _finding(name: str, data: dict[str, Any], places: Mapping[str, PlaceEntry]) -> FindingEntry:
    home = data.get("home")
    kinds = {place.kind for place in places.values()} | {"side"}
    unknown = [] if home in (None, *places) else [str(home)]
    unknown += sorted(set(data.get("at", ())) - kinds)
    if unknown:
        raise UserError(
            f"Unknown place or kind: {', '.join(unknown)}.", f"{LEXICON.name}, {name}", "Use one of the file's places."
        )
    return FindingEntry(
        name=name,
        book=data.get("book", name),
        home=home,
        at=frozenset(data.get("at", ())),
        fixed=data.get("fixed", False),
        state=data.get("state", False),
        inside=data.get("inside", False),
        denied=data.get("denied", False),
        pattern=_compile(data["words"], name),
    )


def _place(name: str, data: dict[str, Any]) -> PlaceEntry:
    books = {side: tuple(data.get(side, ())) for side in SIDES}
    books["both"] = tuple(data.get("both", dict.fromkeys((*books["left"], *books["right"])))) or books["none"]
    return PlaceEntry(
        name=name,
        kind=data["kind"],
        generic=data.get("generic", False),
        midline=data.get("midline", False),
        one=data.get("one", name),
        side=data.get("side"),
        books=books,
        pattern=_compile(sorted(data["words"], key=lambda word: not word.startswith("(?P<both>")), name),
    )


def compile_lexicon(data: dict[str, Any]) -> Lexicon:
    """Compile the content of a lexicon file.

    Raises:
        UserError: A key is missing, a place is unknown, or a phrase is no regular expression.
    """
    try:
        places = {name: _place(name, entry) for name, entry in data["places"].items()}
        findings = {name: _finding(name, entry, places) for name, entry in data["findings"].items()}
    except KeyError as error:
        raise UserError(f"The key {error} is missing.", LEXICON.name, "Add it.") from error
    return Lexicon(findings, places)


@cache
def lexicon() -> Lexicon:
    """Return the shipped lexicon."""
    import yaml

    return compile_lexicon(yaml.safe_load(LEXICON.read_text(encoding="utf-8")))
