"""What a method must know of data and tokenizer before it is built.

Guarantee: saved with a model, it rebuilds the method exactly; nothing in it names a machine or a patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from medvlp.errors import UserError
from medvlp.knowledge.table import ConceptTable
from medvlp.types import TextBatch

if TYPE_CHECKING:
    from medvlp.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class MethodContext:
    """Vocabulary, label columns and concepts.

    Args:
        vocab_size: Tokens of the tokenizer.
        pad_id: Its padding token.
        label_names: Columns of `batch.labels` and `batch.text.labels`.
        concepts: Rows of `batch.text.concepts`, where the method asks for concepts.
        tokenizer: The tokenizer, for methods that read texts of their own (books).
    """

    vocab_size: int = 0
    pad_id: int = 0
    label_names: tuple[str, ...] = ()
    concepts: ConceptTable | None = None
    tokenizer: Tokenizer | None = None

    @classmethod
    def of(
        cls, tokenizer: Tokenizer | None, label_names: Sequence[str] = (), concepts: ConceptTable | None = None
    ) -> MethodContext:
        """Return the context of a tokenizer, or of none."""
        size, pad = (0, 0) if tokenizer is None else (tokenizer.vocab_size, tokenizer.pad_id)
        return cls(size, pad, tuple(label_names), concepts, tokenizer)

    @property
    def mask_id(self) -> int:
        """The token that stands for a hidden one.

        Raises:
            UserError: The tokenizer has none.
        """
        mask_id = None if self.tokenizer is None else self.tokenizer.mask_id
        if mask_id is None:
            raise UserError("The tokenizer has no mask token.", "method.text", "Use a tokenizer with [MASK] or <mask>.")
        return mask_id

    def tokenise(self, texts: Sequence[str], max_tokens: int, sentences: bool = False) -> TextBatch:
        """Return texts of the method's own as tokens, padded to the longest.

        Args:
            texts: Any texts.
            max_tokens: Longer texts are cut.
            sentences: Say which sentence each token lies in.

        Raises:
            UserError: There is no tokenizer.
        """
        if self.tokenizer is None:
            raise UserError("The method reads texts of its own and needs a tokenizer.", "method.text", "Give reports.")
        ids, mask, word_ids = self.tokenizer.encode(list(texts), max_tokens)
        tensors = (torch.from_numpy(array) for array in (ids, mask, word_ids))
        ids_, mask_, words = tensors
        numbers = torch.from_numpy(self.tokenizer.sentence_ids(texts, max_tokens)) if sentences else None
        return TextBatch(ids_, mask_, texts=list(texts), word_ids=words, sentence_ids=numbers)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the tokenizer as JSON types."""
        return {
            "vocab_size": self.vocab_size,
            "pad_id": self.pad_id,
            "label_names": list(self.label_names),
            "concepts": None if self.concepts is None else self.concepts.to_json(),
        }

    @classmethod
    def from_json(cls, described: dict[str, Any], tokenizer: Tokenizer | None) -> MethodContext:
        """Inverse of `to_json`."""
        concepts = described["concepts"]
        return cls(
            described["vocab_size"],
            described["pad_id"],
            tuple(described["label_names"]),
            None if concepts is None else ConceptTable.from_json(concepts),
            tokenizer,
        )
