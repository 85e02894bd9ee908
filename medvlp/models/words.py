"""From word pieces to words: what local alignment compares with image patches.

Guarantee: a word is the sum (or mean) of exactly its own pieces; pads are in no word, and a batch gives what each text
gives alone. Words are numbered as the tokenizer numbers them: punctuation is a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from medvlp.errors import UserError
from medvlp.types import TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medvlp.models.projection import Projection


@dataclass(frozen=True, slots=True)
class Words:
    """Words of texts, in order from slot 0; `mask` is True at real ones.

    `attention` is what the class token attends to in the last layer, summed over a word's pieces, 0 at empty slots;
    None where the tower does not return it.
    """

    tokens: Float[torch.Tensor, "b w d"]
    mask: Bool[torch.Tensor, "b w"]
    attention: Float[torch.Tensor, "b w"] | None = None


def to_words(
    text: TextFeatures, *, first: bool = False, last: bool = False, reduce: Literal["sum", "mean"] = "sum"
) -> Words:
    """Return the words of texts.

    Args:
        text: Output of a text tower, with `word_ids`.
        first: The first token of a text ([CLS]) is a word of its own, in slot 0.
        last: Its last token ([SEP]) is a word of its own, behind the others.
        reduce: How the pieces of a word become one vector.

    Raises:
        UserError: The texts come without word ids.
    """
    if text.word_ids is None:
        raise UserError("The texts come without word ids.", "data", "Tokenise them with a tokenizer of medvlp.")
    slots = _slots(text.word_ids, text.mask, first, last)
    width = int(slots.max()) + 1 if slots.numel() else 0
    with torch.autocast(text.tokens.device.type, enabled=False):
        tokens = text.tokens if text.tokens.dtype == torch.float64 else text.tokens.float()
        # One row per slot, one column per token; a token that is in no word has slot -1 and so no row.
        member = (slots[:, None] == torch.arange(width, device=slots.device)[None, :, None]).to(tokens.dtype)
        pieces = member.sum(2)
        words = member @ tokens
        if reduce == "mean":
            words = words / pieces.clamp_min(1.0)[..., None]
        attention = None
        if text.cls_attention is not None:
            attention = (member @ text.cls_attention.to(tokens.dtype)[..., None]).squeeze(2)
    return Words(words, pieces > 0, attention)


def _slots(
    word_ids: Int[torch.Tensor, "b l"], mask: Bool[torch.Tensor, "b l"], first: bool, last: bool
) -> Int[torch.Tensor, "b l"]:
    """Return the slot of each token, -1 for one that is in no word."""
    inside = (word_ids >= 0) & mask
    slots = torch.where(inside, word_ids + int(first), -1)
    if not (first or last):
        return slots
    position = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    own = mask & ~inside
    if first:
        slots = torch.where(own & (position == mask.int().argmax(1, keepdim=True)), 0, slots)
    if last:
        end = torch.where(mask, position, -1).amax(1, keepdim=True)
        behind = torch.where(inside, word_ids, -1).amax(1, keepdim=True) + 1 + int(first)
        slots = torch.where(own & (position == end) & (position > 0), behind, slots)
    return slots


def project_tokens(
    projection: Projection, tokens: Float[torch.Tensor, "b w d"], mask: Bool[torch.Tensor, "b w"]
) -> Float[torch.Tensor, "b w e"]:
    """Return the projections of real tokens, 0 elsewhere: pads enter no batch normalisation."""
    projected = projection(tokens[mask])
    return projected.new_zeros(*mask.shape, projected.shape[-1]).index_put((mask,), projected)
