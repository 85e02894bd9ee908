"""From a stored volume to the crops that a model takes: size, windows, and where crops lie.

Guarantee: all of it is done when a batch is made, never in the store. A window maps its lower edge to 0 and its upper
edge to 255, linearly, and cuts what lies outside.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

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


class CropConfig(Config):
    """From a volume to crops `[c d h w]`, one channel for each window."""

    size: tuple[Side, Side, Side] = Field((96, 96, 96), description="Voxels along d, h, w.")
    windows: tuple[WindowConfig, ...] = Field(
        (WindowConfig(centre=40, width=400),),
        min_length=1,
        description="One channel each: a name of PRESETS (lung, mediastinum, ...), or centre and width.",
    )
    intensity: Literal["hu", "stored"] = Field("hu", description="What the numbers of windows and volumes mean.")
    outside: int = Field(-1024, ge=-32768, le=32767, description="Value of what a crop has outside its volume: air.")
    per_volume: int = Field(1, ge=1, le=4096, description="Crops of each volume in an epoch.")
    place: Literal["random", "centre"] = Field("random", description="Evaluation always takes the centre.")

    @field_validator("windows", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        return tuple(_named(window) if isinstance(window, str) else window for window in value)


def _named(name: str) -> WindowConfig:
    from medvlp.errors import nearest

    if name not in PRESETS:
        raise ValueError(f"there is no window '{name}'.{nearest(name, list(PRESETS))} There are: {', '.join(PRESETS)}")
    centre, width = PRESETS[name]
    return WindowConfig(centre=centre, width=width)
