"""Left and right swapped, for an image that is mirrored.

Guarantee: swapping twice gives the text back. What is named by a side but does not lie there in the picture keeps its
name: the chambers of the heart and their vessels ("left atrium", "right ventricular enlargement").
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_PAIRS = (
    ("left", "right"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
    ("levoscoliosis", "dextroscoliosis"),
    ("levoconvex", "dextroconvex"),
    ("lll", "rll"),
    ("lul", "rul"),
    ("lml", "rml"),
)
_OTHER = {word: other for pair in _PAIRS for word, other in (pair, pair[::-1])}
_SIDE = re.compile(
    r"(?<![a-z])(?:" + "|".join(sorted(_OTHER, key=len, reverse=True)) + r")(?![a-z])"
    r"(?!(?:[ -]sided)?[ -](?:atri|ventric|auric|main coronary|bundle|heart (?:failure|strain)))",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<![A-Za-z])(left|right)(?![A-Za-z])", re.IGNORECASE)


def swap_sides(text: str) -> str:
    """Return what a text says of the mirrored image."""
    return _SIDE.sub(lambda match: _cased(_OTHER[match[0].lower()], match[0]), text)


def mirrored_order(names: Sequence[str]) -> list[int | None]:
    """Return for each name the number of the one that it becomes in a mirrored image: itself where it names no side.

    None where its counterpart is not among the names (the middle lobe of the right lung), or where it is a chamber.

    Args:
        names: Labels, or entries of the anatomy book (`left_hilar`, `lower_right_lobe`, ...).
    """
    numbers = {name: number for number, name in enumerate(names)}
    order: list[int | None] = []
    for number, name in enumerate(names):
        if not _NAME.search(name.replace("_", " ")) or re.search(r"atri|ventric", name, re.IGNORECASE):
            order.append(number)
            continue
        spaced = _NAME.sub(lambda match: _cased(_OTHER[match[0].lower()], match[0]), name.replace("_", " "))
        order.append(numbers.get(spaced.replace(" ", "_") if "_" in name else spaced))
    return order


def _cased(word: str, like: str) -> str:
    return word.upper() if like.isupper() else word.capitalize() if like[:1].isupper() else word
