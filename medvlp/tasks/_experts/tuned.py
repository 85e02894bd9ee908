"""Any fine-tuned classification or segmentation of medvlp as an expert.

Guarantee: what it says is what `medvlp predict` answers, with the calibration and the rule that were validated.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.tasks._experts.base import Expert
from medvlp.tasks._experts.words import findings_in_words, mask_in_words

if TYPE_CHECKING:
    from jaxtyping import Shaped

    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.tasks._tuned import TunedModel

KINDS = ("classification", "segmentation")


class TunedExpert(Expert):
    """`ExpertConfig.run` is the folder of a fine-tuning: findings with probabilities, or masks with size and place."""

    @cached_property
    def model(self) -> TunedModel:
        """The fine-tuned model.

        Raises:
            UserError: There is none, or it answers neither by probabilities nor by masks of images.
        """
        from medvlp.tasks._tuned import load_tuned

        if self.config.run is None:
            raise UserError("The expert names no fine-tuned model.", "reports.experts", "Give run: FOLDER.")
        model = load_tuned(self.config.run, str(self.device))
        if model.task.type not in KINDS or model.preprocessing.kind != "image":
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

    def check_store(self, stored: StoredImageConfig) -> None:
        """Raise `UserError` unless files became squares as in the expert's training; their size may differ."""
        own, given = self.model.preprocessing.stored.resolved(), stored.resolved()
        other = [f"{key} is {given[key]}, was {own[key]}" for key in own if key != "size" and own[key] != given[key]]
        if other:
            raise UserError(
                f"The store was not made as that of the expert: {'; '.join(other)}.",
                self.config.run or "",
                "Prepare the store as that of the expert, or train the expert on this one.",
            )

    def describe(self, squares: Shaped[np.ndarray, "n s s *c"]) -> list[str]:
        """See `Expert.describe`."""
        from medvlp.tasks._classifier import logits_of
        from medvlp.tasks._segmenter import predicted_masks
        from medvlp.tasks._tuned import calibrated

        model, taken = self.model, self.model.preprocessing.input
        names = model.label_names
        if model.task.type == "segmentation":
            masks = predicted_masks(model.network, squares, taken, model.task.segmentation, model.device)
            return [" ".join(mask_in_words(*pair) for pair in zip(names, own, strict=True)) for own in masks]
        pixels = to_tensor(resize_pixels(squares, taken.size))
        probabilities = calibrated(model.decisions, logits_of(model.network, pixels, taken, model.device))
        return [findings_in_words(names, own) for own in probabilities.tolist()]
