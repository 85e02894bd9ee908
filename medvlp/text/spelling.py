"""One spelling for words that differ in case, number, hyphens, or British and American English.

Guarantee: it is for comparing only, and rough on purpose: two spellings of a term become equal, while the result need
not be a word.
"""

from __future__ import annotations

import re
from functools import lru_cache

WORD = re.compile(r"[^\W_]+(?:'s(?!\w))?")
"""A word; hyphens and slashes part words."""

_AMERICAN = (
    (re.compile(r"(?<!\w)oe(?=dema|soph|str)|(?<=diarrh)oe|(?<=pn)oe|(?<=f)oe(?=t)|(?<=c)oe(?=l)"), "e"),
    (re.compile(r"(?<=h|n)ae(?=m)|ae(?=mi[ac])|(?<=p)ae(?=d)|(?<=[cf])ae(?=c)|(?<=sch)ae|(?<=an)ae(?=sth)"), "e"),
    (re.compile(r"(?<=tum|col)our"), "or"),
    (re.compile(r"(?<=fib|lit)re(?!\w)|(?<=cent|goit)re(?!\w)"), "er"),
    (re.compile(r"(?<=[a-z]{3}i)s(?=e[ds]?(?!\w)|ation|ing(?!\w))"), "z"),
    (re.compile(r"(?<!\w)sulph"), "sulf"),
)
_PLURALS = {
    "apices": "apex", "hila": "hilum", "diverticula": "diverticulum", "septa": "septum", "sulci": "sulcus",
    "bronchi": "bronchus", "thrombi": "thrombus", "emboli": "embolus", "foci": "focus", "nuclei": "nucleus",
    "vertebrae": "vertebra", "pleurae": "pleura", "bullae": "bulla", "scapulae": "scapula", "feet": "foot",
    "teeth": "tooth", "viscera": "viscus", "fungi": "fungus", "bacteria": "bacterium", "thoraces": "thorax",
    "calyces": "calyx", "lumens": "lumen", "lumina": "lumen", "stigmata": "stigma", "men": "man",
}  # fmt: skip
_SIS = re.compile(r"(?:(?<=o)|(?<=ly)|(?<=ecta)|(?<=sta)|(?<=the))ses\Z")
_SINGULAR = re.compile(r"(?:ss|us|is)\Z")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return the form of a lower-case word that its spellings share: lungs -> lung, oedema -> edema, masses -> mass."""
    word = _singular(word.removesuffix("'s"))
    for pattern, american in _AMERICAN:
        word = pattern.sub(american, word)
    return word


def _singular(word: str) -> str:
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith("omata"):
        return word.removesuffix("ta")
    if len(word) > 4 and word.endswith("ies"):
        return f"{word[:-3]}y"
    if len(word) > 5 and word.endswith(("xes", "sses", "shes", "ches", "zes")):
        return word[:-2]
    if len(word) > 5 and _SIS.search(word):
        return f"{word[:-2]}is"
    if len(word) > 3 and word.endswith("s") and not _SINGULAR.search(word):
        return word[:-1]
    return word


def words_of(text: str) -> list[tuple[str, int, int]]:
    """Return (stem, start, end) of every word of a text."""
    lowered = text.lower()
    if len(lowered) != len(text):  # a few capitals become two letters: keep the places
        lowered = "".join(char.lower() if len(char.lower()) == 1 else char for char in text)
    return [(stem(match.group()), match.start(), match.end()) for match in WORD.finditer(lowered)]
