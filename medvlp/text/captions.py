"""Which captions and sentences are worth training on.

Guarantee: a text is left out for a reason that has a name, so that a data set's losses can be counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from medvlp.text.spelling import WORD


def caption_fault(text: str | None, min_words: int = 3) -> str | None:
    """Return why a text is of no use: "empty", "no letters" or "too short"; None where it is.

    Args:
        text: A caption, sentence or section.
        min_words: Fewer words than this are too short; 3 as in M3AE and ARL.
    """
    if text is None or not text.strip():
        return "empty"
    words = WORD.findall(text)
    if not any(char.isalpha() for char in text):
        return "no letters"
    return "too short" if len(words) < min_words else None


def usable_captions(
    texts: Iterable[tuple[str, str | None]], counts: Counter[str] | None = None, min_words: int = 3
) -> Iterator[tuple[str, str]]:
    """Yield (id, text) of usable captions, each text of an id once; `counts` takes why the others were left out."""
    seen: set[tuple[str, str]] = set()
    for name, text in texts:
        fault = caption_fault(text, min_words)
        key = (name, " ".join((text or "").lower().split()))
        if fault is None and key in seen:
            fault = "repeated"
        if fault is None and text is not None:
            seen.add(key)
            yield name, text
        elif counts is not None and fault is not None:
            counts[fault] += 1
