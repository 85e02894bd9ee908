"""TriBERT's reading of a report: a token before each sentence, which stands for it as [CLS] stands for the report.

Guarantee: a laid-out text is the same whatever texts stand beside it; the row of a sentence token sees [CLS] and its
own sentence alone, all other rows see the whole text, and nobody sees pads. Source: VELVET-Med (arXiv 2508.12108), as
in its official code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from medvlp.models.words import Words, to_words
from medvlp.types import TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FIRST_SENTENCE = 1
"""Place of the token of the first sentence, behind [CLS]."""
_ODD = 6364136223846793005
"""Multiplier of the hash of a sentence: its powers differ modulo 2^64."""


@dataclass(frozen=True, slots=True)
class SentenceLimits:
    """How much of a report is read.

    Args:
        tokens: Of the laid-out report; what lies behind is cut.
        sentences: Of the report.
        sentence_tokens: Of a sentence with its [CLS] and [SEP], which are not kept.
    """

    tokens: int
    sentences: int
    sentence_tokens: int


@dataclass(frozen=True, slots=True)
class SentenceText:
    """Laid-out texts: [CLS], then for each sentence its token and its word pieces, then pads.

    `types` are 1 at [CLS], i at the tokens of sentence i (from 1), 0 at pads. `word_ids` are -1 at [CLS], at sentence
    tokens and pads.
    """

    ids: Int[torch.Tensor, "b l"]
    types: Int[torch.Tensor, "b l"]
    word_ids: Int[torch.Tensor, "b l"]
    hidden: Bool[torch.Tensor, "b l"]

    @property
    def mask(self) -> Bool[torch.Tensor, "b l"]:
        """True at real tokens."""
        return self.types > 0


def lay_out(text: TextBatch, first_id: int, pad_id: int, limits: SentenceLimits, draw: bool = False) -> SentenceText:
    """Return texts with a token before each sentence and without [SEP].

    Args:
        text: Texts as the tokenizer gives them; without `sentence_ids` each is one sentence.
        first_id: Id of the token of the first sentence; those of the others follow.
        pad_id: Id of a pad.
        limits: How much is read.
        draw: Of a text with too many sentences keep random ones, in their order, from torch's global generator; else
            the first.
    """
    assert text.word_ids is not None
    given = torch.where(text.word_ids >= 0, 0, -1) if text.sentence_ids is None else text.sentence_ids
    sentence = _kept_sentences(given, limits.sentences, draw)
    number = int(sentence.max()) + 1 if sentence.numel() else 0
    member = sentence[..., None] == torch.arange(number, device=sentence.device)
    rank = (member.cumsum(1) * member).sum(2) - 1
    member = member & (rank < limits.sentence_tokens - 2)[..., None]
    lengths = member.sum(1)
    before = lengths.cumsum(1) - lengths
    inside = member.any(2)
    place = (inside.cumsum(1) + sentence + 1).masked_fill(~inside, -1)
    starts = (before + torch.arange(number, device=sentence.device) + FIRST_SENTENCE).masked_fill(lengths == 0, -1)
    last = int(torch.cat([place, starts], dim=1).max()) if place.numel() else 0
    width = min(limits.tokens, max(last, 0) + 1)
    ids = torch.arange(first_id, first_id + number, device=sentence.device).expand_as(starts)
    nothing, types = torch.full_like(starts, -1), torch.arange(1, number + 1, device=sentence.device).expand_as(starts)

    def scattered(of_words: torch.Tensor, of_starts: torch.Tensor, fill: int) -> torch.Tensor:
        laid = of_words.new_full((len(of_words), width + 1), fill)  # the last column takes what is not kept
        for at, values in ((place, of_words), (starts, of_starts)):
            laid = laid.scatter(1, torch.where((at < 0) | (at >= width), width, at), values.to(laid.dtype))
        return laid[:, :width]

    hidden = torch.zeros_like(inside) if text.hidden is None else text.hidden
    laid = SentenceText(
        scattered(text.ids, ids, pad_id),
        scattered(sentence + 1, types, 0),
        scattered(text.word_ids, nothing, -1),
        scattered(hidden.long(), torch.zeros_like(starts), 0).bool(),
    )
    laid.ids[:, 0], laid.types[:, 0] = text.ids[:, 0], 1
    return laid


def _kept_sentences(given: Int[torch.Tensor, "b l"], most: int, draw: bool) -> Int[torch.Tensor, "b l"]:
    """Return the new number of the sentence of each token, from 0 without gaps; -1 where it is not kept."""
    number = int(given.max()) + 1 if given.numel() else 0
    there = (given[..., None] == torch.arange(number, device=given.device)).any(1)
    if number > most:
        order = torch.rand(there.shape, device=given.device) if draw else torch.arange(number, device=given.device)
        chosen = torch.where(there, order, torch.inf).argsort(1)[:, :most]
        there = there & torch.zeros_like(there).scatter(1, chosen, True)
    if not number:
        return given
    new = (there.cumsum(1) - 1).masked_fill(~there, -1)
    return torch.where(given >= 0, new.gather(1, given.clamp_min(0)), -1)


def sentence_starts(types: Int[torch.Tensor, "b l"]) -> Bool[torch.Tensor, "b l"]:
    """Return which tokens stand for a sentence."""
    changed = types[:, 1:] != types[:, :-1]
    changed[:, :FIRST_SENTENCE] = True  # [CLS] has the type of the first sentence
    first = torch.zeros_like(types[:, :1], dtype=torch.bool)
    return torch.cat([first, changed & (types[:, 1:] > 0)], dim=1)


def sentence_mask(types: Int[torch.Tensor, "b l"], legacy: bool = False) -> Bool[torch.Tensor, "b l l"]:
    """Return which token (second axis) sees which (third axis).

    Args:
        types: See `SentenceText`.
        legacy: As in the official code, where a text fills its row without a pad: the row of its last sentence sees
            everything, and the row of the sentence before it also sees the last sentence.
    """
    starts, seen = sentence_starts(types), types > 0
    own = types[:, :, None] == types[:, None]
    rows = starts
    if legacy:
        last = types.amax(1, keepdim=True)
        full = (types[:, -1:] > 0) & (last > 0)
        rows = starts & ~(full & (types == last))
        own = own | ((full & (types == last - 1))[:, :, None] & (types == last)[:, None])
    own[:, :, 0] = True
    return seen[:, None] & (~rows[:, :, None] | own)


def sentence_means(tokens: Float[torch.Tensor, "b l d"], sentence_ids: Int[torch.Tensor, "b l"]) -> Words:
    """Return the mean of the tokens of each sentence of texts as the tokenizer gives them."""
    number = int(sentence_ids.max()) + 1 if sentence_ids.numel() else 0
    member = sentence_ids[:, None] == torch.arange(number, device=tokens.device)[None, :, None]
    lengths = member.sum(2)
    means = member.to(tokens.dtype) @ tokens / lengths.clamp_min(1)[..., None]
    return Words(means, lengths > 0)


def sentence_keys(ids: Int[torch.Tensor, "b l"], sentence_ids: Int[torch.Tensor, "b l"]) -> Int[torch.Tensor, "b s"]:
    """Return a number of each sentence, equal for those with the same tokens (a 64-bit hash of them)."""
    number = int(sentence_ids.max()) + 1 if sentence_ids.numel() else 0
    member = sentence_ids[:, None] == torch.arange(number, device=ids.device)[None, :, None]
    factors = torch.full_like(member, _ODD, dtype=torch.int64).where(member, 1).cumprod(2)
    return ((ids[:, None] + 1) * factors * member).sum(2)


@dataclass(frozen=True, slots=True)
class Levels:
    """What a text says at three levels: the report `[b d]`, its sentences, and its words."""

    report: Float[torch.Tensor, "b d"]
    sentences: Words
    words: Words


def levels_of(tokens: Float[torch.Tensor, "b l d"], text: SentenceText) -> Levels:
    """Return the vectors of report, sentences and words.

    The report is [CLS]. A word is the sum of its pieces. A sentence is the mean over its own token and its words, not
    its pieces.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        tokens = tokens if tokens.dtype == torch.float64 else tokens.float()
        number = int(text.types.max()) if text.types.numel() else 0
        behind = text.types.clone()
        behind[:, 0] = 0
        member = behind[:, None] == torch.arange(1, number + 1, device=behind.device)[None, :, None]
        first_piece = torch.ones_like(text.mask)
        first_piece[:, 1:] = text.word_ids[:, 1:] != text.word_ids[:, :-1]
        parts = (member & (first_piece | (text.word_ids < 0))[:, None]).sum(2)
        sentences = member.to(tokens.dtype) @ tokens / parts.clamp_min(1)[..., None]
        words = to_words(TextFeatures(tokens, tokens[:, 0], text.mask, text.word_ids))
    return Levels(tokens[:, 0], Words(sentences, parts > 0), words)
