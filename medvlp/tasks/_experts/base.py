"""What an expert is: a model of its own that says in words what it finds in an image.

Guarantee: an expert is given stored pixels and nothing else of a study, so that what it says holds no truth of the data
set. A package adds its own through the entry-point group `medvlp.experts`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from jaxtyping import Shaped

    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.config.reports import ExpertConfig


class Expert(ABC):
    """Base class of experts.

    Args:
        config: Which model, and options of the kind.
        device: Where it computes.
    """

    def __init__(self, config: ExpertConfig, device: torch.device) -> None:
        self.config, self.device = config, device

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of everything that decides what it says."""

    @abstractmethod
    def check_store(self, stored: StoredImageConfig) -> None:
        """Raise `UserError` unless squares that were made in this way are what the expert was trained on."""

    @abstractmethod
    def describe(self, squares: Shaped[np.ndarray, "n s s *c"]) -> list[str]:
        """Return what the expert finds in each image, in sentences.

        Args:
            squares: Stored squares of images.
        """
