"""METEOR's alignment of two sentences: which words or phrases of one stand for which of the other.

Guarantee: the alignment is that of METEOR 1.5, which a beam search finds; where that search is not exact, neither is
this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
_BEAM = 40


class Match(NamedTuple):
    """A phrase of the text (`at`, `length`) that stands for a phrase of the reference (`start`, `width`)."""

    start: int
    width: int
    at: int
    length: int
    stage: int

    @property
    def gain(self) -> int:
        """What it adds to the covered words of a path, which METEOR keeps as whole numbers, cut off on each side.

        A stem or synonym therefore never decides between two alignments.
        """
        return self.width + self.length if self.stage == EXACT else self.width // 2 + self.length // 2


class Lexicon(Protocol):
    """What METEOR knows about words."""

    def stem(self, word: str) -> str:
        """Return the stem."""

    def meanings(self, word: str) -> frozenset[str]:
        """Return the WordNet synsets of a word and of its base forms."""

    @property
    def paraphrases(self) -> Mapping[tuple[str, ...], Sequence[tuple[str, ...]]]:
        """Phrase -> phrases that stand for it, in the order of the table."""

    @property
    def longest(self) -> int:
        """Words of the longest phrase among them."""


def align(text: Sequence[str], reference: Sequence[str], lexicon: Lexicon) -> list[Match]:
    """Return the matches of the best alignment, in the order of the reference."""
    return _best(_matches(text, reference, lexicon), len(text))


def _matches(text: Sequence[str], reference: Sequence[str], lexicon: Lexicon) -> list[list[Match]]:
    """Return all matches that start at each word of the reference, in the order in which METEOR tries them."""
    found: list[list[Match]] = [[] for _ in reference]

    def pair(stage: int, same: object) -> None:
        for j, word in enumerate(reference):
            for i, own in enumerate(text):
                if (stage == EXACT or own != word) and same(own, word):  # type: ignore[operator]
                    found[j].append(Match(j, 1, i, 1, stage))

    pair(EXACT, str.__eq__)
    if list(text) == list(reference):
        return found
    stems = {word: lexicon.stem(word) for word in {*text, *reference}}
    pair(STEM, lambda own, word: stems[own] == stems[word])
    meanings = {word: lexicon.meanings(word) for word in stems}
    pair(SYNONYM, lambda own, word: not meanings[own].isdisjoint(meanings[word]))
    for j, width, i, length in _paraphrases(reference, text, lexicon):
        found[j].append(Match(j, width, i, length, PARAPHRASE))
    for i, length, j, width in _paraphrases(text, reference, lexicon):
        found[j].append(Match(j, width, i, length, PARAPHRASE))
    return found


def _paraphrases(words: Sequence[str], others: Sequence[str], lexicon: Lexicon) -> Iterator[tuple[int, int, int, int]]:
    """Yield phrases of `words` that the table turns into phrases of `others`: place and length, place and length."""
    places: dict[str, list[int]] = {}
    for place, word in enumerate(others):
        places.setdefault(word, []).append(place)
    for start in range(len(words)):
        for length in range(1, min(lexicon.longest, len(words) - start) + 1):
            for phrase in lexicon.paraphrases.get(tuple(words[start : start + length]), ()):
                for place in places.get(phrase[0], ()):
                    if tuple(others[place : place + len(phrase)]) == phrase:
                        yield start, length, place, len(phrase)


def _bits(start: int, length: int) -> int:
    return (1 << length) - 1 << start


class _Path:
    """An alignment of the reference up to some word."""

    __slots__ = ("chosen", "chunks", "covered", "distance", "end", "next", "used_reference", "used_text")

    def __init__(self, used_text: int, used_reference: int) -> None:
        self.covered = self.chunks = self.next = self.distance = 0
        self.end = -1
        self.used_text, self.used_reference = used_text, used_reference
        self.chosen: tuple[Match, object] | None = None

    def with_match(self, match: Match) -> _Path:
        """Return the path that goes on with a match."""
        path = object.__new__(_Path)
        path.covered, path.distance = self.covered, self.distance
        path.chunks, path.end, path.next = self.chunks, self.end, self.next
        path.used_text = self.used_text | _bits(match.at, match.length)
        path.used_reference = self.used_reference | _bits(match.start, match.width)
        path.chosen = (match, self.chosen)
        path.take(match)
        return path

    def take(self, match: Match) -> None:
        """Count a match; a chunk ends where the text does not go on with it."""
        self.covered += match.gain
        self.chunks += self.end not in (-1, match.at)
        self.next, self.end = match.start + match.width, match.at + match.length

    def rank(self) -> tuple[int, int, int]:
        """Order of paths, best first: most words, fewest chunks, shortest distance."""
        return -self.covered, self.chunks, self.distance


def _certain(found: Sequence[Sequence[Match]], text_length: int) -> dict[int, Match]:
    """Return the matches that no other one touches."""
    in_text, in_reference = [0] * text_length, [0] * len(found)
    for match in (match for matches in found for match in matches):
        for i in range(match.at, match.at + match.length):
            in_text[i] += 1
        for j in range(match.start, match.start + match.width):
            in_reference[j] += 1
    return {
        match.start: match
        for matches in found
        for match in matches[:1]
        if max(in_text[match.at : match.at + match.length]) == 1
        and max(in_reference[match.start : match.start + match.width]) == 1
    }


def _best(found: Sequence[Sequence[Match]], text_length: int) -> list[Match]:
    certain = _certain(found, text_length)
    used_text = used_reference = 0
    for match in certain.values():
        used_text |= _bits(match.at, match.length)
        used_reference |= _bits(match.start, match.width)
    paths = [_Path(used_text, used_reference)]
    for place, matches in enumerate(found):
        following: list[_Path] = []
        for path in sorted(paths, key=_Path.rank)[:_BEAM]:
            if path.used_reference >> place & 1:
                if place >= path.next:
                    path.take(certain[place])
                    path.distance += abs(place - certain[place].at)
                following.append(path)
                continue
            for match in matches:
                free = not path.used_text & _bits(match.at, match.length)
                if free and not path.used_reference & _bits(match.start, match.width):
                    following.append(path.with_match(match))
                    path.distance += abs(match.start - match.at)  # METEOR charges the path that goes on without it
            path.chunks += path.end != -1
            path.end, path.next = -1, path.next + 1
            following.append(path)
        paths = following
    paths = sorted(paths, key=_Path.rank)[:_BEAM]
    for path in paths:
        path.chunks += path.end != -1
    chosen = dict(certain)
    link = min(paths, key=_Path.rank).chosen
    while link is not None:
        match, link = link  # type: ignore[assignment]
        chosen[match.start] = match
    return [chosen[start] for start in sorted(chosen)]
