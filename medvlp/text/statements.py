"""What one sentence states: which findings it names and whether it affirms, denies or doubts them.

Guarantee: the reading depends on the sentence alone. A word of negation or doubt reaches from where it stands to the
end of its clause, over the lists that follow it ("no A, B or C"), in the manner of NegEx (Chapman et al., 2001) and
ConText (Harkema et al., 2009).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from medvlp.text.rules import Rules, rules
from medvlp.types import ABSENT, PRESENT, UNCERTAIN

Span = tuple[int, int]

_SEPARATOR = re.compile(r",| and (?!/)|(?<!and)/(?!or)")
_NEW_CLAUSE = re.compile(r";(?! ?(?:or|nor)\b)(?![^;]*; ?(?:or|nor)\b)")  # "no A; B; or C" is one list
_AFFIRMED = re.compile(
    r"(?:positive|prominent|copd|emphysema|scarring|scoliosis|kyphosis|atherosclero|osteop|post-?op)"
)
_GONE = re.compile(r"(?:now |since )?(?:resolved|cleared|gone|removed|excluded|ruled out|unlikely|doubtful)\b")
_DASH = re.compile(r" (?:--?|[\u2013\u2014]) ")
_AFTER_REMOVAL = re.compile(r"\b(?:after|following|since|interval|post|s/p)(?: [\w-]+){0,4} \Z")
_ASIDE = re.compile(r", (?:(?:as )?previously|formerly|initially|now|once)\b[^,;]{0,50},")
_OR = re.compile(r"\b(?:or|nor|versus|vs)\b|\w/\w")
_LIST_JOINT = re.compile(r"\s*(?:and|or|nor|as well as)\b")
_CLAUSE = re.compile(r"[^,]{0,60}? (?:(?:is|are) (?:also |now |again )?present|persists?|remains?|has|have)\b")
_EITHER = re.compile(r"\s(?:and/or|or|versus|vs\.?|(?<=favored )over|(?<=favoured )over)\s")
_GAP = (
    r"of|the|in|size|sized|shape|appearance|appearing|contours?|configuration|position|overall|xxxx|and|cardiac|heart|for|to|a|an|"
    r"degree|diameter|calib\w+|transverse|[a-z]+ly"
)
_ATTRIBUTE_GAP = re.compile(rf"(?:[ ,]*\b(?:{_GAP})\b)* ?")
_COORDINATED = re.compile(r"(?:,| and|,? and the|,? the| or|/| the)* ?")
_SUBJECT_GAP = re.compile(r" (?:[a-z]+ )?(?=\S)")
_PLACE_END = re.compile(r"[;:]|\b(?:with|without|which|however|there (?:is|are)|while|although|but the|except)\b")


@dataclass(frozen=True, slots=True)
class Statement:
    """A finding named at `start:end` of the normalised sentence, with its value."""

    finding: str
    value: float
    start: int
    end: int


def normalise(text: str) -> str:
    """Return the text in lower case with single blanks, the form that the phrases are written for."""
    return " ".join(text.lower().split())


def normalise_with_offsets(text: str) -> tuple[str, list[int]]:
    """Return the normalised text, and for each of its characters where it stands in the given one."""
    pieces: list[str] = []
    offsets: list[int] = []
    for word in re.finditer(r"\S+", text):
        if pieces:
            pieces.append(" ")
            offsets.append(word.start() - 1)
        for position, char in enumerate(word.group(), word.start()):
            lower = char.lower()
            pieces.append(lower)
            offsets += [position] * len(lower)
    return "".join(pieces), offsets


def _mask(text: str, spans: Iterable[Span]) -> str:
    for start, end in spans:
        text = f"{text[:start]}{'#' * (end - start)}{text[end:]}"
    return text


def _inside(position: int, spans: Iterable[Span]) -> bool:
    return any(start <= position < end for start, end in spans)


def _named(text: str, found: Rules) -> list[tuple[str, int, int]]:
    """Return (finding, start, end) of every finding named, what `skip` covers left out."""
    named = []
    for name, skip, mention in found.mentions:
        matches = list(mention.finditer(text))
        if not matches:
            continue
        hidden = [m.span() for m in skip.finditer(text)] if skip else []
        named += [
            (name, m.start(), m.end())
            for m in matches
            if not _inside(m.start(), hidden) and not _inside(m.end() - 1, hidden)
        ]
    return named


class Scopes:
    """Reach of the words of negation and doubt in one sentence.

    Args:
        text: The sentence, normalised.
        named: (finding, start, end) of what is named: the first one that a word reaches is always within its reach.
        found: The labeler's rules.
    """

    def __init__(self, text: str, named: list[tuple[str, int, int]], found: Rules) -> None:
        self.text, self.found = text, found
        self.ends = sorted(end for _, _, end in named)
        triggers = found.triggers
        masked = text
        self.spans: dict[str, list[Span]] = {}
        for kind in ("pseudo", "uncertain_after", "uncertain_before", "ask", "negated_after", "negated_before"):
            self.spans[kind] = [m.span() for m in triggers[kind].finditer(masked)]
            masked = _mask(masked, self.spans[kind])
        self.masked = masked
        self.links = [m.span() for m in triggers["link"].finditer(masked)]
        free = _mask(masked, self.links)  # the "with" of a link is no stop
        self.stops = [m.span() for pattern in (triggers["stop"], _NEW_CLAUSE) for m in pattern.finditer(free)]
        self.negated = [(start, self._right(end, (), denies=True)) for start, end in self.spans["negated_before"]]
        nots = self.spans["negated_before"]
        self.uncertain = [
            (start, self._right(end, [s for s, _ in nots if s > end + 1]))
            for start, end in self.spans["uncertain_before"]
        ]
        self.asked = [(start, self._right(end, ())) for start, end in self.spans["ask"]]
        self.negated_left = [(self._left(start), start, end) for start, end in self.spans["negated_after"]]
        self.uncertain_left = [(self._left(start), start) for start, _ in self.spans["uncertain_after"]]

    def _right(self, begin: int, also_stop: Iterable[int], denies: bool = False) -> int:
        """Return where the reach of a word that ends at `begin` ends; `denies`: it is one of negation."""
        limit = len(self.text)
        first = next((end for end in self.ends if end > begin), limit)  # end of the first finding that it reaches
        hard = (
            [s for s, _ in self.stops if s >= begin]
            + [s for s, _ in self.links if s >= first]
            + [m.start() for m in _DASH.finditer(self.masked, first)]
            + [s for s in also_stop if s >= begin]
        )
        limit = min(hard, default=limit)
        for match in _SEPARATOR.finditer(self.masked, begin, limit):
            rest = self.masked[match.end() : limit].lstrip()
            following = match.end() + len(self.masked[match.end() : limit]) - len(rest)
            doubted = any(start == following for start, _ in self.spans["uncertain_before"])
            if denies and match.group() == "," and (doubted or (_AFFIRMED.match(rest) and not _OR.search(rest))):
                return match.start()  # "no A, cannot exclude B"; "no A, COPD"
            if not self.found.triggers["opener"].match(rest) and not _CLAUSE.match(self.masked, match.end()):
                continue
            if match.group().strip() == "," and _OR.search(rest):
                continue
            return match.start()
        return limit

    def _left(self, end: int) -> int:
        """Return where the reach, to the left, of a word that begins at `end` begins."""
        begin = max([e for s, e in self.stops if e <= end], default=0)
        joined = False
        text = _mask(self.masked, [m.span() for m in _ASIDE.finditer(self.masked, begin, end)])
        for match in reversed(list(_SEPARATOR.finditer(text, begin, end))):
            after = text[match.end() : end]
            comma = match.group() == ","
            if comma and not after.strip() and _GONE.match(self.text, end):
                continue  # "pneumonia, resolved"
            if comma and not joined and not _LIST_JOINT.match(after):
                return match.end()
            if not comma and self.found.triggers["opener"].match(after.lstrip()):
                return match.end()
            joined = True
        return begin

    def value(self, start: int, end: int) -> float | None:
        """Return the value of a finding named at `start:end`, None where it is only asked for."""
        if any(s < start < e for s, e in self.asked):
            return None
        if self.text.startswith("?", end):
            return UNCERTAIN
        negations = [s for s, e in self.negated if s < start < e]
        doubts = [s for s, e in self.uncertain if s < start < e]
        if negations and (not doubts or min(negations) < min(doubts)):
            return ABSENT
        for left, word, _ in self.negated_left:
            if left <= start and end <= word:
                hedged = any(end <= s < word + 4 for s, _ in self.spans["uncertain_before"])
                return UNCERTAIN if hedged else ABSENT
        if self.text.startswith(" removal", end) and _AFTER_REMOVAL.search(self.text[:start]):
            return ABSENT
        if doubts or any(left <= start and end <= word for left, word in self.uncertain_left):
            return UNCERTAIN
        return PRESENT


def alternatives(text: str, statements: list[Statement], scopes: Scopes) -> list[Statement]:
    """Return the statements; those offered as alternatives ("atelectasis or infiltrate") become uncertain."""
    doubtful: set[int] = set()
    for match in _EITHER.finditer(text):
        before = [k for k, s in enumerate(statements) if s.end <= match.start() + 1]
        after = [k for k, s in enumerate(statements) if s.start >= match.end() - 1]
        if not before or not after:
            if before and "v" in match.group():
                doubtful.add(max(before, key=lambda k: statements[k].end))
            continue
        left, right = max(before, key=lambda k: statements[k].end), min(after, key=lambda k: statements[k].start)
        a, b = statements[left], statements[right]
        near = text[a.end : match.start()].count(" ") <= 2 and text[match.end() : b.start].count(" ") <= 4
        if any(start < a.start for start, _ in scopes.spans["pseudo"]):
            continue  # "no change in A or B" speaks of both
        if near and a.finding != b.finding and "," not in text[a.end : match.start()]:
            doubtful |= {left, right}
    return [
        Statement(s.finding, UNCERTAIN, s.start, s.end) if k in doubtful and s.value == PRESENT else s
        for k, s in enumerate(statements)
    ]


def place_states(text: str, scopes: Scopes, found: Rules) -> Iterator[tuple[Statement, str]]:
    """Yield what the sentence says about heart and mediastinum by their state ("the heart is enlarged").

    Beside each statement stands the kind of state: abnormal, borderline, normal, or unstated ("stable").
    """
    places = sorted((m.start(), m.end(), name) for name, pattern in found.places for m in pattern.finditer(text))
    if not places:
        return
    states = [(m.start(), m.end(), str(m.lastgroup)) for m in found.states.finditer(text)]
    owner: dict[int, int | None] = {}
    for k, (_, end, _) in enumerate(states):
        following = next((i for i, place in enumerate(places) if place[0] >= end), None)
        if (
            following is not None
            and _ATTRIBUTE_GAP.fullmatch(text[end : places[following][0]])
            and " and" not in text[end : places[following][0]]
        ):
            owner[k] = following
            continue
        gap = _SUBJECT_GAP.match(text, end)
        if gap and (found.subjects.match(text, gap.end()) or found.subjects.match(text, end + 1)):
            owner[k] = None  # "prominent epicardial fat" speaks of neither
    previous: tuple[int, str | None] = (-1, None)
    for i, (start, end, name) in enumerate(places):
        limit = min([m.start() for m in _PLACE_END.finditer(text, end)], default=len(text))
        kinds = {states[k][2]: states[k] for k, who in owner.items() if who == i}
        for k, (begin, finish, kind) in enumerate(states):
            if begin < end or begin >= limit or k in owner:
                continue
            if kinds and (any(end <= p[0] < begin for p in places) or found.subjects.search(text, end, begin)):
                break
            kinds.setdefault(kind, (begin, finish, kind))
        if not kinds and previous[1] and _COORDINATED.fullmatch(text[previous[0] : start]):
            value_kind: str | None = previous[1]
        else:
            value_kind = next(
                (kind for kind in ("abnormal", "borderline", "normal", "unstated") if kind in kinds), None
            )
            if value_kind == "abnormal":
                begin, finish, _ = kinds["abnormal"]
                denied = scopes.value(begin, finish)
                value_kind = {ABSENT: "normal", UNCERTAIN: "borderline", None: None}.get(denied, "abnormal")
        previous = (end, value_kind)
        if value_kind:
            value = {"abnormal": PRESENT, "normal": ABSENT}.get(value_kind, UNCERTAIN)
            yield Statement(name, value, start, end), value_kind


@lru_cache(maxsize=1 << 16)
def read_sentence(sentence: str) -> tuple[Statement, ...]:
    """Return the statements of one normalised sentence, in no particular order.

    The finding `OTHER` stands for abnormalities outside the fourteen.
    """
    found = rules()
    named = _named(sentence, found)
    scopes = Scopes(sentence, named, found)
    statements = []
    for name, start, end in named:
        value = scopes.value(start, end)
        if value is not None:
            statements.append(Statement(name, value, start, end))
    states = (statement for statement, _ in place_states(sentence, scopes, found))
    return (*alternatives(sentence, statements, scopes), *states)


def kept_spans(sentence: str) -> list[Span]:
    """Return the spans of a normalised sentence that carry its meaning, as the labeler and `keep` know it."""
    found = rules()
    patterns = [found.any_place, found.states, found.subjects, found.keep, *found.triggers.values()]
    patterns += [pattern for _, skip, mention in found.mentions for pattern in (skip, mention) if pattern is not None]
    return [match.span() for pattern in patterns for match in pattern.finditer(sentence)]
