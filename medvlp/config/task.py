"""Configuration of one task of the benchmark, and of its fine-tuning.

Guarantee: labels are named where a task asks for them, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive
from medvlp.config.data import AugmentConfig
from medvlp.config.reports import ReportsConfig
from medvlp.config.segmentation import SegmentationConfig


class LabelConfig(Config):
    """A binary question: samples with `positive` against samples with `negative`; all others are left out."""

    name: str
    positive: str = Field(description="Label column that must be 1.")
    negative: str | None = Field(
        None, description="Label column that must be 1 for a negative; None: `positive` must be 0."
    )
    prompts: dict[Literal["positive", "negative"], tuple[str, ...]] = Field(default_factory=dict)
    regions: tuple[str, ...] = Field(
        (), description="Grounding, segmentation: names of its boxes or masks; empty takes those named `positive`."
    )


class PlateauConfig(Config):
    """Schedule `plateau`: the rate falls when validation stands still (torch's ReduceLROnPlateau)."""

    factor: float = Field(0.8, gt=0, lt=1, description="On the rate.")
    patience: int = Field(1, ge=0, description="Validations without a better one that are waited for.")
    min_ratio: float = Field(0.001, ge=0, lt=1, description="Of the lowest rate to the first.")


class FineTuneConfig(Config):
    """Training of encoder and linear head; the epoch with the best validation score is kept."""

    epochs: int = Field(20, ge=1)
    steps: int | None = Field(None, ge=1, description="Optimiser steps in all; None takes those of `epochs`.")
    patience: int | None = Field(None, ge=1, description="Stop after this many validations without a better one.")
    freeze_encoder: bool = Field(False, description="Train the head alone; the encoder stays in evaluation mode.")
    batch_size: int = Field(32, ge=1)
    lr: Positive = 3e-4
    encoder_lr_ratio: Positive = 1.0
    optimizer: Literal["adamw", "adam_amsgrad"] = Field(
        "adamw", description="adam_amsgrad adds weight_decay to the gradient, as R2Gen has it."
    )
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(20, ge=0)
    schedule: Literal["cosine", "linear", "plateau"] = Field(
        "cosine", description="Of the rate after the warm-up: down to 0, or by `plateau`."
    )
    plateau: PlateauConfig = PlateauConfig()
    clip_norm: float | None = Field(1.0, gt=0, description="Of the gradient; null clips nothing.")
    validate_every: int | None = Field(None, ge=1, description="Steps; None validates after each epoch.")
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an averaged copy, which is validated and kept.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of training; validation and use are in fp32.")
    input_size: int | None = Field(None, ge=16, le=2048, description="Side in pixels; None takes the encoder's own.")
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _plateau_has_an_effect(self) -> FineTuneConfig:
        if self.schedule != "plateau" and self.plateau != PlateauConfig():
            raise ValueError("plateau has no effect without schedule: plateau")
        return self

    @model_validator(mode="after")
    def _no_text(self) -> FineTuneConfig:
        if self.augment.shuffle_sentences or self.augment.drop_words:
            raise ValueError("shuffle_sentences and drop_words change texts, and fine-tuning has none: leave them out")
        return self


class GroundingConfig(Config):
    """Where a finding is said to be."""

    target: Literal["boxes", "masks"] = "boxes"
    images: Literal["test", "all"] = Field(
        "test", description="Images that are asked; all where few hold a region, because nothing is trained."
    )


class RetrievalConfig(Config):
    """Which text of a study is looked for."""

    sections: tuple[Literal["findings", "impression"], ...] = Field(("findings", "impression"), min_length=1)


class TaskConfig(Config):
    """One task of the benchmark. `version` rises with every change that can move a number."""

    kind: Literal["task"] = "task"
    name: str
    version: int = Field(ge=1)
    type: str = Field("classification", description="Module of medvlp.tasks.")
    dataset: str
    labels: tuple[LabelConfig, ...] = Field(
        (), description="What is asked; retrieval and report generation ask no label."
    )
    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    not_mentioned: Literal["ignore", "negative"] = "ignore"
    views: tuple[str, ...] = Field((), description="Views used; empty uses all.")
    linear_probe_c: tuple[Positive, ...] = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0), description="Inverse penalties tried on val."
    )
    knn_k: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10, 20, 50)
    fine_tune: FineTuneConfig = FineTuneConfig()
    grounding: GroundingConfig = GroundingConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    reports: ReportsConfig = ReportsConfig()
    segmentation: SegmentationConfig = SegmentationConfig()

    @model_validator(mode="after")
    def _labels_where_they_are_asked(self) -> TaskConfig:
        if self.type in ("retrieval", "report_generation") and self.labels:
            raise ValueError(f"labels has no effect on {self.type}: leave it out")
        if self.type == "report_generation" and self.fine_tune.augment.flip:
            raise ValueError(
                "fine_tune.augment.flip swaps the sides of an image, and a report names them: leave it out"
            )
        if self.type in ("classification", "grounding", "segmentation") and not self.labels:
            raise ValueError("labels must name one label or more")
        return self
