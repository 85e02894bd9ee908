"""Names and numbers that are known to identify a patient, in every spelling that a report may give them.

Guarantee: a known string is found whatever its case, blanks and punctuation, with or without accents (Müller, Mueller,
MULLER), in either order of family and given name, and a number also without its leading zeros or with blanks inside.
Parts of a name count from three letters on, and particles (van, der, de la) never alone; a string
after `AS_A_WHOLE` (an institution) is found as a whole only.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache

from medvlp.types import AS_A_WHOLE

SHORTEST_PART = 3
SHORTEST_NUMBER = 4
SHORTEST_WHOLE = 4
_PARTICLES = frozenset(
    (
        *("and", "aus", "bei", "bin", "das", "dei", "del", "dem", "den", "der", "des", "dos", "frau", "herr", "ibn"),
        *(
            "las",
            "les",
            "los",
            "med",
            "mrs",
            "prof",
            "san",
            "ten",
            "ter",
            "the",
            "und",
            "van",
            "vom",
            "von",
            "zum",
            "zur",
        ),
    )
)
_DIGRAPHS = {"ae": "(?:ae|[äæ])", "oe": "(?:oe|[öøœ])", "ue": "(?:ue|ü)", "ss": "(?:ss|ß)"}
_SINGLE = {
    **{"ä": "(?:ae|[äæa])", "æ": "(?:ae|[äæ])", "ö": "(?:oe|[öøo])", "ø": "(?:oe|[öøo])", "œ": "(?:oe|œ)"},
    **{"ü": "(?:ue|[üu])", "å": "(?:aa|[åa])", "ß": "(?:ss|ß)"},
}
_BASES = {"ł": "l", "đ": "d", "ð": "d", "ı": "i", "ħ": "h", "ŧ": "t"}
_PLAIN = {ord(letter): base for letter, base in {**_BASES, "ø": "o", "æ": "", "œ": "", "ß": ""}.items()}
_FLESH = re.compile(r"[\W_aeious]+")
_GAP = r"[\s\^,_-]*"


def without_known(text: str, known: Iterable[str]) -> str:
    """Return the text with every known string replaced by `[REMOVED]`.

    Args:
        text: A report.
        known: Names, in DICOM's form (`Family^Given`) or another one, and numbers of the patient.
    """
    bones = _bones(text)
    candidates = {one for name in known for one in _candidates(unicodedata.normalize("NFC", name.strip()))}
    patterns = {_pattern(words) for words in candidates if _bones("".join(words)) in bones}
    if not patterns:
        return text
    text = unicodedata.normalize("NFC", text)
    for pattern in sorted(patterns, key=lambda pattern: (-len(pattern), pattern)):
        text = re.sub(rf"(?<![^\W_]){pattern}(?![^\W_])", "[REMOVED]", text, flags=re.IGNORECASE)
    text = re.sub(r"\[REMOVED\](?:[\s,^_-]+\[REMOVED\])+", "[REMOVED]", text)
    return re.sub(r"\b[A-Z]\.(?:[ \t-]?[A-Z]\.){0,2}[ \t]*\[REMOVED\]", "[REMOVED]", text)


def _bones(text: str) -> str:
    """Return what all spellings of a name share: digits and consonants without s.

    A name whose bones are not those of the text cannot stand in it, and needs no slow search.
    """
    plain = unicodedata.normalize("NFKD", text.lower()).translate(_PLAIN)
    return _FLESH.sub("", plain)


_Words = tuple[str, ...]
"""One string, or two that stand side by side."""


def _candidates(name: str) -> set[_Words]:
    if name.startswith(AS_A_WHOLE):
        return {(name[1:],)} if len(name) > SHORTEST_WHOLE else set()
    found: set[_Words] = {(name,)} if len(name) >= SHORTEST_PART else set()
    if name.isdigit():
        bare = name.lstrip("0")
        return found | ({(bare,)} if len(bare) >= SHORTEST_NUMBER else set())
    parts = [part for part in re.split(r"[\^,=\s]+", name) if part]
    if not re.search(r"\d", name):
        if len(parts) == 2 and sum(map(len, parts)) >= SHORTEST_NUMBER:
            found |= {tuple(parts), tuple(parts[::-1])}
        parts += [component.strip() for component in re.split(r"[\^,=]+", name)]
        parts += [piece for part in parts if "-" in part for piece in part.split("-")]
    return found | {
        (part,) for part in parts if len(part) >= SHORTEST_PART and part.lower().strip(".") not in _PARTICLES
    }


def _pattern(words: _Words) -> str:
    if len(words) == 1 and words[0].isdigit() and len(words[0]) >= SHORTEST_NUMBER:
        return "0*" + r"[ .-]?".join(words[0])
    return r"[\s,^.-]+".join(map(_spellings, words))


def _spellings(name: str) -> str:
    """Return a pattern for all spellings of a name."""
    lower, pieces, at = name.lower(), [], 0
    while at < len(lower):
        pair = lower[at : at + 2]
        if pair in _DIGRAPHS:
            pieces.append(_DIGRAPHS[pair])
            at += 2
        elif re.match(r"[\s^,]", lower[at]):
            pieces.append(_GAP)
            at += len(re.match(r"[\s^,]+", lower[at:]).group())  # type: ignore[union-attr]
        else:
            pieces.append(_letter(lower[at]))
            at += 1
    return "".join(pieces)


def _letter(letter: str) -> str:
    if letter in _SINGLE:
        return _SINGLE[letter]
    if letter in "'\u2019`\u00b4":
        return "['\u2019`\u00b4 ]?"
    if letter == "-":
        return r"[\s-]*"
    base = _base(letter)
    variants = _variants().get(base, "")
    return f"[{base}{variants}]" if variants else re.escape(letter)


def _base(letter: str) -> str:
    return _BASES.get(letter, unicodedata.normalize("NFKD", letter)[0])


@cache
def _variants() -> dict[str, str]:
    """Return plain letter -> the letters of Europe's alphabets that are it with a mark."""
    found: dict[str, str] = {}
    for code in range(0xC0, 0x180):
        letter = chr(code)
        base = _base(letter)
        if letter.islower() and base.isascii() and base.isalpha() and base != letter:
            found[base] = found.get(base, "") + letter
    return found
