"""Configuration of what images are compared with: texts of studies in retrieval, prompts in zero-shot classification.

Guarantee: a setting that has no effect beside the others is a mistake.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive


class RetrievalConfig(Config):
    """Which text of a study is looked for, and how both sides are shown to an encoder."""

    sections: tuple[Literal["findings", "impression"], ...] = Field(("findings", "impression"), min_length=1)
    subset: str | None = Field(
        None,
        description="class_retrieval: the listed images of this subset of the data set (`5x200` of MIMIC-CXR-JPG), "
        "whatever their split; null takes the test split.",
    )
    classes: tuple[str, ...] = Field(
        (),
        description="class_retrieval: labels that make up the class of an image, where its subset has none of its own.",
    )
    legacy_one_way: bool = Field(
        False,
        description="class_retrieval, as BenchX: image to report alone, a report of the same class is right, not only "
        "the image's own.",
    )
    pool: int | None = Field(
        None,
        ge=2,
        description="retrieval: search among this many studies of the test split, chosen by a hash of their ids; null "
        "searches all.",
    )
    max_tokens: int | None = Field(
        None, ge=4, description="Of a text; longer ones are cut. null takes the encoder's own."
    )
    mean: tuple[float, float, float] | None = Field(
        None, description="Of the input, red, green and blue, for all encoders alike; null takes the encoder's own."
    )
    std: tuple[Positive, Positive, Positive] | None = Field(None, description="Likewise, the standard deviation.")

    @model_validator(mode="after")
    def _both_or_neither(self) -> RetrievalConfig:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std, or neither")
        return self


class ZeroShotConfig(Config):
    """From the labels of a classification to prompts, and from prompts to one answer."""

    prompts: Literal["pair", "ensemble", "description", "generated"] = Field(
        "pair",
        description="pair: the label's prompts as written. ensemble: each of them in several sentences. description: "
        "what the finding book says of the finding. generated: severity, kind and place as in GLoRIA, a few drawn.",
    )
    reduce: Literal["mean", "max", "best"] = Field(
        "mean", description="How several prompts become one answer; best: the surest pairs of prompts, as in KEEP."
    )
    per_class: int = Field(5, ge=1, description="generated: prompts drawn per label.")
    seed: int = Field(0, ge=0, description="generated: of the draw.")
    legacy_standardised: bool = Field(
        False,
        description="As BenchX: the most similar positive prompt, no negative one, standardised over the evaluated "
        "images, so that an image's score depends on the others.",
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ZeroShotConfig:
        if self.prompts != "generated" and (self.per_class, self.seed) != (5, 0):
            raise ValueError("per_class and seed have an effect on generated prompts only: leave them out")
        if self.legacy_standardised and self.reduce != "mean":
            raise ValueError("reduce has no effect with legacy_standardised, which takes the maximum: leave it out")
        return self
