"""MedCLIP: images and sentences that were never paired, tied by their findings (Wang et al., arXiv 2210.10163).

Guarantee: soft-label contrast over all ranks' images and sentences, value and gradient as in the official code.

Label vectors hold the same columns for images and sentences: 1 present, 0 absent, -1 uncertain, NaN not mentioned. As
in MedCLIP, NaN counts 0 in the similarity, so that an absent finding weighs as little as an unmentioned one: it is the
column "No Finding" that ties a normal image to a normal sentence, and a column that only one side fills adds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from medvlp.config.schema import MethodConfig
from medvlp.errors import UserError
from medvlp.methods.base import Method
from medvlp.objectives.contrastive import soft_label_ce
from medvlp.objectives.scale import clamped_scale
from medvlp.types import Batch


class MedCLIP(Method):
    """Learnt scale from 1/0.07, its logarithm kept in [0, 4.6052]; augmented texts count as much as the originals."""

    needs: ClassVar[frozenset[str]] = frozenset({"reports", "labels"})
    paired: ClassVar[bool] = False

    def __init__(self, config: MethodConfig, vocab_size: int, pad_id: int, label_names: Sequence[str]) -> None:
        super().__init__(config, vocab_size, pad_id, label_names)
        self.log_scale = nn.Parameter(torch.tensor([-math.log(self.positive("soft_label", "temperature"))]))

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, between 1 and exp(max_log_scale)."""
        return clamped_scale(self.log_scale, 0.0, self.objective("soft_label")["max_log_scale"])

    def losses(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return `soft_label`."""
        constants = self.objective("soft_label")
        text = self.texts_of(batch)
        if batch.labels is None or text.labels is None:
            raise UserError("MedCLIP needs labels of images and of sentences.", "data", "Use a store with labels.")
        # MedCLIP clamps the parameter itself: without this an optimiser could carry it far beyond the bound.
        with torch.no_grad():
            self.log_scale.clamp_(0.0, constants["max_log_scale"])
        image = self.project_image(self.encode_stored(batch.pixels))
        augmented = batch.text_augmented
        value, count = soft_label_ce(
            image,
            self.project_text(self.encode_text(text)),
            batch.labels,
            text.labels,
            self.logit_scale,
            None if augmented is None else self.project_text(self.encode_text(augmented)),
            constants["target_scale"],
        )
        return {"soft_label": (constants["weight"] * value, count)}
