"""TriBERT's text tower: a BERT that reads a token before each sentence, with the sentence as type of its tokens.

Guarantee: a saved tower is built again from its own configuration; a report is read the same whatever texts stand
beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.sentences import SentenceLimits, SentenceText, lay_out, sentence_mask
from medvlp.models.text import TextTower
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float


class SentenceTower(TextTower):
    """The lower part of TriBERT (VELVET-Med, arXiv 2508.12108), which sees no image.

    Tokens of sentences have the ids behind the vocabulary; the type of a token is the number of its sentence. What a
    folder's model has no rows for starts at random (tokens) or as its first type (types).

    Args:
        config: As for `TextTower`; `pool` is cls.
        vocab_size: Tokens of the tokenizer.
        pad_id: Its padding token.
        sentences: Most sentences of a report.
        sentence_tokens: See `SentenceLimits`.
        legacy_mask: See `sentence_mask`.

    Raises:
        UserError: A tower that is no BERT, is frozen, or is pooled otherwise.
    """

    def __init__(
        self,
        config: TextTowerConfig,
        vocab_size: int,
        pad_id: int,
        sentences: int,
        sentence_tokens: int,
        legacy_mask: bool = False,
    ) -> None:
        super().__init__(config, vocab_size, pad_id)
        if self.family != "bert" or config.pool != "cls":
            raise UserError("TriBERT is a BERT, and reads a report off [CLS].", "method.text", "Set pool: cls.")
        if config.freeze or config.freeze_layers:
            raise UserError(
                "The tokens of sentences are new, and would stay random in a frozen tower.",
                "method.text.freeze",
                "Set freeze: false and freeze_layers: 0.",
            )
        self.first_sentence_id, self.legacy_mask = vocab_size, legacy_mask
        self.limits = SentenceLimits(config.max_tokens, sentences, sentence_tokens)
        self._make_room(vocab_size + sentences, sentences + 1)

    def _make_room(self, tokens: int, types: int) -> None:
        if self.model.get_input_embeddings().num_embeddings < tokens:
            self.model.resize_token_embeddings(tokens, mean_resizing=False)
        table = self.model.embeddings.token_type_embeddings
        if table.num_embeddings < types:
            wider = nn.Embedding(types, table.embedding_dim)
            with torch.no_grad():
                wider.weight.copy_(table.weight[:1])
                wider.weight[: len(table.weight)] = table.weight
            self.model.embeddings.token_type_embeddings = wider
            self.model.config.type_vocab_size = types

    def lay_out(self, text: TextBatch) -> SentenceText:
        """Return texts with the tokens of sentences; of too many sentences random ones while training."""
        return lay_out(text, self.first_sentence_id, self.pad_id, self.limits, draw=self.training)

    def sees(self, text: SentenceText) -> torch.Tensor:
        """Return which token sees which, `[b l l]`."""
        return sentence_mask(text.types, self.legacy_mask and text.types.shape[1] == self.limits.tokens)

    def states(self, text: SentenceText) -> Float[torch.Tensor, "b l d"]:
        """Return the last layer's states of laid-out texts."""
        embedded = self.model.embeddings(input_ids=text.ids, token_type_ids=text.types)
        return self.encode_embedded(embedded, self.sees(text))

    def forward(self, text: TextBatch) -> TextFeatures:
        """Return the states and [CLS] of texts; see `lay_out` for where the tokens stand."""
        laid = self.lay_out(text)
        tokens = self.states(laid)
        return TextFeatures(tokens, tokens[:, 0], laid.mask, laid.word_ids)
