"""Configuration of the reading of studies by retrieval."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config


class ReadingConfig(Config):
    """What is read of a study, and from which known studies."""

    questions: tuple[str, ...] = Field(
        (),
        description="Measurements of the data set, or labels. Their macro mean has a meaning only where they have one "
        "unit.",
    )
    by: Literal["texts", "clips"] = Field(
        "texts",
        description="texts: the training studies whose texts lie nearest to the study in the space that both share, as "
        "EchoPrime. clips: those whose own clips have the nearest features; baselines without an encoder always.",
    )
    sections: tuple[Literal["findings", "impression"], ...] = Field(
        ("findings", "impression"), min_length=1, description="texts: of the reports of known studies."
    )
    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 5, 10, 20, 50, 100),
        min_length=1,
        description="Known studies that answer together: of these the number with the smallest error on val, for each "
        "question. EchoPrime takes 50.",
    )
    view_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="texts: how much a clip of each view counts; empty weighs them as the method has learnt it, or "
        "all alike.",
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ReadingConfig:
        if self.by == "clips" and (self.view_weights or self.sections != ("findings", "impression")):
            raise ValueError("view_weights and sections have no effect on by: clips")
        if len(set(self.questions)) < len(self.questions) or len(set(self.neighbours)) < len(self.neighbours):
            raise ValueError("questions or neighbours names a value twice")
        return self
