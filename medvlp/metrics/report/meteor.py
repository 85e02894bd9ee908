"""METEOR 1.5 for English without Java, from counts per sample.

Guarantee: equals `meteor-1.5.jar -l en -norm` (Denkowski and Lavie, WMT 2014: exact words, Snowball stems, WordNet
synonyms, paraphrases; function words discounted; the parameters tuned for ranking), its treatment of punctuation as
words included. Word lists and paraphrases are read from the official files, which are not part of medvlp; without them
there is no value. METEOR of a set follows from the sum of its samples' counts, as the program computes it: it is not
the mean of the samples' values.
"""

from __future__ import annotations

import gzip
import importlib.util
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError
from medvlp.metrics.report._meteor_alignment import Match, align
from medvlp.metrics.report._meteor_words import Normaliser

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.metrics.report.pairs import TextPairs

JAR, TABLE = "meteor-1.5.jar", "data/paraphrase-en.gz"
"""Official files below a folder; the jar holds the word lists."""
ALPHA, BETA, GAMMA, DELTA = 0.85, 0.20, 0.60, 0.75
WEIGHTS = np.array([1.0, 0.6, 0.8, 0.6])
"""Of exact words, stems, synonyms and paraphrases."""
_STAGES = len(WEIGHTS)
_NOUN_VERB_ADJECTIVE_ENDINGS = (
    *(
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    *(("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)
"""WordNet's rules of detachment, in its order."""


def meteor_folder(folder: Path | None = None) -> Path:
    """Return the folder with the official files: the given one, else that of the installed package pycocoevalcap.

    Raises:
        UserError: A file is missing.
    """
    if folder is None:
        package = importlib.util.find_spec("pycocoevalcap")
        places = list(package.submodule_search_locations or ()) if package else []
        folder = Path(places[0] if places else "pycocoevalcap") / "meteor"
    for name in (JAR, TABLE):
        if not (folder / name).is_file():
            raise UserError(
                f"METEOR 1.5 has no {name}.",
                folder,
                "Run pip install 'medvlp[meteor]', which brings the official files (Java is not needed), or name a "
                f"folder that holds {JAR} and {TABLE}; or leave METEOR out.",
            )
    return folder


class Meteor:
    """What METEOR knows about the words of some texts.

    Args:
        words: Words that will be compared; paraphrases of other words are not kept.
        folder: See `meteor_folder`.
    """

    def __init__(self, words: Iterable[str], folder: Path) -> None:
        from nltk.stem.snowball import EnglishStemmer

        with zipfile.ZipFile(folder / JAR) as jar:
            exceptions, synsets, function = (
                jar.read(name).decode().splitlines()
                for name in ("synonym/english.exceptions", "synonym/english.synsets", "function/english.words")
            )
        self.function_words = frozenset(function)
        self._synsets = {word: frozenset(sets.split()) for word, sets in zip(synsets[::2], synsets[1::2], strict=True)}
        self._bases: dict[str, list[str]] = {}
        for base, forms in zip(exceptions[::2], exceptions[1::2], strict=True):
            for form in forms.split():
                self._bases.setdefault(form, []).append(base)
        self.stem = cache(EnglishStemmer().stem)
        self.meanings = cache(self._meanings)
        self.paraphrases: Mapping[tuple[str, ...], list[tuple[str, ...]]] = _paraphrases(folder / TABLE, set(words))
        self.longest = max(map(len, self.paraphrases), default=0)

    def _meanings(self, word: str) -> frozenset[str]:
        own = self._synsets.get(word, frozenset())
        return own.union(*(self._synsets.get(base, frozenset()) for base in self._bases.get(word, [self._base(word)])))

    def _base(self, word: str) -> str:
        """Return the base form of a word by WordNet's rules; empty where no rule leads to a word."""
        if word.endswith("ss") or len(word) <= 2:
            return word
        # METEOR takes the endings off the stem of "...ful", but then cuts and looks up the whole word.
        cut = word.removesuffix("ful")
        suffix = word[len(cut) :]
        for ending, replacement in _NOUN_VERB_ADJECTIVE_ENDINGS:
            if cut.endswith(ending):
                base = word[: len(word) - len(ending)] + replacement
                if base in self._synsets:
                    return base + suffix
        return ""


def _paraphrases(table: Path, words: set[str]) -> dict[tuple[str, ...], list[tuple[str, ...]]]:
    """Return the lines of the table all of whose words are among the given ones."""
    found: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    with gzip.open(table, "rt", encoding="utf-8", newline="\n") as lines:
        for _, phrase, other in zip(lines, lines, lines, strict=True):
            own = phrase.split()
            if words.issuperset(own) and words.issuperset(others := other.split()):
                found.setdefault(tuple(own), []).append(tuple(others))
    return found


def read_normaliser(folder: Path) -> Normaliser:
    """Return METEOR's way to split text into words."""
    with zipfile.ZipFile(folder / JAR) as jar:
        return Normaliser(jar.read("nonbreaking/english.prefixes").decode().splitlines())


def meteor_counts(pairs: TextPairs, folder: Path | None = None) -> Float[np.ndarray, "n 22"]:
    """Return the counts of each sample against the reference for which METEOR is highest.

    Columns: words and function words of text and reference (4); for each stage matched content words and matched
    function words, of the text and of the reference (16); chunks, 0 where the text equals the reference; mean of the
    matched words of both.

    Raises:
        UserError: See `meteor_folder`, or a file is broken.
    """
    folder = meteor_folder(folder)
    try:
        split = read_normaliser(folder).words
        texts = [split(text) for text in pairs.generated]
        references = [split(text) for text in pairs.reference_texts]
        lexicon = Meteor({word for words in (*texts, *references) for word in words}, folder)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        fix = f"Copy {JAR} and {TABLE} of METEOR 1.5 again."
        raise UserError(f"The files of METEOR cannot be read: {error}.", folder, fix) from error
    counts = np.zeros((len(texts), 4 + 4 * _STAGES + 2))
    best = np.full(len(texts), -1.0)
    for sample, reference in zip(pairs.owner, references, strict=True):
        row = _counts(texts[sample], reference, lexicon)
        if (value := float(meteor(row))) > best[sample]:
            best[sample], counts[sample] = value, row
    return counts


def _counts(text: list[str], reference: list[str], lexicon: Meteor) -> Float[np.ndarray, " 22"]:
    matches = align(text, reference, lexicon)
    function = [[word in lexicon.function_words for word in words] for words in (text, reference)]
    stages = np.zeros((_STAGES, 2, 2))  # stage, content or function word, text or reference
    for match in matches:
        spans = ((match.at, match.length), (match.start, match.width))
        for side, (start, length) in enumerate(spans):
            for place in range(start, start + length):
                stages[match.stage, int(function[side][place]), side] += 1
    lengths = [len(text), len(reference)]
    chunks = _chunks(matches)
    if chunks == 1 and stages.sum(axis=(0, 1)).tolist() == lengths:
        chunks = 0
    return np.array([*lengths, *map(sum, function), *stages.ravel(), chunks, stages.sum() / 2])


def _chunks(matches: list[Match]) -> int:
    """Return in how many runs the matches follow each other in both sentences."""
    ends = [(match.start + match.width, match.at + match.length) for match in matches]
    return sum(end != (match.start, match.at) for end, match in zip([(-1, -1), *ends], matches, strict=False))


def meteor(counts: Float[np.ndarray, "*set 22"]) -> Float[np.ndarray, "*set"]:
    """Return METEOR of summed `meteor_counts`, or of those of single samples; 0 where nothing matches."""
    lengths, function = counts[..., :2], counts[..., 2:4]
    stages = counts[..., 4:-2].reshape(*counts.shape[:-1], _STAGES, 2, 2)
    chunks, matched = counts[..., -2], counts[..., -1]
    importance = np.array([DELTA, 1 - DELTA])
    weighted = np.einsum("...swt,s,w->...t", stages, WEIGHTS, importance)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = weighted / (importance[0] * (lengths - function) + importance[1] * function)
        precision, recall = share[..., 0], share[..., 1]
        mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
        value = mean * (1 - GAMMA * (chunks / matched) ** BETA)
    return np.maximum(np.nan_to_num(value, nan=0.0), 0.0)
