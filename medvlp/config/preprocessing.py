"""The one preprocessing of an image, as data: file -> stored square of grey values -> model input.

Guarantee: a `Preprocessing` is complete. Saved with a store and with the weights, it makes the same pixels from a file
in training, inference and benchmark; nothing about it is decided elsewhere.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config


class StoredImageConfig(Config):
    """From a file to a square `[size size]` of grey values, 0 black to full scale white."""

    size: int = Field(256, ge=16, le=4096, description="Side of the stored square in pixels.")
    aspect: Literal["pad", "squash", "crop"] = Field(
        "pad",
        description="pad the short side with black, squash both to size, or crop the long side around the centre.",
    )
    interpolation: Literal["area", "bilinear", "lanczos"] = Field("area", description="Resampling filter.")
    dtype: Literal["uint8", "uint16"] = "uint8"
    voi: Literal["auto", "lut", "window", "none"] = Field(
        "auto", description="DICOM: VOI LUT, else window, else the range of the image; or exactly one of them."
    )
    voi_index: int = Field(0, ge=0, description="Which of several windows or VOI LUTs.")
    frame: int | None = Field(None, ge=0, description="Frame of a multi-frame file; None refuses such a file.")
    colour: Literal["refuse", "luminance"] = Field(
        "refuse", description="Colour files: refuse, or convert to luminance."
    )


class ModelInputConfig(Config):
    """From the stored square to the tensor that an image tower takes: `(x / full scale - mean) / std`."""

    size: int = Field(224, ge=16, le=2048, description="Side of the model input in pixels.")
    channels: Literal[1, 3] = Field(1, description="3 repeats the grey channel.")
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> ModelInputConfig:
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(f"mean and std need 1 or {self.channels} values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


class Preprocessing(Config):
    """Everything between an image file and a model."""

    stored: StoredImageConfig = StoredImageConfig()
    input: ModelInputConfig = ModelInputConfig()
