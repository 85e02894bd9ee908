"""Configuration of classification: the head on an encoder, what it is judged by, and what is tried for each encoder.

Guarantee: a setting without effect beside the others is a mistake; every encoder gets the same grid.
"""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive

TUNING_SEED = 20_241


class ClassificationConfig(Config):
    """Classification by fine-tuning: the head, the input, and the score that chooses on validation."""

    classes: Literal["overlapping", "exclusive"] = Field(
        "overlapping",
        description="Each label is asked on its own, by one logit. exclusive: the one label of the task against its "
        "absence, by two logits, softmax and cross-entropy.",
    )
    norm: bool = Field(False, description="LayerNorm (eps 1e-6) on the pooled features, before the linear layer.")
    init: Literal["uniform", "truncated_normal"] = Field(
        "uniform", description="Weights of the linear layer: torch's own, or normal with deviation 2e-5, cut at 2."
    )
    mean: float | None = Field(None, description="Of the input, for all encoders alike; null takes the encoder's own.")
    std: float | None = Field(None, gt=0, description="Likewise, the standard deviation.")
    select: Literal["auroc", "f1"] = Field(
        "auroc",
        description="On val. auroc: mean over labels; f1: of the label called where its probability is above one half, "
        "rounded to 0.01 % as BenchX has it.",
    )
    legacy_scores: bool = Field(False, description="Beside the right scores those of BenchX.")
    video_scores: bool = Field(
        False,
        exclude_if=lambda asked: not asked,  # tasks without it stay what they were
        description="Beside the others accuracy and F1 within each video, averaged over videos: of labels of which one "
        "holds in each frame, the most probable one is called.",
    )

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ClassificationConfig:
        if self.legacy_scores and self.video_scores:
            raise ValueError("give legacy_scores or video_scores, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std, or neither")
        return self


class TuningConfig(Config):
    """A grid of settings that is tried for each encoder; the one that is best on validation is used."""

    trials: int | None = Field(None, ge=2, description="Settings tried, drawn from the grid; null tries all of it.")
    lr: tuple[Positive, ...] = ()
    batch_size: tuple[Annotated[int, Field(ge=1)], ...] = ()
    encoder_lr_ratio: tuple[Positive, ...] = ()
    optimizer: tuple[Literal["adamw", "adam", "sgd"], ...] = ()
    weight_decay: tuple[Annotated[float, Field(ge=0)], ...] = ()

    @property
    def grid(self) -> list[dict[str, Any]]:
        """Return all settings, as fields of `fine_tune`."""
        axes = {name: values for name, values in self if name != "trials" and values}
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]

    @property
    def settings(self) -> list[dict[str, Any]]:
        """Return the settings that are tried: the same for every encoder, fraction and seed."""
        grid = self.grid
        if self.trials is None:
            return grid
        drawn = np.random.default_rng(TUNING_SEED).permutation(len(grid))[: self.trials]
        return [grid[place] for place in sorted(drawn)]

    @model_validator(mode="after")
    def _something_to_choose_from(self) -> TuningConfig:
        for name, values in self:
            if isinstance(values, tuple) and len(set(values)) < len(values):
                raise ValueError(f"{name} names a value twice")
        size = len(self.grid)
        if size < 2:
            raise ValueError("the grid has one setting only: name two values of a setting or more")
        if self.trials is not None and self.trials > size:
            raise ValueError(f"trials is {self.trials}, and the grid has {size} settings")
        return self
