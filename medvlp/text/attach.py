"""Which of the places that a sentence names belong to which finding.

Guarantee: a finding takes places of the kinds that its lexicon entry allows, from words that tie them to it: before it
in its noun phrase, after it behind a preposition, as the subject of its sentence, or from the finding that it is said
to represent. Across a negation ("without") or "but" nothing is taken over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from medvlp.text.lexicon import FindingEntry, lexicon
from medvlp.text.places import Place, joined, side_near

_PREPOSITIONS = re.compile(
    r"(?<!\S)(?:in|within|of|at|over|overl(?:ying|ies|ie)|involv(?:ing|es)|along|near|throughout|through|about|on|into|"
    r"project(?:ing|s|ed)|overlapping|adjacent|around|to|above|inside|across|bordering|terminat(?:ing|es|e)|ends?|ending|"
    r"exten(?:ds|ding)|affecting|from|between|under|beneath|below|by)(?!\S)"
)
_PHRASE_END = re.compile(
    r"[,;:.()?]|\b(?:with|without|is|are|was|were|has|have|had|and|or|but|in|of|at|on|to|from|for|the|no|not|which|that|"
    r"may|might|could|can|represent\w*|consistent|compatible|versus|vs|due|secondary|seen|noted|demonstrat\w+|shows?|"
    r"within|over|overlying|there|appears?|remains?|as|by|than|than|suggest\w*|reflect\w*|contain\w*|involving|"
    r"terminat\w+|projects?|overlies|overlie|measuring)\b"
)
_HARD = re.compile(
    r"[;:]|\b(?:with|without|but|however|although|though|while|which|no|not|nor|consistent|compatible|represent\w*|reflect\w*|"
    r"due|secondary|suggest\w*|concerning|suspicious|related|keeping|except|otherwise|there)\b"
)
_DENIAL = re.compile(r"[;]|\b(?:without|but|no|not|nor|however|although|except|free of|clear of|negative for)\b")
_LINK = re.compile(
    r"\b(?:consistent|compatible|represent\w*|reflect\w*|keeping|suggest\w*|due|secondary|suspicious|concerning|"
    r"worrisome|xxxx|likely|probably|possibly|versus|vs|may be|could be|indicat\w+|related|associated)\b"
)
_COMMA = re.compile(
    r",(?! (?:in keeping|consistent|compatible|likely|probably|suggest|represent|concerning|suspicious))"
)
_LIST = re.compile(r"(?:,|,? ?(?:and|or|and/or|versus|vs\.?)|/)(?: (?!a |an |the |there )[\w-]+){0,2}\s*\Z")
_VERB = re.compile(
    r"\b(?:is|are|was|were|has|have|remains?|appears?|appear|demonstrat\w+|shows?|contains?|reveals?|exhibits?|looks?)\b"
)
_OF_NEAR = re.compile(
    r"(?: (?:appearance|size|contour|position|course|caliber) of| of| in"
    r"(?! (?:size|contour|shape|caliber|configuration)(?:,| and)))(?: [\w-]+){0,4} \Z"
)
_SHOWS = re.compile(r"(?:demonstrat\w+|shows?|contains?|reveals?|exhibits?)\b|(?:is|are) (?:\w+ly )?(?:clear|normal)\b")
_BEGUN = re.compile(r"\b(?:no|there (?:is|are)|without)\b")
_BUT = re.compile(r"\bbut\b")
_NOUN = re.compile(r"(?:ment|ence|ness|ing|ion|ity)\Z")
_LIKE = re.compile(r"[ -]\Z|(?: [\w'%/-]+){1,4} ?\Z|\Z")


@dataclass(frozen=True, slots=True)
class Named:
    """A finding named at `start:end` of a sentence."""

    entry: FindingEntry
    start: int
    end: int


def places_of(text: str, named: Sequence[Named], places: Sequence[Place]) -> dict[int, list[Place] | None]:
    """Return the start of each finding -> its places: [] where none is known, None where it states nothing of its own.

    Args:
        text: The normalised sentence.
        named: Its findings, in order.
        places: Its places, in order.
    """
    reader = _Reader(text, named, places)
    result: dict[int, list[Place] | None] = {}
    for item in named:
        result[item.start] = reader.of_state(item) if item.entry.state else reader.of_thing(item)
    return result


class _Reader:
    def __init__(self, text: str, named: Sequence[Named], places: Sequence[Place]) -> None:
        self.text, self.places = text, places
        self.things = [n for n in named if not n.entry.state]
        self.states = [n for n in named if n.entry.state]
        self.tied: dict[int, list[Place]] = {}
        """What words tie to a finding, by the finding's start; homes are not in it."""

    # Things ("opacity", "effusion") -----------------------------------------------------------------------------

    def of_thing(self, item: Named) -> list[Place]:
        tied = self._tied(item)
        self.tied[item.start] = tied
        entry = item.entry
        home = lexicon().places[entry.home] if entry.home else None
        sides = frozenset[str]().union(*(place.sides for place in tied))
        if entry.fixed and home:
            same = [place for place in tied if place.entry is home]
            if same:
                return same
            sides = sides or (side_near(self.text, item.start, item.end) if entry.at else frozenset())
            return [Place(home, item.start, item.start, sides)]
        if tied:
            return tied
        if home is None:
            qualified = self._qualified_by(item)
            return self.of_thing(qualified) if qualified else []
        sides = side_near(self.text, item.start, item.end)
        if sides and home.name == "lung":
            home = lexicon().places["lungs"]
        return [Place(home, item.start, item.start, sides)]

    def _qualified_by(self, item: Named) -> Named | None:
        """Return the finding that it is a property of: "calcified granuloma"."""
        following = next((o for o in self.things if o.start >= item.end), None)
        return following if following and self.text[item.end : following.start] == " " else None

    def _allowed(self, entry: FindingEntry) -> list[Place]:
        kinds = entry.at
        return [
            p for p in self.places if (p.entry.kind in kinds if kinds else entry.state or p.entry.kind != "volumes")
        ]

    def _tied(self, item: Named) -> list[Place]:
        allowed = self._allowed(item.entry)
        inside = [p for p in allowed if item.start <= p.start and p.end <= item.end]
        near = inside or self._before(item, allowed)
        if not near or all(place.entry.generic for place in near):
            exact = self._after(item, allowed) or self._subject(item, allowed)
            if exact and not (near and exact[0].entry.generic):
                sides = frozenset[str]().union(*(place.sides for place in near))
                return [replace(p, sides=p.sides or sides) for p in exact] if len(sides) == 1 else exact
        return near or self._taken_over(item)

    def _before(self, item: Named, allowed: list[Place]) -> list[Place]:
        """Places in the noun phrase before it: "left base and lingular opacities"."""
        found: list[Place] = []
        edge = item.start
        for place in reversed([p for p in allowed if p.end <= item.start]):
            gap = self.text[place.end : edge]
            if any(place.end <= other.start < edge for other in self.things if other is not item):
                break
            beside = not _PHRASE_END.search(gap) and gap.count(" ") <= 5
            if beside and (not found or not place.entry.generic):
                found = [p for p in found if not p.entry.generic]
                found.insert(0, place)
            elif found and joined(self.text, place.end, edge):
                found.insert(0, place)
            elif not beside:
                break
            edge = place.start
        return found

    def _after(self, item: Named, allowed: list[Place]) -> list[Place]:
        """Places behind a preposition, or right after it: "atelectasis or scar within the left midlung"."""
        for k, place in enumerate(allowed):
            if place.start < item.end:
                continue
            if not self._leads_to(item, place):
                return []
            found = [place]
            for following in allowed[k + 1 :]:
                gap = self.text[found[-1].end : following.start]
                beside = gap == " " and not following.entry.generic
                if not (beside or joined(self.text, found[-1].end, following.start)) or self._qualifies(following):
                    break
                if not beside and self._begins_clause(item, found[0], following):
                    break
                if beside and found[-1].entry.generic:
                    found.pop()
                found.append(following)
            return found
        return []

    def _begins_clause(self, item: Named, first: Place, place: Place) -> bool:
        """Say whether a place is the subject of a new clause: "opacity on the left, and the right lung is clear"."""
        verb = _VERB.match(self.text, place.end + 1)
        if verb is None:
            return False
        told = _VERB.search(self.text[item.end : first.start]) or _BEGUN.search(self.text[: item.start])
        return told is not None or _SHOWS.match(self.text, place.end + 1) is not None

    def _leads_to(self, item: Named, place: Place) -> bool:
        gap = self.text[item.end : place.start]
        others = [o for o in self.things if item.end <= o.start and o.end <= place.start]
        for other in reversed(others):  # other findings of the list become a mark
            first, last = other.start - item.end, other.end - item.end
            gap = f"{gap[:first]}\0{gap[last:]}"
        if _HARD.search(gap):
            return False
        head, _, tail = gap.rpartition("\0")
        parts = head.split("\0") if others else []
        if any(not (_LIKE.fullmatch(part) or _LIST.fullmatch(part)) for part in parts):
            return False
        if "," in tail:
            return False
        if _PREPOSITIONS.search(tail):
            return not self._qualifies(place) or " of " in tail
        near = not _PHRASE_END.search(tail) and tail.count(" ") <= 3
        return near and not (self._qualifies(place) and item.entry.name not in ("calcification", "thicken"))

    def _qualifies(self, place: Place) -> bool:
        """Say whether a finding follows within the place's noun phrase: "left basilar atelectasis"."""
        following = next((o for o in self.things if o.start >= place.end), None)
        if following is None:
            return False
        gap = self.text[place.end : following.start]
        return not _PHRASE_END.search(gap) and gap.count(" ") <= 4

    def _subject(self, item: Named, allowed: list[Place]) -> list[Place]:
        """The subject of its clause: "the right lower lobe demonstrates consolidation"."""
        before = [p for p in allowed if p.end <= item.start]
        if not before:
            return []
        gap = self.text[before[-1].end : item.start]
        link = _LINK.search(gap)
        if (not _VERB.search(gap) and not link) or (link and not item.entry.at):
            return []
        if _DENIAL.search(gap) or (re.search(r"\bwith\b", gap) and not link) or _COMMA.search(gap):
            return []
        if any(before[-1].end <= other.start < item.start for other in self.things):
            return []
        return self._with_joined(before)

    def _with_joined(self, before: list[Place]) -> list[Place]:
        while len(before) > 1 and before[-1].entry.generic and self._parted(before[-2], before[-1]):
            before = before[:-1]  # "the bony structures of the thorax"
        found = [before[-1]]
        for place in reversed(before[:-1]):
            if not joined(self.text, place.end, found[0].start) or self._of_another(place, found[0]):
                break
            found.insert(0, place)
        return found

    def _of_another(self, place: Place, subject: Place) -> bool:
        """Say whether a finding before has the first place and not the second."""
        return any(place in tied and subject not in tied for tied in self.tied.values())

    def _parted(self, whole: Place, part: Place) -> bool:
        return (
            re.fullmatch(r" (?:of|in|within) (?:the |both )?(?:\w+ )?", self.text[whole.end : part.start]) is not None
        )

    def _taken_over(self, item: Named) -> list[Place]:
        """Places of the finding before it, where the two are a list or one stands for the other."""
        before = [other for other in self.things if other.end <= item.start]
        if not before or not item.entry.at:
            return []
        gap = self.text[before[-1].end : item.start]
        offered = gap.endswith(", ") and re.match(r" (?:versus|vs\.?|or) ", self.text[item.end :])
        link = _LINK.search(gap) or gap == " " or offered
        listed = _LIST.fullmatch(gap.rstrip() + " ") or _LIST.match(gap)
        with_it = re.fullmatch(r" with (?:[\w-]+ ){0,2}", gap) and not item.entry.fixed
        if _DENIAL.search(gap) or not (link or with_it or (listed and not item.entry.fixed)):
            return []
        kinds = item.entry.at
        if not item.entry.fixed and side_near(self.text, item.start, item.end):
            return []
        tied = self.tied.get(before[-1].start, [])
        return [p for p in tied if p.entry.kind in kinds and (p.sides or not p.entry.generic)]

    # States ("clear", "enlarged") ---------------------------------------------------------------------------------

    def of_state(self, item: Named) -> list[Place] | None:
        allowed = self._allowed(item.entry)
        following = next((o for o in self.things if o.start >= item.end), None)
        ahead = next((p for p in allowed if p.start >= item.end), None)
        other = next((o for o in self.states if o.start >= item.end), None)
        if other and self.text[item.end : other.start] == " " and _NOUN.search(self.text[: other.end]):
            return None  # "stable enlargement of the heart"
        if following and (ahead is None or following.start < ahead.start) and self._near(item.end, following.start):
            return None  # "stable cardiomegaly" is about the finding
        if ahead and self._near(item.end, ahead.start):
            if self._qualifies(ahead):
                return None  # "prominent perihilar opacities"
            return self._joined_after(ahead, allowed)
        before = [p for p in allowed if p.end <= item.start]
        if before:
            owners = [o for o in self.things if o.end <= before[-1].start and before[-1] in self.tied.get(o.start, ())]
            between = owners or [o for o in self.things if before[-1].end <= o.start < item.start]
            if between and not item.entry.at and not _BUT.search(self.text[before[-1].end : item.start]):
                return None  # "the hilar node is stable"
            if not _DENIAL.search(self.text[before[-1].end : item.start].replace("not ", "")) or item.entry.at:
                return self._with_joined(before)
        if item.entry.home:
            return [Place(lexicon().places[item.entry.home], item.start, item.start)]
        return None if self.things else []

    def _near(self, start: int, end: int) -> bool:
        gap = self.text[start:end]
        return (not _PHRASE_END.search(gap) and gap.count(" ") <= 4) or _OF_NEAR.fullmatch(gap) is not None

    def _joined_after(self, first: Place, allowed: list[Place]) -> list[Place]:
        found = [first]
        for place in allowed[allowed.index(first) + 1 :]:
            gap = self.text[found[-1].end : place.start]
            if gap == " " and found[-1].entry.generic:
                found[-1] = place
                continue
            if not joined(self.text, found[-1].end, place.start) or self._qualifies(place):
                break
            found.append(place)
        return found
