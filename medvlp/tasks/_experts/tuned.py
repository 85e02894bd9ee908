"""Any fine-tuned classification or segmentation of medvlp as an expert, of images or of volumes.

Guarantee: what it says is what `medvlp predict` answers, with the calibration and the rule that were validated.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.store.manifest import UNITS
from medvlp.tasks._experts.base import Expert
from medvlp.tasks._experts.words import findings_in_words, mask_in_words, structure_in_words

if TYPE_CHECKING:
    from pathlib import Path

    from jaxtyping import Int, Shaped

    from medvlp.config.preprocessing import AnyStored
    from medvlp.tasks._tuned import TunedModel
    from medvlp.types import Volume

KINDS = ("classification", "segmentation", "volume_segmentation")
NO_MATTER = ("size", "chunk", "compressor")
"""What of a store may differ from that of the expert: the side of squares, and how files are written."""


class TunedExpert(Expert):
    """`ExpertConfig.run` is the folder of a fine-tuning: findings with probabilities, or masks with size and place."""

    @cached_property
    def model(self) -> TunedModel:
        """The fine-tuned model.

        Raises:
            UserError: There is none, or it answers neither by probabilities nor by masks.
        """
        from medvlp.tasks._tuned import load_tuned

        if self.config.run is None:
            raise UserError("The expert names no fine-tuned model.", "reports.experts", "Give run: FOLDER.")
        model = load_tuned(self.config.run, str(self.device))
        if model.task.type not in KINDS:
            raise UserError(
                f"The model is of the type {model.task.type}, and an expert is a classification or a segmentation.",
                self.config.run,
                "Give the run of another fine-tuning.",
            )
        return model

    @property
    def hash(self) -> str:
        """See `Expert.hash`."""
        return self.model.hash

    def check_store(self, stored: AnyStored) -> None:
        """Raise `UserError` unless files were stored as in the expert's training; see `NO_MATTER`."""
        own, given = self.model.preprocessing.stored.resolved(), stored.resolved()
        if type(self.model.preprocessing.stored) is not type(stored):
            raise UserError(
                f"The expert takes {UNITS[self.model.preprocessing.kind]}, and the store holds something else.",
                self.config.run or "",
                "Give an expert that was trained on a store of the same kind.",
            )
        other = [
            f"{key} is {given[key]}, was {own[key]}" for key in own if key not in NO_MATTER and own[key] != given[key]
        ]
        if other:
            raise UserError(
                f"The store was not made as that of the expert: {'; '.join(other)}.",
                self.config.run or "",
                "Prepare the store as that of the expert, or train the expert on this one.",
            )

    def describe(self, stored: Sequence[Shaped[np.ndarray, "s s *c"] | Volume]) -> list[str]:
        """See `Expert.describe`."""
        if self.model.preprocessing.kind == "volume":
            return [self._of_volume(volume) for volume in stored]
        squares, model = np.stack([np.asarray(square) for square in stored]), self.model
        if model.task.type == "classification":
            return self._findings(to_tensor(resize_pixels(squares, model.preprocessing.input.size)))
        from medvlp.tasks._segmenter import predicted_masks

        taken, names = model.preprocessing.input, model.label_names
        masks = predicted_masks(model.network, squares, taken, model.task.segmentation, model.device)
        return [" ".join(mask_in_words(*pair) for pair in zip(names, own, strict=True)) for own in masks]

    def _of_volume(self, volume: Any) -> str:
        from medvlp.data.volume_input import input_voxels

        model, taken = self.model, self.model.preprocessing.input
        if model.task.type == "classification":
            return self._findings(torch.from_numpy(input_voxels(volume, taken))[None, None])[0]
        from medvlp.tasks._volume_segmenter import segment

        found = segment(model.network, volume, taken, model.task.volume_segmentation.overlap, "the volume")
        named = enumerate(model.label_names, 1)
        return " ".join(structure_in_words(name, found == k, volume) for k, name in named)

    def _findings(self, pixels: Int[torch.Tensor, "b c *s"]) -> list[str]:
        from medvlp.tasks._classifier import logits_of
        from medvlp.tasks._tuned import calibrated

        model = self.model
        logits = logits_of(model.network, pixels, model.preprocessing.input, model.device)
        probabilities = calibrated(model.decisions, logits)
        if not np.isfinite(probabilities).all():
            fix = "Check the image and the expert's weights."
            raise UserError("An expert gives numbers that are not finite.", self.config.run or "", fix)
        return [findings_in_words(model.label_names, own) for own in probabilities.tolist()]

    def save(self, folder: Path) -> None:
        """Copy the files of the model; see `Expert.save`.

        Raises:
            UserError: They are no longer those of the model.
        """
        from medvlp.tasks._tuned import load_tuned, model_files

        folder.mkdir(parents=True)
        assert self.config.run is not None
        for file in model_files(self.config.run):
            shutil.copyfile(file, folder / file.name)
        if load_tuned(folder).hash != self.hash:
            fix = "Restore it, and run the same command again."
            raise UserError("The expert was changed while the run was going on.", self.config.run, fix)
