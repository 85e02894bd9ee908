"""Configuration of `medvlp bench run`: tasks with protocols, label fractions, seeds and draws.

Guarantee: a setting without effect on the protocols of its entry is a mistake.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Fraction

Protocol = Literal["linear_probe", "knn", "few_shot", "frozen", "fine_tune", "zero_shot"]
Correction = Literal["holm", "benjamini_hochberg"]


class SuiteEntry(Config):
    """One task with the protocols, label fractions, seeds and draws to run it at."""

    task: str
    protocols: tuple[Protocol, ...] = Field(min_length=1)
    fractions: tuple[Fraction, ...] = Field((1.0,), min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1)
    draws: int = Field(1, ge=1, description="Label subsets drawn per fraction below 1.")
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field((), description="Samples per class in few_shot.")
    exclude: dict[str, str] = Field(
        default_factory=dict, description="Encoders that do not run the entry, by their names in tables -> why not."
    )
    set: dict[str, Any] = Field(
        default_factory=dict, description="Task fields replaced for this suite, e.g. fine_tune.epochs."
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> SuiteEntry:
        few_shot = "few_shot" in self.protocols
        if few_shot and not self.shots:
            raise ValueError("few_shot needs shots, e.g. shots: [1, 4, 16]")
        if self.shots and not few_shot:
            raise ValueError("shots has no effect without the protocol few_shot")
        if min(self.fractions, default=1.0) < 1 and not set(self.protocols) - {"few_shot", "zero_shot"}:
            raise ValueError("fractions has no effect on few_shot and zero_shot")
        if self.draws > 1 and not few_shot and min(self.fractions, default=1.0) == 1:
            raise ValueError("draws has no effect without a fraction below 1 or few_shot: all labels are one subset")
        return self


class SuiteConfig(Config):
    """`medvlp bench run`."""

    kind: Literal["suite"] = "suite"
    name: str
    version: int = Field(ge=1)
    description: str = ""
    entries: tuple[SuiteEntry, ...] = Field(min_length=1)
    baselines: tuple[Literal["random", "metadata", "image_statistics", "majority", "location_prior"], ...] = (
        "random",
        "metadata",
        "image_statistics",
        "majority",
        "location_prior",
    )
    bootstrap_resamples: int = Field(1000, ge=10)
    bootstrap_seed: int = 0
    alpha: float = Field(0.05, gt=0, lt=1)
    permutations: int = Field(2000, ge=100, description="Exchanges of a permutation test.")
    correction: Correction = Field(
        "holm",
        description="Of the p values of all comparisons: holm bounds the chance of any false finding, "
        "benjamini_hochberg the share of false ones among those called.",
    )
