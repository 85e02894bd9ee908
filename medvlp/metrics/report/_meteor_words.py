"""English text -> words as METEOR 1.5 makes them with `-norm`.

Guarantee: equals the normaliser of METEOR 1.5 for English, its order of steps included.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_ALPHA = (
    "A-Za-z\u0160\u017d\u0161\u017e\u0178\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e"
    "\u0400-\u04ff\u0500-\u0527\ua640-\ua66e\ua67e-\ua697\u1d00-\u1d7f"
)
_ALNUM = f"0-9{_ALPHA}"
_MARK = re.compile(rf"([^{_ALNUM}\s.'`,\-\u2018\u2019])", re.ASCII)
_DOTS = re.compile(r"\.{2,}")
_COMMA = tuple(
    re.compile(rf"({left}),({right})") for left, right in (("[^0-9]",) * 2, ("[0-9]", "[^0-9]"), ("[^0-9]", "[0-9]"))
)
_QUOTE, _DOUBLE_QUOTE = re.compile("[`\u2018\u2019]"), re.compile("[\u201c\u201d]|''")
_DASH = re.compile(rf"([{_ALNUM}.])-([{_ALNUM}])")
_APOSTROPHE = (
    (re.compile(rf"([^{_ALPHA}])'([^{_ALPHA}])"), r"\1 ' \2"),
    (re.compile(rf"([^{_ALPHA}0-9])'([{_ALPHA}])"), r"\1 ' \2"),
    (re.compile(rf"([{_ALPHA}])'([^{_ALPHA}])"), r"\1 ' \2"),
    (re.compile(rf"([{_ALPHA}])'([{_ALPHA}])"), r"\1 '\2"),
    (re.compile(r"([0-9])'(s)"), r"\1 '\2"),
)
_LETTER = re.compile(f"[{_ALPHA}]")
_BLANK = re.compile("[ \t\n\r\f]+")
_ELLIPSIS = "\0\0"  # cannot be in a text whose marks stand apart
_WIDE_BLANK = re.compile("[\u2000-\u200a\u202f\u205f\u3000\u00a0]+")


class Normaliser:
    """Splits text into words in lower case.

    Args:
        prefixes: Lines of METEOR's list of words whose full stop does not end a sentence.
    """

    def __init__(self, prefixes: Iterable[str]) -> None:
        listed = [words for line in prefixes if (words := line.split()) and not words[0].startswith("#")]
        self.before_numbers = {words[0] for words in listed if "#NUMERIC_ONLY#" in words[1:2]}
        self.anywhere = {words[0] for words in listed} - self.before_numbers

    def words(self, text: str) -> list[str]:
        """Return the words of a text."""
        text = _MARK.sub(r" \1 ", f" {text} ")
        ellipses = _DOTS.findall(text)
        text = _DOTS.sub(f" {_ELLIPSIS} ", text)
        for comma in _COMMA:
            text = comma.sub(r"\1 , \2", text)
        text = _DOUBLE_QUOTE.sub(' " ', _QUOTE.sub("'", text))
        text = _DASH.sub(r"\1 \2", text.replace("\u2013", "-").replace("--", "-"))
        for apostrophe, replacement in _APOSTROPHE:
            text = apostrophe.sub(replacement, text)
        parts = [part for part in _BLANK.split(text) if part]
        text = " ".join(
            self._without_stop(part, following) for part, following in zip(parts, [*parts[1:], ""], strict=False)
        )
        for dots in ellipses:
            text = text.replace(_ELLIPSIS, dots, 1)
        return [word for word in _BLANK.split(_WIDE_BLANK.sub(" ", text).lower()) if word]

    def _without_stop(self, part: str, following: str) -> str:
        """Part the full stop from a word that it does not belong to."""
        if len(part) < 2 or not part.endswith("."):
            return part
        word = part[:-1]
        if "." in word and _LETTER.search(word):
            return part.replace(".", "")
        kept = word in self.anywhere or re.match("[a-z]", following) is not None
        kept = kept or (word in self.before_numbers and re.match("[0-9]", following) is not None)
        return part if kept else f"{word} ."
