"""ConVIRT: contrast of paired radiographs and report texts (Zhang et al., arXiv 2010.00747).

Guarantee: one InfoNCE over all ranks' pairs; both towers train (a public re-implementation leaves its text projection
without gradient).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from medvlp.config.schema import MethodConfig
from medvlp.methods.base import Method
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.scale import clamped_scale
from medvlp.types import Batch

MAX_LOG_SCALE = math.log(100.0)


class ConVIRT(Method):
    """Temperature 0.1 and weight 0.75 on image to text by default; `options.learn_temperature` makes it a parameter."""

    needs: ClassVar[frozenset[str]] = frozenset({"reports"})
    paired: ClassVar[bool] = True

    def __init__(self, config: MethodConfig, vocab_size: int, pad_id: int, label_names: Sequence[str]) -> None:
        super().__init__(config, vocab_size, pad_id, label_names)
        start = torch.tensor([-math.log(self.positive("info_nce", "temperature"))])
        if self.config.options["learn_temperature"]:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, 1/T; a learnt one stays between 1 and 100."""
        if self.log_scale.requires_grad:
            return clamped_scale(self.log_scale, 0.0, MAX_LOG_SCALE)
        return super().logit_scale

    def losses(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return `info_nce`, of the augmented reading of the texts where there is one."""
        constants = self.objective("info_nce")
        given = self.texts_of(batch)
        image = self.project_image(self.encode_stored(batch.pixels))
        text = self.project_text(self.encode_text(batch.text_augmented or given))
        value, count = info_nce(image, text, self.logit_scale, constants["image_weight"])
        return {"info_nce": (constants["weight"] * value, count)}
