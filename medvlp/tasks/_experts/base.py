"""What an expert is: a model of its own that says in words what it finds in an image.

Guarantee: an expert is given stored pixels and nothing else of a study, so that what it says holds no truth of the data
set. It says something true of its own numbers, or fails: a number that is not finite is never put into words. A package
adds its own through the entry-point group `medvlp.experts`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from jaxtyping import Shaped

    from medvlp.config.preprocessing import AnyStored
    from medvlp.config.reports import ExpertConfig
    from medvlp.types import Volume


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
    def check_store(self, stored: AnyStored) -> None:
        """Raise `UserError` unless images or volumes that were stored in this way are what it was trained on."""

    @abstractmethod
    def describe(self, stored: Sequence[Shaped[np.ndarray, "s s *c"] | Volume]) -> list[str]:
        """Return what the expert finds in each image or volume, in sentences.

        Args:
            stored: Stored squares, or stored volumes.

        Raises:
            UserError: It cannot say it of one of them.
        """

    def save(self, folder: Path) -> None:  # noqa: B027 - what its options say of it need not be written
        """Write what `ExpertConfig.run` has to name in a saved model, so that the expert is the same anywhere.

        Args:
            folder: To be made; without it `run` stays unset in the saved model.
        """
