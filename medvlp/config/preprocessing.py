"""The one preprocessing of an image, as data: file -> stored square of grey values -> model input.

Guarantee: a `Preprocessing` is complete. Saved with a store and with the weights, it makes the same pixels from a file
in training, inference and benchmark; nothing about it is decided elsewhere.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config
from medvlp.config.volumes import ClipInputConfig, VolumeInputConfig


class StoredImageConfig(Config):
    """From a file to a square `[size size]` of grey values, 0 black to full scale white."""

    size: int = Field(256, ge=16, le=4096, description="Side of the stored square in pixels.")
    aspect: Literal["pad", "squash", "crop"] = Field(
        "pad",
        description="pad the short side with black, squash both to size, or crop the long side around the centre.",
    )
    interpolation: Literal["area", "bilinear", "bicubic", "lanczos"] = Field("area", description="Resampling filter.")
    crop_from: int | None = Field(
        None,
        ge=16,
        le=8192,
        description="Scale as if size were this, then cut the centre of size out; null cuts nothing off.",
    )
    dtype: Literal["uint8", "uint16"] = "uint8"
    voi: Literal["auto", "lut", "window", "none"] = Field(
        "auto", description="DICOM: VOI LUT, else window, else the range of the image; or exactly one of them."
    )
    voi_index: int = Field(0, ge=0, description="Which of several windows or VOI LUTs.")
    frame: int | None = Field(None, ge=0, description="Frame of a multi-frame file; None refuses such a file.")
    colour: Literal["refuse", "luminance", "keep"] = Field(
        "refuse", description="Colour files: refuse, convert to luminance, or keep red, green and blue."
    )

    @model_validator(mode="after")
    def _cut_from_a_larger_square(self) -> StoredImageConfig:
        if self.crop_from is not None and self.crop_from < self.size:
            raise ValueError(f"crop_from must not be below size, which is {self.size}")
        return self


class StoredVolumeConfig(Config):
    """From a series or file to a stored volume: int16, RAS, HU where the data set says so; no window is applied."""

    irregular: Literal["refuse", "resample"] = Field(
        "refuse", description="Slices at uneven distances: refuse the series, or interpolate at the median distance."
    )
    tilt: Literal["refuse", "resample"] = Field(
        "refuse", description="Slices shifted against each other (gantry tilt): refuse, or resample to a straight grid."
    )
    intensity: Literal["auto", "hu", "stored"] = Field(
        "auto", description="auto takes what file or data set say; hu or stored name it where neither does."
    )
    spacing_mm: tuple[float, float, float] | None = Field(
        None, description="Resample to this distance along d, h, w; null keeps that of the file."
    )
    crop: Literal["none", "body"] = Field(
        "none", description="body cuts to the bounding box of the body (above -500 HU)."
    )
    chunk: int = Field(64, ge=16, le=256, description="Side of a chunk in voxels: the unit of partial reading.")
    compressor: Literal["none", "lz4", "zstd"] = "lz4"


class StoredVideoConfig(Config):
    """From a video or a folder of frames to a stored clip `[f h w]`."""

    size: int = Field(112, ge=16, le=1024, description="Side of a stored frame in pixels.")
    aspect: Literal["pad", "squash", "crop"] = "pad"
    every: int = Field(1, ge=1, description="Keep every n-th frame.")
    max_frames: int | None = Field(None, ge=1, description="Keep the first frames only.")
    colour: Literal["luminance", "keep"] = "luminance"


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

    kind: ClassVar[str] = "image"
    stored: StoredImageConfig = StoredImageConfig()
    input: ModelInputConfig = ModelInputConfig()


class VolumePreprocessing(Config):
    """Everything between a series or a file of a volume and a model."""

    kind: Literal["volume"] = "volume"
    stored: StoredVolumeConfig = StoredVolumeConfig()
    input: VolumeInputConfig = VolumeInputConfig()


class ClipPreprocessing(Config):
    """Everything between a video and a model."""

    kind: Literal["video"] = "video"
    stored: StoredVideoConfig | StoredImageConfig = Field(
        StoredVideoConfig(), description="Of whole videos, or of frames that were extracted and stored one by one."
    )
    input: ClipInputConfig = ClipInputConfig()


AnyStored = StoredImageConfig | StoredVolumeConfig | StoredVideoConfig
AnyPreprocessing = Preprocessing | VolumePreprocessing | ClipPreprocessing
AnyInput = ModelInputConfig | VolumeInputConfig | ClipInputConfig


def preprocessing_of(stored: AnyStored, taken: AnyInput) -> AnyPreprocessing:
    """Return the preprocessing of how a store was made and what a tower takes.

    Raises:
        ValueError: They are not of one kind.
    """
    kinds: dict[type[Config], type[AnyPreprocessing]] = {
        VolumeInputConfig: VolumePreprocessing,
        ClipInputConfig: ClipPreprocessing,
    }
    return kinds.get(type(taken), Preprocessing).model_validate({"stored": stored, "input": taken})


def read_preprocessing(described: dict[str, Any]) -> AnyPreprocessing:
    """Return the preprocessing that `described` is the JSON of: of images, unless its `kind` says otherwise."""
    kinds: dict[str, type[AnyPreprocessing]] = {"volume": VolumePreprocessing, "video": ClipPreprocessing}
    return kinds.get(described.get("kind", ""), Preprocessing).model_validate(described)
