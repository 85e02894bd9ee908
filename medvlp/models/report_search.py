"""Search for the most probable text of a decoder that reads one token at a time.

Guarantee: all rows of a batch are searched at once and each as if it were alone. Equal sums are decided by the order of
beams and tokens, so that the same probabilities always give the same text. The search stops as soon as no unfinished
text can win.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Step = Callable[[Int[torch.Tensor, "n"], Int[torch.Tensor, "n"] | None], Float[torch.Tensor, "n v"]]

TRIGRAM_PENALTY = 2 * 0.693
"""What R2Gen takes off a log-probability for each time that a token already followed the last two."""


def greedy_search(
    step: Step, rows: int, begin_id: int, end_id: int, max_tokens: int, device: torch.device, block_trigrams: bool
) -> Int[torch.Tensor, "b t"]:
    """Return the most probable token at each place.

    Args:
        step: From the last token of each row to log-probabilities of the next one; its second argument is None.
        rows: How many texts.
        begin_id: First token that is read.
        end_id: Token that ends a text, and fills its row.
        max_tokens: Longest text, the end token included.
        device: Where the tokens are.
        block_trigrams: Take `TRIGRAM_PENALTY` off tokens that would repeat three words.
    """
    last = torch.full((rows,), begin_id, device=device)
    tokens = torch.full((rows, max_tokens), end_id, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    for place in range(max_tokens):
        found = step(last, None)
        if block_trigrams and place >= 3:
            found = found - TRIGRAM_PENALTY * _followers(tokens[:, :place], found.shape[1]).to(found.dtype)
        last = found.max(dim=1).indices.masked_fill(ended, end_id)  # of equal ones the first
        tokens[:, place] = last
        ended |= last == end_id
        if ended.all():
            break
    return tokens


def _followers(tokens: Int[torch.Tensor, "b t"], vocab_size: int) -> Int[torch.Tensor, "b v"]:
    """Return how often each token has followed the last two tokens of its row."""
    follows = (tokens[:, :-2] == tokens[:, -2:-1]) & (tokens[:, 1:-1] == tokens[:, -1:])
    counts = torch.zeros(len(tokens), vocab_size, dtype=torch.int64, device=tokens.device)
    return counts.scatter_add_(1, tokens[:, 2:], follows.to(torch.int64))


def beam_search(
    step: Step, rows: int, beams: int, begin_id: int, end_id: int, max_tokens: int, device: torch.device
) -> Int[torch.Tensor, "b t"]:
    """Return the finished text of the highest summed log-probability; length is neither rewarded nor punished.

    As R2Gen searches: a text that ends keeps its place among the `beams` of that step, so that fewer go on. At
    `max_tokens` all are finished.

    Args:
        step: From the last token of each text, and the text that each goes on from (None at the first token), to
            log-probabilities of the next token. It is asked for one text per row first, then for `beams` per row.
        rows: How many texts are looked for.
        beams: Width of the search.
        begin_id: First token that is read.
        end_id: Token that ends a text, and fills its row.
        max_tokens: Longest text, the end token included.
        device: Where the tokens are.
    """
    found = step(torch.full((rows,), begin_id, device=device), None)
    sums = found.new_zeros(rows, 1)
    tokens = torch.full((rows, 1, max_tokens), end_id, device=device)
    best_sum, best = found.new_full((rows,), -torch.inf), tokens[:, 0].clone()
    first_beam = torch.arange(rows, device=device)[:, None]
    for place in range(max_tokens):
        width, vocab_size = sums.shape[1], found.shape[1]
        candidates = (sums[..., None] + found.view(rows, width, vocab_size)).flatten(1)
        sums, chosen = (part[:, :beams] for part in candidates.sort(dim=1, descending=True, stable=True))
        parent, word = chosen // vocab_size, chosen % vocab_size
        tokens = tokens.gather(1, parent[..., None].expand(-1, -1, max_tokens))
        tokens[:, :, place] = word
        ended = (word == end_id) | (place == max_tokens - 1)
        finished_sum, which = sums.masked_fill(~ended, -torch.inf).max(dim=1)
        better = finished_sum > best_sum
        best = torch.where(better[:, None], tokens[torch.arange(rows, device=device), which], best)
        best_sum = torch.where(better, finished_sum, best_sum)
        # What goes on from an ended text has no higher sum than the text: it crowds out only what cannot win either.
        if (sums.max(dim=1).values <= best_sum).all():
            break
        found = step(word.flatten(), (first_beam * width + parent).flatten())
    return best
