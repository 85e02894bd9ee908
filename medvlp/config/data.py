"""Configuration of training data: a prepared store, its texts, and random changes of both.

Guarantee: every random change is off at its neutral value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from medvlp.config.base import Config, Fraction, Positive
from medvlp.config.towers import kind_of

Share = Annotated[float, Field(ge=0, le=1)]


class TextAugmentConfig(Config):
    """Random changes of a text."""

    shuffle_sentences: bool = False
    keep_sentences: tuple[Share, Share] = Field(
        (1.0, 1.0), description="Share of its sentences that the augmented text keeps, between these; at least one."
    )
    drop_words: float = Field(0.0, ge=0, lt=1, description="Probability that a word of the augmented text is dropped.")

    @property
    def changes_text(self) -> bool:
        """Whether anything is done to a text."""
        return self.shuffle_sentences or self.drop_words > 0 or self.keep_sentences != (1.0, 1.0)

    @model_validator(mode="after")
    def _low_before_high(self) -> TextAugmentConfig:
        low, high = self.keep_sentences
        if low > high:
            raise ValueError(f"keep_sentences begins at {low} and ends at {high}")
        return self


class AugmentConfig(TextAugmentConfig):
    """Random changes of a training image and of its text. Each is off at its neutral value."""

    kind: ClassVar[str] = "image"
    crop_scale: tuple[Fraction, Fraction] = Field((0.6, 1.0), description="Share of the area that a crop keeps.")
    crop_ratio: tuple[Positive, Positive] = Field((0.85, 1.18), description="Width by height of a crop, log-uniform.")
    rotate_degrees: float = Field(0.0, ge=0, le=45)
    flip: bool = Field(False, description="Mirror every second image; its text, triplets and labels swap sides, too.")
    brightness: float = Field(0.2, ge=0, lt=1)
    contrast: float = Field(0.2, ge=0, lt=1)
    invert: float = Field(0.0, ge=0, le=1, description="Probability of a grey-value inversion.")

    @property
    def mirrors(self) -> bool:
        """Whether sides may be swapped."""
        return self.flip


Degrees = Annotated[float, Field(ge=0, le=45)]


class VolumeAugmentConfig(TextAugmentConfig):
    """Random changes of a training volume, made on the device, and of its text. Each is off at its neutral value."""

    kind: Literal["volume"] = "volume"
    flip: tuple[Literal["d", "h", "w"], ...] = Field(
        (),
        description="Mirror every second one along each of these axes. An odd number of them mirrors the "
        "patient; text, triplets, labels and organs swap sides, too.",
    )
    rot90: bool = Field(False, description="Turn by 0 to 3 quarter turns in the axial plane (h, w).")
    rotate_degrees: tuple[Degrees, Degrees, Degrees] = Field(
        (0.0, 0.0, 0.0), description="Turn by up to this about d, h and w, in mm."
    )
    zoom: float = Field(0.0, ge=0, lt=1, description="Enlarge by a factor within 1 ± zoom.")
    scale: float = Field(0.0, ge=0, lt=1, description="Values times a factor within 1 ± scale.")
    shift: float = Field(0.0, ge=0, description="Added to all values, in HU or as stored, up to ±.")
    noise: float = Field(0.0, ge=0, description="Normal noise, of a standard deviation from 0 to this.")

    @model_validator(mode="after")
    def _axes_once(self) -> VolumeAugmentConfig:
        if len(set(self.flip)) != len(self.flip):
            raise ValueError(f"an axis is named twice in flip: {', '.join(self.flip)}")
        return self

    @property
    def mirrors(self) -> bool:
        """Whether sides may be swapped."""
        return bool(self.flip)

    @property
    def moves(self) -> bool:
        """Whether anything is done to a volume."""
        strengths = (*self.rotate_degrees, self.zoom, self.scale, self.shift, self.noise)
        return self.mirrors or self.rot90 or any(strengths)


AnyAugmentConfig = Annotated[
    Annotated[AugmentConfig, Tag("image")] | Annotated[VolumeAugmentConfig, Tag("volume")], Discriminator(kind_of)
]
"""Of images, unless the method's image tower takes volumes."""


class PretrainDataConfig(Config):
    """What a method is trained on."""

    store: Path
    reports: Path | None = Field(None, description="Report collection (tgz or folder) for unpaired methods.")
    split: str = "train"
    labels: tuple[str, ...] = Field((), description="Label columns used; empty takes those of the card.")
    reports_source: str = Field("iu_xray_reports", description="Name of the data set that data.reports is.")
    sections: tuple[Literal["findings", "impression"], ...] = ("findings", "impression")
    knowledge: Path | None = Field(
        None, description="Knowledge bank (medvlp knowledge build) for methods that need triplets, concepts or groups."
    )
    min_concept_count: int = Field(1, ge=1, description="Concepts that fewer texts name are left out.")
    views: tuple[str, ...] = Field((), description="Views used, e.g. [PA, AP]; empty uses all.")
    sentences: Literal["images", "findings", "reports"] = Field(
        "images",
        description="Unpaired methods: findings of the drawn sentences as often as among the images, all as often, "
        "or as often as in the reports.",
    )
    augment: AnyAugmentConfig = AugmentConfig()
    num_workers: int | None = Field(
        None,
        ge=0,
        le=64,
        description="Loader threads; 0 loads in the training thread. null takes one per core, 16 at the most; the "
        "processes of a machine share its cores.",
    )
    prefetch: int = Field(4, ge=1, le=64, description="Batches made ahead.")
