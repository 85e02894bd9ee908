"""Report text -> words with blanks between them, by the two rules that published scores use.

Guarantee: the same text always gives the same result; nothing is learnt from data.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from medvlp.errors import UserError, nearest

_NO_WORD = re.compile(r"[^a-z0-9]+")
_R2GEN_QUOTES = re.compile(r"""["'/\\]""")
_R2GEN_DROPPED = re.compile(r"[].,?;*!%^&_+():-[{}]")
"""R2Gen's own class has the range `:-[`, so that `; < = > ? @` go and the hyphen stays."""
_R2GEN_REPLACED = (
    *[("..", ".")] * 3,
    ("1. ", ""),
    *((f". {number}. ", ". ") for number in range(2, 6)),
    *((f" {number}. ", ". ") for number in range(2, 6)),
)
"""Applied one after the other; enumerations of more than five points keep their numbers."""


def simple_text(text: str) -> str:
    """Return the runs of letters a to z and digits, in lower case, joined by single blanks."""
    return _NO_WORD.sub(" ", text.lower()).strip()


def r2gen_text(text: str) -> str:
    """Return the text by which R2Gen and BenchX score IU X-Ray, with " . " at the end of each sentence.

    `clean_report_iu_xray` of R2Gen (cuhksz-nlp/R2Gen, `modules/tokenizers.py`): enumeration is removed, sentences end
    at a full stop with a blank, other marks vanish without leaving a blank ("effusion,pneumothorax" is one word).
    Blanks may be doubled, and ROUGE-L then counts an empty word. R2Gen itself scores text that was words in between:
    `" ".join(r2gen_text(text).split())`.
    """
    for old, new in _R2GEN_REPLACED:
        text = text.replace(old, new)
    sentences = (_R2GEN_QUOTES.sub("", sentence).strip() for sentence in text.strip().lower().split(". "))
    return " . ".join(_R2GEN_DROPPED.sub("", sentence) for sentence in sentences) + " ."


TOKENISERS: Mapping[str, Callable[[str], str]] = {"simple": simple_text, "r2gen": r2gen_text}
"""Name, as a task gives it -> rule."""


def tokeniser(name: str) -> Callable[[str], str]:
    """Return a rule by its name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in TOKENISERS:
        what = f"There is no rule '{name}' that splits a report into words.{nearest(name, list(TOKENISERS))}"
        raise UserError(what, fix=f"Use one of: {', '.join(TOKENISERS)}.")
    return TOKENISERS[name]
