"""Entity linking: names of concepts in report text, with places and what the report says of them.

Guarantee: of several names at one place the longest counts; spelling (case, number, hyphens, British or American) makes
no difference, anything else does; an abbreviation counts only where it is written in capitals. Nothing is learned and
nothing downloaded. Status follows the statement rules of `medvlp.text`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.text.rules import rules
from medvlp.text.sections import BODY_SECTIONS, find_sections, sentence_spans
from medvlp.text.spelling import words_of
from medvlp.text.statements import Scopes, Statement, alternatives, normalise_with_offsets
from medvlp.text.tokenizer import Tokenizer

_LONGEST_ABBREVIATION = 6
"""Letters and digits of a name in capitals that is taken for an abbreviation (COLD, GIST), not for loud writing."""


@dataclass(frozen=True, slots=True)
class Span:
    """A concept named at characters `start:end` of a text.

    Args:
        concept_id: The concept.
        start: First character.
        end: Character after the last.
        value: 1 present, 0 absent, -1 uncertain; None where the text only asks for it, or where nobody judged.
        score: Confidence of a foreign linker; 1 for a match of names.
    """

    concept_id: str
    start: int
    end: int
    value: float | None = None
    score: float = 1.0


class Linker:
    """Finds names. Build it once and use it for many texts.

    Args:
        names: Concept id -> its names, the best first.
        min_characters: Names with fewer letters and digits are not looked for.
        exclude: Names that are not looked for, in any spelling.

    Raises:
        UserError: No name is left.
    """

    def __init__(
        self, names: Mapping[str, Iterable[str]], min_characters: int = 4, exclude: Iterable[str] = ()
    ) -> None:
        from ahocorasick_rs import AhoCorasick, MatchKind

        left_out = {_pattern([word for word, _, _ in words_of(name)]) for name in exclude}
        meant: dict[str, tuple[bool, int, str]] = {}
        for concept_id in names:
            for rank, name in enumerate(names[concept_id]):
                words = [word for word, _, _ in words_of(name)]
                if sum(map(len, words)) < min_characters or all(word.isdigit() for word in words):
                    continue
                pattern, candidate = _pattern(words), (_is_abbreviation(name), min(rank, 1), concept_id)
                if pattern not in left_out:
                    meant[pattern] = min(meant.get(pattern, candidate), candidate)
        if not meant:
            raise UserError("There is no name to look for.", fix="Lower linking.min_characters, or add an ontology.")
        self._concepts = [concept_id for _, _, concept_id in meant.values()]
        self._abbreviations = {pattern for pattern, (short, _, _) in meant.items() if short}
        self._automaton = AhoCorasick(list(meant), matchkind=MatchKind.LeftmostLongest)
        self._read = lru_cache(maxsize=1 << 15)(self._link_sentence)

    @classmethod
    def from_book(
        cls,
        book: ConceptBook,
        scopes: Sequence[str] = ("EXACT",),
        min_characters: int = 4,
        exclude: Iterable[str] = (),
    ) -> Linker:
        """Return a linker for the names and synonyms of a concept book.

        A name that several concepts have goes to one that has it as its main name, and else to the first id.
        """
        return cls({concept_id: book.names(concept_id, scopes) for concept_id in book}, min_characters, exclude)

    def link(self, text: str) -> list[Span]:
        """Return the concepts named in a text (a caption, a sentence), in order."""
        spans: list[Span] = []
        for start, end in sentence_spans(text):
            sentence, offsets = normalise_with_offsets(text[start:end])
            found = (
                replace(span, start=start + offsets[span.start], end=start + offsets[span.end - 1] + 1)
                for span in self._read(sentence)
            )
            spans += [span for span in found if self._meant(text[start:end], text[span.start : span.end])]
        return spans

    def _meant(self, sentence: str, name: str) -> bool:
        """Say whether words are more than a word spelt like an abbreviation: "cold" or, among capitals, "COLD"."""
        if _pattern([word for word, _, _ in words_of(name)]) not in self._abbreviations:
            return True
        return name.isupper() and (not sentence.isupper() or name == sentence.strip(" .:,;"))

    def link_report(self, report: str) -> list[Span]:
        """Return the concepts named in what a report says about the images, with offsets of the report."""
        return [
            replace(span, start=span.start + section.start, end=span.end + section.start)
            for section in find_sections(report)
            if section.name in BODY_SECTIONS
            for span in self.link(report[section.start : section.end])
        ]

    def _link_sentence(self, sentence: str) -> tuple[Span, ...]:
        words = words_of(sentence)
        haystack = _pattern([word for word, _, _ in words])
        first_at, last_at, position = {}, {}, 0
        for word, start, end in words:
            first_at[position], position = start, position + len(word) + 2
            last_at[position] = end
        spans = [
            Span(self._concepts[number], first_at[begin], last_at[finish])
            for number, begin, finish in self._automaton.find_matches_as_indexes(haystack)
        ]
        return tuple(_judged(sentence, spans))


def _is_abbreviation(name: str) -> bool:
    return name.isupper() and sum(map(str.isalnum, name)) <= _LONGEST_ABBREVIATION


def _pattern(words: Sequence[str]) -> str:
    """Return words with a blank on either side of each, so that neighbouring matches need no blank in common."""
    return "".join(f" {word} " for word in words)


def _judged(sentence: str, spans: list[Span]) -> list[Span]:
    if not spans:
        return []
    scopes = Scopes(sentence, [(span.concept_id, span.start, span.end) for span in spans], rules())
    values = [scopes.value(span.start, span.end) for span in spans]
    stated = [Statement(s.concept_id, v, s.start, s.end) for s, v in zip(spans, values, strict=True) if v is not None]
    final = {statement.start: statement.value for statement in alternatives(sentence, stated, scopes)}
    return [replace(span, value=final.get(span.start)) for span in spans]


def token_spans(
    tokenizer: Tokenizer, text: str, spans: Sequence[Span], max_tokens: int
) -> list[tuple[Span, tuple[int, int]]]:
    """Return the spans that are whole within `max_tokens`, each with its tokens (first, last + 1), class token counted.

    Character offsets are led to tokens by the tokenizer's own offsets (using them as token positions is a known fault
    of released code).
    """
    places = tokenizer.token_spans(text, [(span.start, span.end) for span in spans], max_tokens)
    return [(span, place) for span, place in zip(spans, places, strict=True) if place is not None]
