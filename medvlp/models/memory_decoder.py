"""R2Gen's encoder-decoder as a decoder of reports: a transformer whose norms follow a relational memory.

Guarantee: forward pass, memory and search equal the released implementation (cuhksz-nlp/R2Gen, which BenchX uses
unchanged); generation reads each token once, with the keys and the memory of those before it. Token 0 begins, ends and
fills a text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.models.relational_memory import Attention, KeysValues, MemoryNorm, RelationalMemory, UnbiasedNorm
from medvlp.models.report_decoder import ReportDecoder, Visual
from medvlp.models.report_search import beam_search, greedy_search

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

MLP_BIAS = 0.1
"""What the biases of the memory-driven norms start from."""


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, linear."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class VisualLayer(nn.Module):
    """Self-attention of visual tokens and a feed-forward part, each behind a norm."""

    def __init__(self, width: int, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.attention, self.feed_forward = Attention(width, heads, dropout), FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(UnbiasedNorm(width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, states: Float[torch.Tensor, "b p d"], seen: Bool[torch.Tensor, "b 1 1 p"] | None
    ) -> Float[torch.Tensor, "b p d"]:
        """Return the states behind the layer."""
        normed = self.norms[0](states)
        states = states + self.dropout(self.attention(normed, self.attention.keys_values(normed), seen))
        return states + self.dropout(self.feed_forward(self.norms[1](states)))


class MemoryLayer(nn.Module):
    """Self-attention of words, attention to the image, a feed-forward part, each behind a memory-driven norm."""

    def __init__(self, width: int, hidden: int, heads: int, memory_width: int, dropout: float) -> None:
        super().__init__()
        self.words, self.image = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.norms = nn.ModuleList(MemoryNorm(width, memory_width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        states: Float[torch.Tensor, "b l d"],
        memory: Float[torch.Tensor, "b l m"],
        image: KeysValues,
        image_seen: Bool[torch.Tensor, "b 1 1 p"] | None,
        words_seen: Bool[torch.Tensor, "b 1 l l"] | None,
        before: KeysValues | None = None,
    ) -> tuple[Float[torch.Tensor, "b l d"], KeysValues]:
        """Return the states behind the layer, and the keys and values of all words read so far.

        Args:
            states: Of new words.
            memory: Behind each of them.
            image: Keys and values of the visual tokens, from `self.image`.
            image_seen: Which of them are real.
            words_seen: Which words a word may look at; None is all.
            before: Keys and values of the words before.
        """
        normed = self.norms[0](states, memory)
        known = self.words.keys_values(normed)
        if before is not None:
            known = (torch.cat([before[0], known[0]], dim=2), torch.cat([before[1], known[1]], dim=2))
        states = states + self.dropout(self.words(normed, known, words_seen))
        states = states + self.dropout(self.image(self.norms[1](states, memory), image, image_seen))
        return states + self.dropout(self.feed_forward(self.norms[2](states, memory))), known


@dataclass
class _Reading:
    """What generation remembers: of every text its memory, keys and values, and of the image what all texts share."""

    image: list[KeysValues]
    image_seen: Bool[torch.Tensor, "n 1 1 p"] | None
    memory: Float[torch.Tensor, "n s d"]
    words: list[KeysValues] = field(default_factory=list)
    place: int = 0

    def select(self, texts: Int[torch.Tensor, " n"]) -> None:
        """Go on from these texts."""

        def taken(known: list[KeysValues]) -> list[KeysValues]:
            return [(keys[texts], values[texts]) for keys, values in known]

        self.memory, self.words = self.memory[texts], taken(self.words)
        if len(self.image[0][0]) != len(texts):  # beams of one row share its image: it is spread once
            self.image = taken(self.image)
            self.image_seen = None if self.image_seen is None else self.image_seen[texts]


class MemoryDecoder(ReportDecoder):
    """Chen et al., Generating Radiology Reports via Memory-driven Transformer (EMNLP 2020).

    Args:
        visual_width: Width of the visual tokens.
        vocab_size: Number `v` of tokens, token 0 included.
        width: Width of the model.
        hidden: Width of the feed-forward parts.
        layers: Layers of the encoder, and of the decoder.
        heads: Attention heads.
        slots: Slots of the memory.
        memory_heads: Heads of the memory's attention.
        dropout: Of attention weights, hidden layers, embeddings and what each part adds.
        visual_dropout: Of the projected visual tokens.
        block_trigrams: As in R2Gen's configuration, where it changes greedy search only.
    """

    end_id = 0

    def __init__(
        self,
        visual_width: int,
        vocab_size: int,
        width: int = 512,
        hidden: int = 512,
        layers: int = 3,
        heads: int = 8,
        slots: int = 3,
        memory_heads: int = 8,
        dropout: float = 0.1,
        visual_dropout: float = 0.5,
        block_trigrams: bool = False,
    ) -> None:
        super().__init__()
        self.width, self.block_trigrams = width, block_trigrams
        self.visual = nn.Sequential(nn.Linear(visual_width, width), nn.ReLU(), nn.Dropout(visual_dropout))
        self.encoder: Any = nn.ModuleList(VisualLayer(width, hidden, heads, dropout) for _ in range(layers))
        self.encoder_norm = UnbiasedNorm(width)
        self.words = nn.Embedding(vocab_size, width)
        self.memory = RelationalMemory(slots, width, memory_heads, dropout)
        self.decoder: Any = nn.ModuleList(
            MemoryLayer(width, hidden, heads, slots * width, dropout) for _ in range(layers)
        )
        self.decoder_norm = UnbiasedNorm(width)
        self.dropout = nn.Dropout(dropout)
        self._initialise()
        self.logits = nn.Linear(width, vocab_size)

    def _initialise(self) -> None:
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1 and not name.startswith("visual."):
                nn.init.xavier_uniform_(parameter)
        for module in self.modules():
            if isinstance(module, MemoryNorm):
                for part in (*module.to_scale, *module.to_shift):
                    if isinstance(part, nn.Linear):
                        nn.init.constant_(part.bias, MLP_BIAS)

    def encode(self, visual: Visual) -> Float[torch.Tensor, "b p d"]:
        """Return the visual tokens as the decoder sees them."""
        states, seen = self.visual(visual.tokens), _over_heads(visual.mask)
        for layer in self.encoder:
            states = layer(states, seen)
        return self.encoder_norm(states)

    def _embed(self, ids: Int[torch.Tensor, "b l"], start: int = 0) -> Float[torch.Tensor, "b l d"]:
        embedded = self.words(ids) * math.sqrt(self.width)
        positions = _positions(start, ids.shape[1], self.width, embedded)
        return self.dropout(embedded + positions)

    def forward(self, visual: Visual, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l v"]:
        """See `ReportDecoder.forward`; a place sees the first token and words up to itself, no end token, no pad."""
        length = ids.shape[1]
        image, image_seen = self.encode(visual), _over_heads(visual.mask)
        seen = (ids != self.end_id) | (torch.arange(length, device=ids.device) == 0)
        seen = seen[:, None, None] & torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        embedded = self._embed(ids)
        memory, _ = self.memory(embedded, self.memory.start(embedded))
        states = self._embed(ids)  # a dropout of its own, as the released implementation has
        for layer in self.decoder:
            states, _ = layer(states, memory, layer.image.keys_values(image), image_seen, seen)
        return self.logits(self.decoder_norm(states))

    @torch.no_grad()
    def generate(
        self, visual: Visual, max_tokens: int, beams: int = 1, banned: Sequence[int] = ()
    ) -> Int[torch.Tensor, "b t"]:
        """See `ReportDecoder.generate`."""
        image = self.encode(visual)
        known = [layer.image.keys_values(image) for layer in self.decoder]
        reading = _Reading(known, _over_heads(visual.mask), self.memory.start(image))

        def step(last: Int[torch.Tensor, " n"], texts: Int[torch.Tensor, " n"] | None) -> Float[torch.Tensor, "n v"]:
            if texts is not None:
                reading.select(texts)
            logits = self._read(reading, last)
            logits[:, list(banned)] = -torch.inf
            return logits.log_softmax(dim=-1)

        rows, device = len(image), image.device
        if beams == 1:
            return greedy_search(step, rows, self.end_id, self.end_id, max_tokens, device, self.block_trigrams)
        return beam_search(step, rows, beams, self.end_id, self.end_id, max_tokens, device)

    def _read(self, reading: _Reading, last: Int[torch.Tensor, " n"]) -> Float[torch.Tensor, "n v"]:
        """Read one more token of each text; return the logits of the next one."""
        states = self._embed(last[:, None], reading.place)
        memory, reading.memory = self.memory(states, reading.memory)
        before: Sequence[KeysValues | None] = reading.words or [None] * len(self.decoder)
        reading.words = []
        for layer, image, own in zip(self.decoder, reading.image, before, strict=True):
            states, known = layer(states, memory, image, reading.image_seen, None, own)
            reading.words.append(known)
        reading.place += 1
        return self.logits(self.decoder_norm(states))[:, 0]


def _over_heads(mask: Bool[torch.Tensor, "b p"] | None) -> Bool[torch.Tensor, "b 1 1 p"] | None:
    return None if mask is None else mask[:, None, None]


def _positions(start: int, length: int, width: int, like: torch.Tensor) -> Float[torch.Tensor, "l d"]:
    """Return sines and cosines in turn, of wavelengths from 2 pi to 10,000 times that (arXiv 1706.03762)."""
    place = torch.arange(start, start + length, dtype=torch.float32, device=like.device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32, device=like.device) * (-math.log(10000.0) / width))
    table = torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=-1).flatten(1)
    return table[:, :width].to(like.dtype)
