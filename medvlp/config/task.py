"""Configuration of one task of the benchmark, and of its fine-tuning.

Guarantee: labels are named where a task asks for them, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive
from medvlp.config.data import AugmentConfig


class LabelConfig(Config):
    """A binary question: samples with `positive` against samples with `negative`; all others are left out."""

    name: str
    positive: str = Field(description="Label column that must be 1.")
    negative: str | None = Field(
        None, description="Label column that must be 1 for a negative; None: `positive` must be 0."
    )
    prompts: dict[Literal["positive", "negative"], tuple[str, ...]] = Field(default_factory=dict)
    regions: tuple[str, ...] = Field(
        (), description="Grounding: names of its boxes or masks; empty takes those named `positive`."
    )


class FineTuneConfig(Config):
    """End-to-end training of encoder and linear head; the epoch with the best validation score is kept."""

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    lr: Positive = 3e-4
    encoder_lr_ratio: Positive = 1.0
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(20, ge=0)
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an averaged copy, which is validated and kept.")
    input_size: int | None = Field(None, ge=16, le=2048, description="Side in pixels; None takes the encoder's own.")
    augment: AugmentConfig = AugmentConfig()

    @model_validator(mode="after")
    def _no_text(self) -> FineTuneConfig:
        if self.augment.shuffle_sentences or self.augment.drop_words:
            raise ValueError("shuffle_sentences and drop_words change texts, and fine-tuning has none: leave them out")
        return self


class GroundingConfig(Config):
    """Where a finding is said to be."""

    target: Literal["boxes", "masks"] = "boxes"


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
    labels: tuple[LabelConfig, ...] = Field((), description="What is asked; a retrieval task asks no label.")
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

    @model_validator(mode="after")
    def _labels_where_they_are_asked(self) -> TaskConfig:
        if self.type == "retrieval" and self.labels:
            raise ValueError("labels has no effect on retrieval: leave it out")
        if self.type in ("classification", "grounding") and not self.labels:
            raise ValueError("labels must name one label or more")
        return self
