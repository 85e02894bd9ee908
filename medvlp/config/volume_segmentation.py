"""Configuration of the segmentation of volumes: which head, with which loss, and how a volume is covered.

Guarantee: a setting without effect beside the others is a mistake.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive
from medvlp.config.volumes import Distance


class VolumeSegmentationConfig(Config):
    """Segmentation of volumes: one of the task's labels for each voxel, or none. `fine_tune` says how it is trained."""

    decoder: Literal["auto", "unetr", "swin_unetr", "linear"] = Field(
        "auto",
        description="unetr: MONAI's, for maps of one stride (a plain ViT); swin_unetr: MONAI's, for maps of several; "
        "auto takes the one that fits. linear: one linear map on the encoder's maps, enlarged.",
    )
    channels: int = Field(16, ge=4, description="Width of the head at the voxels; unetr and swin_unetr.")
    spacing_mm: tuple[Distance, Distance, Distance] | None = Field(
        None,
        description="Distance of voxels along d, h, w at which windows of the model input slide over a volume; null is "
        "that of the encoder's input. Where that has none, the whole volume is stretched to the model input.",
    )
    modalities: tuple[str, ...] = Field(
        (),
        description="Volumes of these modalities alone (CT, MR), where a data set has several: numbers of an MR mean "
        "nothing in windows of HU, and are refused there. Empty takes all.",
    )
    test_split: Literal["test", "val"] = Field(
        "test",
        description="val: test on the validation volumes of the data set, where those of its test have no label maps; "
        "a tenth of the training patients is then what validation is for.",
    )
    overlap: float = Field(0.5, ge=0, lt=1, description="Share by which neighbouring windows overlap.")
    foreground: float = Field(
        0.5, ge=0, le=1, description="Share of the training windows that lie around a voxel of a label."
    )
    cross_entropy: float = Field(1.0, ge=0, description="Weight of the cross-entropy.")
    dice: float = Field(1.0, ge=0, description="Weight of the Dice loss over the volumes of a batch.")
    tolerance_mm: Positive = Field(2.0, description="Of the normalised surface Dice.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> VolumeSegmentationConfig:
        if not self.cross_entropy + self.dice:
            raise ValueError("cross_entropy and dice are both 0: nothing would be trained")
        if self.decoder == "linear" and self.channels != type(self).model_fields["channels"].default:
            raise ValueError("channels has no effect with decoder linear: leave it out")
        return self
