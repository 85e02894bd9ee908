"""What a decoder of reports is: visual tokens in, tokens of a text out, by teacher forcing or by search.

Guarantee: decoders of all kinds are trained and asked by the same two calls. A generated row holds no token that is
banned, ends at the first end token or at the length asked for, and is filled with end tokens; the same weights and
images give the same rows, whatever stands beside them in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Visual:
    """What a report is about: visual tokens of all images of a study, one after the other, and perhaps a prompt.

    Args:
        tokens: Features of an image tower.
        mask: True at real tokens; None where all are.
        prompt: Tokens of a text that stands before the report, for a causal decoder.
        prompt_mask: True at real tokens of the prompt.
    """

    tokens: Float[torch.Tensor, "b p d"]
    mask: Bool[torch.Tensor, "b p"] | None = None
    prompt: Int[torch.Tensor, "b q"] | None = None
    prompt_mask: Bool[torch.Tensor, "b q"] | None = None


class ReportDecoder(nn.Module, ABC):
    """A decoder of reports.

    Attributes:
        end_id: Token behind the last word; also the filling of generated rows.
    """

    end_id: int

    @abstractmethod
    def forward(self, visual: Visual, ids: Int[torch.Tensor, "b l"]) -> Float[torch.Tensor, "b l v"]:
        """Return at each place the logits of the token that follows.

        Args:
            visual: What the text is about.
            ids: The beginning token, words, the end token, pads; a place sees no pad and nothing that follows it.
        """

    @abstractmethod
    def generate(
        self, visual: Visual, max_tokens: int, beams: int = 1, banned: Sequence[int] = ()
    ) -> Int[torch.Tensor, "b t"]:
        """Return the most probable tokens found, without the beginning token.

        Args:
            visual: What the text is about.
            max_tokens: Longest row, the end token included.
            beams: Width of the search; 1 takes the most probable token at each place.
            banned: Tokens that must not come.
        """
