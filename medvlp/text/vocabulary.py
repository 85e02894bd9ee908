"""Tokens of reports: whole words of the training reports, or those of a local Hugging Face folder.

Guarantee: the same reports give the same numbers, whatever their order. Of words, token 0 begins, ends and
fills a text, as in R2Gen (Chen et al., EMNLP 2020), and those that are too rare are one unknown word.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from medvlp.errors import UserError
from medvlp.text.report_words import sentence_text

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

UNKNOWN = "<unk>"
WORDS, TOKENIZER = "words.json", "tokenizer"
"""Where tokens are saved."""
_BEFORE_MARK = re.compile(r" (?=[.,;:](?:\s|$))")


class ReportTokens(Protocol):
    """Texts of reports as tokens, and back."""

    size: int
    """Largest token plus one."""
    begin_id: int
    end_id: int
    banned: tuple[int, ...]
    """Tokens that say nothing to a reader: generation may leave them out."""

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """Return ids and mask (True at real tokens): the beginning, words and the end, cut to `max_tokens`."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated tokens up to the first end token."""

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides the tokens."""

    def save(self, folder: Path) -> None:
        """Write what `load_tokens` reads."""


class WordVocabulary:
    """Numbers of words.

    Args:
        words: All words; `UNKNOWN` is added.
        split: Text -> its words with blanks between them.
    """

    def __init__(self, words: Iterable[str], split: Callable[[str], str] = sentence_text) -> None:
        self._words = sorted({*words, UNKNOWN})
        self._number = {word: number for number, word in enumerate(self._words, start=1)}
        self._split = split
        self.size = len(self._words) + 1
        self.begin_id = self.end_id = 0
        self.banned: tuple[int, ...] = (self._number[UNKNOWN],)

    @classmethod
    def build(cls, texts: Iterable[str], min_count: int, split: Callable[[str], str] = sentence_text) -> WordVocabulary:
        """Return the words that stand in the texts `min_count` times or more.

        Raises:
            UserError: There are fewer than two: nothing could be told apart.
        """
        counts = Counter(word for text in texts for word in split(text).split())
        kept = [word for word, count in counts.items() if count >= min_count]
        if len(kept) < 2:
            raise UserError(
                f"Of {len(counts)} words in the training reports, {len(kept)} stand there {min_count} times or more.",
                "reports.min_count",
                "Give more training reports, other sections, or a lower min_count.",
            )
        return cls(kept, split)

    def known(self, text: str) -> tuple[list[str], list[str]]:
        """Return the words of a text that have a number of their own, and those that have none."""
        words = self._split(text).split()
        return [word for word in words if word in self._number], [word for word in words if word not in self._number]

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """See `ReportTokens.encode`; rows are as long as the longest."""
        unknown = self._number[UNKNOWN]
        rows = [
            [self.begin_id, *(self._number.get(word, unknown) for word in self._split(text).split()), self.end_id]
            for text in texts
        ]
        return _padded([row[:max_tokens] for row in rows], self.end_id)

    def decode(self, ids: Sequence[int]) -> str:
        """See `ReportTokens.decode`; marks stand behind their word without a blank."""
        told = itertools.takewhile(lambda number: number != self.end_id, map(int, ids))
        words = [self._words[number - 1] for number in told]
        return _BEFORE_MARK.sub("", " ".join(words))

    @property
    def hash(self) -> str:
        """See `ReportTokens.hash`."""
        return hashlib.sha256("\n".join(self._words).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """See `ReportTokens.save`."""
        text = json.dumps({"words": self._words, "hash": self.hash}, ensure_ascii=False)
        (folder / WORDS).write_text(text + "\n", encoding="utf-8")


class FolderTokens:
    """Tokens of a local Hugging Face folder.

    Args:
        folder: Folder with the tokenizer of a causal language model.

    Raises:
        UserError: There is no tokenizer that transformers can run alone, or none that ends a text.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except Exception as error:  # the libraries raise many kinds, bare Exception among them
            raise UserError(
                f"The tokenizer of the decoder cannot be read: {str(error).splitlines()[0]}",
                folder,
                "Give a folder with tokenizer.json and tokenizer_config.json.",
            ) from error
        if loaded.eos_token_id is None:
            raise UserError("The tokenizer names no token that ends a text.", folder, "Name eos_token in its JSON.")
        self._tokenizer = loaded
        self.size = len(loaded)
        self.end_id: int = loaded.eos_token_id
        self.begin_id: int = self.end_id if loaded.bos_token_id is None else loaded.bos_token_id
        self.banned: tuple[int, ...] = tuple(sorted(set(loaded.all_special_ids) - {self.end_id}))

    def encode(self, texts: Sequence[str], max_tokens: int) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
        """See `ReportTokens.encode`; line breaks become blanks."""
        plain = [" ".join(text.split()) for text in texts]
        rows = self._tokenizer(plain, add_special_tokens=False)["input_ids"] if plain else []
        return _padded([[self.begin_id, *row, self.end_id][:max_tokens] for row in rows], self.end_id)

    def decode(self, ids: Sequence[int]) -> str:
        """See `ReportTokens.decode`."""
        told = list(itertools.takewhile(lambda number: number != self.end_id, map(int, ids)))
        return str(self._tokenizer.decode(told, skip_special_tokens=True)).strip()

    @property
    def hash(self) -> str:
        """See `ReportTokens.hash`."""
        content = self._tokenizer.backend_tokenizer.to_str()
        return hashlib.sha256(f"{content}|{self.begin_id}|{self.end_id}".encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """See `ReportTokens.save`."""
        self._tokenizer.save_pretrained(str(folder / TOKENIZER))


def load_tokens(folder: Path, split: Callable[[str], str]) -> ReportTokens:
    """Return the tokens that `save` wrote.

    Args:
        folder: Where.
        split: Rule of the words.

    Raises:
        UserError: They are missing or damaged.
    """
    if (folder / TOKENIZER).is_dir():
        return FolderTokens(folder / TOKENIZER)
    try:
        described = json.loads((folder / WORDS).read_text(encoding="utf-8"))
        tokens = WordVocabulary(described["words"], split)
        damaged = tokens.hash != described["hash"]
    except (OSError, ValueError, KeyError, TypeError):
        damaged = True
    if damaged:
        raise UserError("The words of the decoder are missing or damaged.", folder / WORDS, "Copy the folder again.")
    return tokens


def _padded(rows: Sequence[Sequence[int]], fill: int) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    mask = np.arange(lengths.max(initial=0)) < lengths[:, None]
    ids = np.full(mask.shape, fill, dtype=np.int64)
    ids[mask] = [number for row in rows for number in row]
    return ids, mask
