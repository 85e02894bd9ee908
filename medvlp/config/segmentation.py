"""Configuration of segmentation: what is outlined, by which head, with which loss, and how a head is asked.

Guarantee: a setting without effect beside the others is a mistake.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive


class SegmentationConfig(Config):
    """Segmentation: which pixels belong to each of the task's labels. `fine_tune` says how the head is trained."""

    target: Literal["masks", "boxes"] = Field("masks", description="boxes are filled.")
    unmarked: Literal["empty", "ignore"] = Field(
        "empty",
        description="An image without a mask (box) of a label: empty says that the structure is not there, unless the "
        "label says that it is; ignore leaves it out.",
    )
    classes: Literal["overlapping", "exclusive"] = Field(
        "overlapping", description="Each label is asked on its own; exclusive: one class a pixel, or background."
    )
    legacy_boxes: Literal["size", "corners"] | None = Field(
        None,
        description="As BenchX draws boxes. size: position and size cut to whole pixels (RSNA, TBX11K). corners: both "
        "corners cut, the far one inside, ellipses filled as their boxes (Object-CXR).",
    )
    decoder: Literal["upernet", "unet"] = "upernet"
    channels: int | None = Field(
        256,
        ge=16,
        description="Width of the head (unet: of its coarsest block); null is BenchX's: 512, and for a ViT its own.",
    )
    level_norm: bool = Field(True, description="upernet: normalise the encoder's maps first; BenchX does not.")
    legacy_drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth of a frozen ViT, which BenchX leaves on at 0.1."
    )
    mean: float | None = Field(None, description="Of the input, for all encoders alike; null takes the encoder's own.")
    std: float | None = Field(None, gt=0, description="Likewise, the standard deviation.")
    cross_entropy: float = Field(1.0, ge=0, description="Weight of the cross-entropy.")
    dice: float = Field(1.0, ge=0, description="Weight of the Dice loss over the images of a batch.")
    auxiliary: float = Field(0.4, ge=0, description="upernet: weight of the auxiliary head's loss.")
    select: Literal["dice", "pooled_dice"] = Field(
        "dice",
        description="On val. dice: mean over images with the structure; pooled_dice: of all pixels, background too.",
    )
    inference: Literal["whole", "sliding"] = Field(
        "whole", description="sliding: windows of the model's input on the stored square, in training too."
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="sliding: share by which windows overlap.")
    tolerance_mm: Positive = Field(2.0, description="Of the normalised surface Dice.")
    tolerance_pixels: Positive = Field(2.0, description="Likewise, where the spacing of an image is not known.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> SegmentationConfig:
        if not self.cross_entropy + self.dice:
            raise ValueError("cross_entropy and dice are both 0: nothing would be trained")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std, or neither")
        if self.legacy_boxes and self.target == "masks":
            raise ValueError("legacy_boxes has no effect on masks: leave it out")
        idle = {"overlap": self.inference == "whole", "level_norm": self.decoder == "unet"}
        idle["auxiliary"] = self.decoder == "unet"
        for name, has_none in idle.items():
            if has_none and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} has no effect with decoder {self.decoder}, inference {self.inference}: leave it out"
                )
        return self
