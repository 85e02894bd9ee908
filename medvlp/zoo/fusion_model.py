"""The released models of M3AE, ARL and PTUnifier: CLIP, RoBERTa, and co-attention of the two.

Guarantee: with the official weights the fused states and vectors are the official ones, with both modalities or, for
PTUnifier, with one of them replaced by soft prompts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.methods._fused import FusedMethod
from medvlp.methods._matching import MatchingAnswers
from medvlp.models.fusion import Fused, Fusion, FusionSizes
from medvlp.models.prompt_pool import PromptPool, mean_of_text
from medvlp.types import Features, TextBatch
from medvlp.zoo.release import Release
from medvlp.zoo.released import ReleasedModel
from medvlp.zoo.released_towers import ViTTower

if TYPE_CHECKING:
    from jaxtyping import Float


class FusionModel(MatchingAnswers, ReleasedModel):
    """Two towers and a fusion; options of the format: `fusion` and, with an entity stream, `entities` (`FusionSizes`).

    Texts are scored by matching, as in our own training of these methods.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        options, width = release.options, self._need(self.text, "text tower").model.config.hidden_size
        sizes = FusionSizes(dropout=0.1, **options["fusion"])
        entities = replace(sizes, **options["entities"]) if "entities" in options else None
        self.fusion = Fusion(self.image.dim, width, sizes, entities)
        self.matching_head = nn.Linear(2 * sizes.dim, 2)

    @property
    def shared_space(self) -> bool:
        """There is none: an image and a text meet in the fusion."""
        return False

    @property
    def scores_text(self) -> bool:
        """Whether the file held the text tower."""
        return self.text is not None

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_map` finds evidence."""
        return None if self.text is None else FusedMethod.heat_map_kind

    def is_on(self, objective: str) -> bool:
        """Return True: all terms took part in the release."""
        return True


class PromptFusionModel(FusionModel):
    """PTUnifier: a missing image or text is replaced by rows of a pool; options `image_rows` and `text_rows`."""

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        options, width = release.options, self.fusion.types.embedding_dim
        self.image_pool = PromptPool(options["pool"], width, options["image_rows"])
        self.text_pool = PromptPool(options["pool"], width, options["text_rows"])

    def fuse_image(self, pixels: Float[torch.Tensor, "b c h w"]) -> Fused:
        """Return the fusion of images without text: class token, prompts near the mean patch, end token."""
        tower, text = self._towers()
        states, grid = tower.embed(pixels)
        prompts = self.text_pool(states[:, 1:].mean(1))
        # Each of the two is embedded alone, at the first position.
        ends = (text.embed(torch.tensor([[token]], device=pixels.device)) for token in self.release.options["ends"])
        first, last = (end.expand(len(pixels), -1, -1) for end in ends)
        embedded = torch.cat([first, prompts, last], dim=1)
        image = self.fusion.embed_image(tower.encode(states, grid))
        real = torch.ones(embedded.shape[:2], dtype=torch.bool, device=pixels.device)
        return self.fusion(image, self.fusion.embed_text(text.encode_embedded(embedded)), real)

    def fuse_text(self, batch: TextBatch) -> Fused:
        """Return the fusion of texts without image: class token, prompts near the mean token of the text."""
        tower, text = self._towers()
        prompts = self.image_pool(mean_of_text(text.embed(batch.ids), batch.mask))
        states = torch.cat([tower.class_state().expand(len(prompts), -1, -1), prompts], dim=1)
        image: Features = tower.encode(states, (1, prompts.shape[1]))
        encoded = self.encode_text(batch).tokens
        return self.fusion(self.fusion.embed_image(image), self.fusion.embed_text(encoded), batch.mask)

    def _towers(self) -> tuple[ViTTower, Any]:
        assert isinstance(self.image, ViTTower)
        return self.image, self._need(self.text, "text tower")
