"""Prompts of a report generator: what experts say of the images of each study (VILA-M3, arXiv 2411.12915).

Guarantee: a prompt is a function of the stored pixels and of the experts; every image is shown to each expert once. A
new study gets the prompt that it would get in a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.tasks._experts import EXPERTS
from medvlp.tasks._study_images import StudyImages

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int

    from medvlp.config.reports import ExpertsConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks._experts.base import Expert

AT_ONCE = 32
"""Images that an expert sees at a time."""


def build_experts(config: ExpertsConfig | None, device: torch.device) -> list[Expert]:
    """Return the experts of a task, in its order."""
    return [] if config is None else [EXPERTS.get(one.name)(one, device) for one in config.use]


def said_of(experts: Sequence[Expert], stored: Sequence[Any]) -> list[str]:
    """Return what experts say of each stored image or volume, one after the other."""
    return [" ".join(said) for said in zip(*(expert.describe(stored) for expert in experts), strict=True)]


class Prompts:
    """The prompt of each study.

    Args:
        experts: In the order in which they speak.
        store: The prepared store.
        images: Which images of a study are shown.

    Raises:
        UserError: An expert was not trained on such images or volumes.
    """

    def __init__(self, experts: Sequence[Expert], store: Store, images: StudyImages) -> None:
        for expert in experts:
            expert.check_store(store.config)
        self.experts, self.store, self.images = list(experts), store, images
        self._places = store.images["index"].to_numpy()
        self._said: dict[int, str] = {}

    def __call__(self, rows: Int[np.ndarray, " b"]) -> list[str]:
        """Return the prompts of studies, each given by its first image."""
        shown = self.images.of(rows)
        self._ask(np.unique(shown[shown >= 0]))
        return [" ".join(self._said[image] for image in own[own >= 0].tolist()) for own in shown]

    def _ask(self, images: Int[np.ndarray, " m"]) -> None:
        new = [image for image in images.tolist() if image not in self._said]
        volumes = self.store.kind == "volume"
        step = 1 if volumes else AT_ONCE
        for start in range(0, len(new), step):
            part = new[start : start + step]
            places = self._places[part]
            stored = map(self.store.read_volume, places.tolist()) if volumes else self.store.read(places)
            self._said.update(zip(part, said_of(self.experts, [*stored]), strict=True))
