"""WordPiece tokenizer trained on the corpus, or one loaded from a local Hugging Face folder.

Guarantee: the same texts and size give the same vocabulary in every process; saving and loading changes no token;
nothing is fetched from a network.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from medvlp.errors import UserError
from medvlp.text.sections import sentence_spans

if TYPE_CHECKING:
    from tokenizers import Encoding
    from tokenizers import Tokenizer as Backend

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_FILE = "tokenizer.json"
_TRUNCATION = threading.Lock()
"""Truncation is a state of the library's tokenizer, and several threads make batches."""


class Tokenizer:
    """Texts -> token ids. Build it with `train` or `from_folder`."""

    def __init__(self, backend: Backend, pad_token: str = "[PAD]", mask_token: str | None = "[MASK]") -> None:  # noqa: S107
        pad_id = backend.token_to_id(pad_token)
        if pad_id is None:
            raise UserError(
                f"The tokenizer has no padding token '{pad_token}'.",
                fix="Name the padding token in tokenizer_config.json.",
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend
        self.pad_token, self.mask_token = pad_token, mask_token
        self.pad_id: int = pad_id
        self.mask_id: int | None = backend.token_to_id(mask_token) if mask_token else None

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Train lower-case WordPiece on texts (BERT's normalisation and word split).

        Args:
            texts: The corpus; its order does not matter.
            vocab_size: Largest number of tokens, the five special ones included.

        Raises:
            UserError: There is no text, or the vocabulary is too small for the characters of the corpus.
        """
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

        words: Counter[str] = Counter()
        normalizer = normalizers.BertNormalizer(lowercase=True)
        splitter = pre_tokenizers.BertPreTokenizer()
        for text in texts:
            words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
        if not words:
            raise UserError(
                "There is no text to train a tokenizer on.",
                fix="Check that the reports have findings or an impression.",
            )
        needed = len(SPECIAL_TOKENS) + len({word[0] for word in words}) + len({c for word in words for c in word[1:]})
        if vocab_size < needed:
            raise UserError(
                f"A vocabulary of {vocab_size} tokens is too small: characters and special tokens alone take {needed}.",
                "vocab_size",
                f"Use at least {needed}; 4096 suits a few thousand reports.",
            )
        # The trainer numbers the characters in the order of a hash table and breaks ties by number, so that two runs
        # would differ. Handing it the characters in a fixed order, as "special tokens" of a throw-away model, makes it
        # exact.
        heads, tails = sorted({word[0] for word in words}), sorted({char for word in words for char in word[1:]})
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=[*SPECIAL_TOKENS, *heads, *(f"##{char}" for char in tails)],
            show_progress=False,
        )
        drafted = Backend(models.WordPiece(unk_token=SPECIAL_TOKENS[1]))
        drafted.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        drafted.train_from_iterator((" ".join([word] * count) for word, count in sorted(words.items())), trainer)
        model = models.WordPiece(drafted.get_vocab(), unk_token=SPECIAL_TOKENS[1], max_input_chars_per_word=100)
        backend = Backend(model)
        backend.normalizer, backend.pre_tokenizer = normalizer, splitter
        backend.decoder = decoders.WordPiece()
        backend.add_special_tokens(list(SPECIAL_TOKENS))
        cls_id, sep_id = backend.token_to_id("[CLS]"), backend.token_to_id("[SEP]")
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", cls_id), ("[SEP]", sep_id)],
        )
        return cls(backend)

    @classmethod
    def from_folder(cls, path: str | Path) -> Tokenizer:
        """Load a tokenizer that `save` wrote, or any local Hugging Face folder with a tokenizer.

        Raises:
            UserError: The folder is missing or holds no tokenizer that the `tokenizers` library can run.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(
                "There is no tokenizer folder.", folder, "Give a local folder with tokenizer.json or vocab.txt."
            )
        names = _special_names(folder)
        try:
            if (folder / _FILE).is_file() and "pad_token" in names:
                from tokenizers import Tokenizer as Backend

                return cls(Backend.from_file(str(folder / _FILE)), names["pad_token"], names.get("mask_token"))
            from transformers import AutoTokenizer

            loaded = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        except UserError:
            raise
        except Exception as error:  # the libraries raise many kinds, bare Exception among them
            raise UserError(
                f"The tokenizer cannot be read: {error}",
                folder,
                "Give a folder with tokenizer.json, or vocab.txt and config.json.",
            ) from error
        backend = getattr(loaded, "backend_tokenizer", None)
        if backend is None or loaded.pad_token is None:
            raise UserError(
                "The tokenizer is a slow one or has no padding token.",
                folder,
                "Convert it to a tokenizer.json that has one.",
            )
        return cls(backend, loaded.pad_token, loaded.mask_token)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and the two small files with which transformers loads it, too."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        names = {"pad_token": self.pad_token} | ({"mask_token": self.mask_token} if self.mask_token else {})
        if all(self._backend.token_to_id(token) is not None for token in SPECIAL_TOKENS):
            names |= {"unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        (target / _FILE).write_text(self._backend.to_str(pretty=True) + "\n", encoding="utf-8")
        (target / "special_tokens_map.json").write_text(json.dumps(names, indent=2) + "\n", encoding="utf-8")
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
        (target / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def encode(
        self, texts: Sequence[str], max_tokens: int
    ) -> tuple[Int[np.ndarray, "b l"], Bool[np.ndarray, "b l"], Int[np.ndarray, "b l"]]:
        """Return ids, mask (True at real tokens) and word ids of texts, padded to the longest of them.

        Args:
            texts: `b` texts.
            max_tokens: Longer texts are cut; special tokens count.

        Returns:
            ids, mask, word_ids: `[b l]`; a word id is the number of the word (punctuation is a word) in its text, -1 at
            special tokens and pads.
        """
        special = self._backend.num_special_tokens_to_add(False)
        if max_tokens <= special:
            raise UserError(
                f"max_tokens {max_tokens} leaves no room for text.", "max_tokens", f"Use more than {special}."
            )
        encodings = self._encoded(texts, max_tokens)
        length = max((len(encoding.ids) for encoding in encodings), default=0)
        ids = np.full((len(encodings), length), self.pad_id, dtype=np.int64)
        mask = np.zeros((len(encodings), length), dtype=bool)
        word_ids = np.full((len(encodings), length), -1, dtype=np.int64)
        for row, encoding in enumerate(encodings):
            n = len(encoding.ids)
            ids[row, :n] = encoding.ids
            mask[row, :n] = True
            word_ids[row, :n] = [-1 if word is None else word for word in encoding.word_ids]
        return ids, mask, word_ids

    def sentence_ids(self, texts: Sequence[str], max_tokens: int) -> Int[np.ndarray, "b l"]:
        """Return the number of the sentence (see `sentence_spans`) that each token of `encode` lies in.

        Args:
            texts: As given to `encode`.
            max_tokens: As given to `encode`.

        Returns:
            `[b l]`, from 0 in each text, -1 at special tokens and pads.
        """
        encodings = self._encoded(texts, max_tokens)
        numbers = np.full((len(encodings), max((len(own.ids) for own in encodings), default=0)), -1, dtype=np.int64)
        for row, (text, own) in enumerate(zip(texts, encodings, strict=True)):
            starts = [start for start, _ in sentence_spans(text)]
            places = np.array([start for start, _ in own.offsets], dtype=np.int64)
            found = np.searchsorted(starts, places, side="right") - 1
            inside = np.array(own.special_tokens_mask) == 0
            numbers[row, : len(own.ids)] = np.where(inside, found.clip(min=0), -1)
        return numbers

    def token_spans(self, text: str, spans: Sequence[tuple[int, int]], max_tokens: int) -> list[tuple[int, int] | None]:
        """Return which tokens each character span of a text covers, as (first, last + 1) in `encode`'s row of the text.

        The class token counts, so that the numbers index what a text tower returns.

        Args:
            text: The text as given to `encode`.
            spans: Character spans (start, end).
            max_tokens: As given to `encode`.

        Returns:
            None for a span of which `max_tokens` cuts off any part, or that holds no token.
        """
        (encoding,) = self._encoded([text], max_tokens)
        tokens = [
            (number, start, end)
            for number, ((start, end), special) in enumerate(
                zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
            )
            if not special and end > start
        ]
        reach = max((end for _, _, end in tokens), default=0)
        found: list[tuple[int, int] | None] = []
        for first, last in spans:
            inside = [number for number, start, end in tokens if start < last and first < end]
            whole = inside and (last <= reach or not text[reach:last].strip())
            found.append((inside[0], inside[-1] + 1) if whole else None)
        return found

    def _encoded(self, texts: Sequence[str], max_tokens: int) -> list[Encoding]:
        """Return the encodings of texts; threads of a loader share the backend, whose limit is a state of it."""
        with _TRUNCATION:
            self._backend.enable_truncation(max_tokens)
            encodings = self._backend.encode_batch(list(texts))
            self._backend.no_truncation()
        return list(encodings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids without special tokens."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Return the token strings of ids."""
        return [self._backend.id_to_token(int(i)) or "" for i in ids]

    @property
    def vocab_size(self) -> int:
        """Number of rows that an embedding of this tokenizer needs: the largest id plus one."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def hash(self) -> str:
        """SHA-256 of everything that decides the tokens."""
        content = json.dumps(json.loads(self._backend.to_str()), sort_keys=True)
        return hashlib.sha256(f"{content}|{self.pad_token}|{self.mask_token}".encode()).hexdigest()


def _special_names(folder: Path) -> dict[str, str]:
    """Return the special tokens that the JSON files of a tokenizer folder name."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        if not (folder / file).is_file():
            continue
        try:
            content = json.loads((folder / file).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(
                f"The file is no JSON: {error}", folder / file, "Copy the tokenizer folder again."
            ) from error
        for key in ("pad_token", "mask_token"):
            token = content.get(key)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                names[key] = token
    return names
