"""FDT: images and texts as mixtures of one codebook's entries, then contrasted (Chen et al., CVPR 2023).

Guarantee: pads win no entry (in the official code they beat negative scores), and the temperature of a trained model is
that of its last step, also after loading.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.errors import UserError
from medvlp.methods._choices import TEXT_UNITS, chosen
from medvlp.methods.base import Method, Progress, Term
from medvlp.methods.context import MethodContext
from medvlp.models.codebook import Codebook, query_map
from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.terms import unit
from medvlp.types import Batch, Features, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float

MAX_LOG_SCALE = math.log(100.0)


class FDT(Method):
    """Objective `info_nce` of the mixtures, with a learnt scale (arXiv 2303.14865).

    The temperature of the codebook is `start * factor ** (step / every)`, not below `lowest`; the released
    configuration keeps it at 1000, where the mixture is nearly even. `options.legacy_pads` gives pads the score 0.
    """

    nests = True
    steps_done: torch.Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.set_scale(self.positive("info_nce", "temperature"), learnt=True)
        # A whole number, so that no moving average touches it.
        self.register_buffer("steps_done", torch.zeros(1, dtype=torch.int64))

    def build_projections(self) -> None:
        """Make the codebook and the maps of both sides to it."""
        assert self.text_encoder is not None
        codebook, dim = self._settings("codebook"), self.config.projection.dim
        attention = codebook["attention"]
        if attention not in ("sparsemax", "softmax"):
            where = "method.options.codebook.attention"
            raise UserError(f"{where} is '{attention}'.", where, "Use sparsemax or softmax.")
        for section, name in (("codebook", "entries"), ("temperature", "start"), ("temperature", "lowest")):
            if not self._settings(section)[name] > 0:
                where = f"method.options.{section}.{name}"
                raise UserError(f"{where} is {self._settings(section)[name]}.", where, "Give a number above 0.")
        self.codebook = Codebook(codebook["entries"], dim, attention)
        self.image_query = query_map(self.image_encoder.token_dim, dim)
        self.text_query = query_map(self.text_encoder.dim, dim)

    def _settings(self, section: str) -> dict[str, Any]:
        return self.config.options[section]

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold."""
        return Demands(text_unit=chosen(config, "text_unit", TEXT_UNITS))

    def begin_step(self, progress: Progress) -> None:
        """Take note of the step, which decides the temperature."""
        super().begin_step(progress)
        self.steps_done.fill_(progress.step)

    @property
    def temperature(self) -> Float[torch.Tensor, ""]:
        """Temperature of the codebook at the last step."""
        schedule = self._settings("temperature")
        decays = self.steps_done.float().squeeze() / schedule["every"]
        return (schedule["start"] * schedule["factor"] ** decays).clamp_min(schedule["lowest"])

    @property
    def logit_scale(self) -> torch.Tensor:
        """Factor of cosines, learnt, at most 100."""
        return self.scale_within(0.0, MAX_LOG_SCALE)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return the unit mixture of codebook entries of each image."""
        return unit(self.codebook(self.image_query(features.tokens), None, self.temperature)[0])

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return the unit mixture of codebook entries of each text."""
        queries, legacy = self.text_query(features.tokens), self.config.options["legacy_pads"]
        return unit(self.codebook(queries, features.mask, self.temperature, legacy)[0])

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return `info_nce`."""
        text = self.project_text(self.encode_text(self.texts_of(batch)))
        image = self.project_image(self.encode_stored(batch.pixels))
        term = self.over_prefixes(lambda a, b: info_nce(a, b, self.logit_scale), image, text)
        return self.weighted({"info_nce": term})
