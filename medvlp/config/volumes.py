"""From a stored volume to what a model takes: size, distance of voxels, windows.

Guarantee: all of it is done when a batch is made, never in the store. A window maps its lower edge to 0 and its upper
edge to full scale, linearly, and cuts what lies outside.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from medvlp.config.base import Config

PRESETS: dict[str, tuple[float, float]] = {
    "lung": (-600, 1500),
    "mediastinum": (40, 400),
    "soft_tissue": (50, 350),
    "abdomen": (50, 400),
    "liver": (30, 150),
    "bone": (400, 1800),
    "brain": (40, 80),
    "subdural": (75, 215),
    "stroke": (32, 8),
    "temporal_bone": (600, 2800),
    "whole": (0, 2000),
}
"""Named windows of CT as centre and width in HU; the common ones of radiological practice."""


class WindowConfig(Config):
    """A grey-value window: `centre - width / 2` becomes black, `centre + width / 2` white."""

    centre: float
    width: float = Field(gt=0)

    @property
    def low(self) -> float:
        """Value that becomes 0."""
        return self.centre - self.width / 2

    @property
    def high(self) -> float:
        """Value that becomes full scale."""
        return self.centre + self.width / 2


Side = Annotated[int, Field(ge=8, le=1024)]
Distance = Annotated[float, Field(gt=0)]
Windows = tuple[WindowConfig, ...]


def named_windows(value: Any) -> Any:
    """Return windows with names of `PRESETS` replaced by what they stand for."""
    if not isinstance(value, list | tuple):
        return value
    return tuple(_named(window) if isinstance(window, str) else window for window in value)


class VolumeInputConfig(Config):
    """From a stored volume `[d h w]` to the tensor `[c d h w]` that a tower takes.

    Values of a channel are `(u - mean) / std`, where u is 0 at the lower edge of its window and 1 at the upper one.
    """

    size: tuple[Side, Side, Side] = Field((96, 96, 96), description="Voxels along d, h, w.")
    spacing_mm: tuple[Distance, Distance, Distance] | None = Field(
        None,
        description="Distance of voxels along d, h, w: the volume is resampled to it, and its middle cut or padded to "
        "size. null stretches the whole volume to size.",
    )
    windows: Windows = Field(
        (WindowConfig(centre=0, width=2000),),
        description="One channel each: a name of PRESETS (lung, mediastinum, ...), or centre and width. Empty is one "
        "channel from the lowest to the highest value of each volume, or crop of it.",
    )
    intensity: Literal["hu", "stored"] = Field("hu", description="What the numbers of windows and volumes mean.")
    outside: int = Field(
        -1024,
        ge=-32768,
        le=32767,
        description="Value of what lies outside the volume: air; without windows, the nearest one of the volume.",
    )
    mean: tuple[float, ...] = Field((0.5,), description="One for all channels, or one for each.")
    std: tuple[float, ...] = Field((0.5,), description="One for all channels, or one for each.")

    _windows_by_name = field_validator("windows", mode="before")(named_windows)

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> VolumeInputConfig:
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(f"mean and std need 1 or {self.channels} values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self

    @property
    def channels(self) -> int:
        """Number of channels."""
        return max(1, len(self.windows))


class ClipInputConfig(Config):
    """From a stored clip `[f s s]` or `[f s s 3]` to the tensor `[c f h w]` that a tower takes."""

    size: int = Field(224, ge=16, le=1024, description="Side of a frame in pixels.")
    frames: int = Field(16, ge=1, le=512, description="Frames of the model input.")
    every: int = Field(2, ge=1, description="Of the stored frames every n-th; what lies behind the end is black.")
    channels: Literal[1, 3] = Field(3, description="3 repeats a grey channel.")
    mean: tuple[float, ...] = Field((0.114,), description="On a scale from 0 to 1; one, or one for each channel.")
    std: tuple[float, ...] = Field((0.186,), description="On a scale from 0 to 1; one, or one for each channel.")

    @model_validator(mode="after")
    def _one_value_per_channel(self) -> ClipInputConfig:
        if {len(self.mean), len(self.std)} - {1, self.channels}:
            raise ValueError(f"mean and std need 1 or {self.channels} values")
        if min(self.std) <= 0:
            raise ValueError("std must be positive")
        return self


def _named(name: str) -> WindowConfig:
    from medvlp.errors import nearest

    if name not in PRESETS:
        raise ValueError(f"there is no window '{name}'.{nearest(name, list(PRESETS))} There are: {', '.join(PRESETS)}")
    centre, width = PRESETS[name]
    return WindowConfig(centre=centre, width=width)
