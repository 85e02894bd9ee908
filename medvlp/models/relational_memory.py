"""The blocks of R2Gen: a memory that grows with the text, norms that it steers, attention that remembers its keys.

Guarantee: equal to the blocks of Chen et al., Generating Radiology Reports via Memory-driven Transformer (EMNLP 2020)
as released. What a step of generation gives is, to rounding, what the whole text at once gives at its place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

KeysValues: TypeAlias = "tuple[Float[torch.Tensor, 'b h k e'], Float[torch.Tensor, 'b h k e']]"

EPS = 1e-6


def standardised(states: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
    """Return `(x - mean) / (sd + eps)` with the unbiased sd: eps stands outside of the root, unlike in `LayerNorm`."""
    return (states - states.mean(-1, keepdim=True)) / (states.std(-1, keepdim=True) + EPS)


class UnbiasedNorm(nn.Module):
    """Layer norm by the unbiased standard deviation.

    Args:
        width: Of the states.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, states: Float[torch.Tensor, "*n d"]) -> Float[torch.Tensor, "*n d"]:
        """Return the states, standardised, scaled and shifted."""
        return self.scale * standardised(states) + self.shift


class MemoryNorm(UnbiasedNorm):
    """Memory-driven conditional layer norm (MCLN, section 2.4): the memory adds to scale and shift of its place.

    Args:
        width: Of the states.
        memory_width: Of the flat memory: slots times width.
    """

    def __init__(self, width: int, memory_width: int) -> None:
        super().__init__(width)
        self.to_scale, self.to_shift = (
            nn.Sequential(nn.Linear(memory_width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(2)
        )

    def forward(  # type: ignore[override]
        self, states: Float[torch.Tensor, "b l d"], memory: Float[torch.Tensor, "b l m"]
    ) -> Float[torch.Tensor, "b l d"]:
        """Return the states, standardised, then scaled and shifted as the memory says."""
        scale, shift = self.scale + self.to_scale(memory), self.shift + self.to_shift(memory)
        return scale * standardised(states) + shift


class Attention(nn.Module):
    """Multi-head attention whose keys and values can be made once and used again.

    Args:
        width: Of queries, keys and values.
        heads: Number of heads.
        dropout: Of the attention weights.

    Raises:
        UserError: The width does not split into the heads.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise UserError(
                f"A width of {width} does not split into {heads} heads.", "decoder.heads", "Give a divisor."
            )
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def _split(self, states: Float[torch.Tensor, "b l d"]) -> Float[torch.Tensor, "b h l e"]:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_values(self, states: Float[torch.Tensor, "b k d"]) -> KeysValues:
        """Return keys and values of what is attended to."""
        return self._split(self.key(states)), self._split(self.value(states))

    def forward(
        self,
        states: Float[torch.Tensor, "b q d"],
        known: KeysValues,
        seen: Bool[torch.Tensor, "b 1 #q k"] | None = None,
    ) -> Float[torch.Tensor, "b q d"]:
        """Return what each query reads.

        Args:
            states: The queries.
            known: From `keys_values`.
            seen: True where a query may look; None is everywhere. Every query must see something.
        """
        dropout = self.dropout if self.training else 0.0
        query = self._split(self.query(states))
        read = functional.scaled_dot_product_attention(query, *known, attn_mask=seen, dropout_p=dropout)
        return self.out(read.transpose(1, 2).flatten(2))


class RelationalMemory(nn.Module):
    """Slots that read each other and the new word, and keep a gated share of what they were (section 2.3).

    The slots start as rows of the identity. With `r` what a slot m reads of all slots and of the word x, `a = m + r`,
    next = sigmoid(i) tanh(a + MLP(a)) + sigmoid(f) m, where (i, f) = W x + U tanh(m).

    Args:
        slots: Number of slots.
        width: Of slots and words.
        heads: Of the attention.
        dropout: Of its weights.
    """

    def __init__(self, slots: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.slots, self.width = slots, width
        self.attention = Attention(width, heads, dropout)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.word_gates, self.memory_gates = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def start(self, words: Float[torch.Tensor, "b l d"]) -> Float[torch.Tensor, "b s d"]:
        """Return the memory before the first word."""
        return torch.eye(self.slots, self.width, dtype=words.dtype, device=words.device).expand(len(words), -1, -1)

    def forward(
        self, words: Float[torch.Tensor, "b l d"], memory: Float[torch.Tensor, "b s d"]
    ) -> tuple[Float[torch.Tensor, "b l m"], Float[torch.Tensor, "b s d"]]:
        """Read words one after the other.

        Args:
            words: Embedded words.
            memory: What stands in the slots before them.

        Returns:
            The flat memory behind each word, and the slots behind the last one.
        """
        # What depends on the words alone is made for all of them at once.
        keys, values = self.attention.keys_values(words)
        gates = self.word_gates(words)
        found = []
        for place in range(words.shape[1]):
            here = slice(place, place + 1)
            memory = self._step(memory, (keys[:, :, here], values[:, :, here]), gates[:, here])
            found.append(memory.flatten(1))
        return torch.stack(found, dim=1), memory

    def _step(
        self, memory: Float[torch.Tensor, "b s d"], word: KeysValues, gates: Float[torch.Tensor, "b 1 2d"]
    ) -> Float[torch.Tensor, "b s d"]:
        known = tuple(torch.cat(parts, dim=2) for parts in zip(self.attention.keys_values(memory), word, strict=True))
        read = memory + self.attention(memory, known)
        read = read + self.mlp(read)
        new, kept = torch.sigmoid(gates + self.memory_gates(torch.tanh(memory))).chunk(2, dim=-1)
        return new * torch.tanh(read) + kept * memory
