"""Configuration of `medvlp finetune`: a store of one's own, an encoder, a task, and how its answers are decided.

Guarantee: a label may be given by its name alone; a setting without effect beside the others is a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from medvlp.config.base import Config, Fraction
from medvlp.config.classification import ClassificationConfig
from medvlp.config.questions import VqaConfig
from medvlp.config.reports import ReportsConfig
from medvlp.config.segmentation import SegmentationConfig
from medvlp.config.task import FineTuneConfig, LabelConfig, check_fine_tuning
from medvlp.config.train import RunConfig, TrackConfig
from medvlp.config.volume_segmentation import VolumeSegmentationConfig


class FinetuneDataConfig(Config):
    """Which images of a prepared store, and which labels."""

    store: Path
    labels: tuple[LabelConfig, ...] = Field(
        (),
        description="Names of label columns, e.g. [Pneumonia, Edema], or questions as in a task; empty takes all "
        "columns of which the training images have both classes.",
    )
    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    not_mentioned: Literal["ignore", "negative"] = "ignore"
    views: tuple[str, ...] = Field((), description="Views used, e.g. [PA, AP]; empty uses all.")
    val_fraction: Fraction = Field(
        0.15, description="Share of patients set aside for validation if the store has none."
    )
    test_fraction: Fraction = Field(0.2, description="Share of patients set aside for testing if the store has none.")
    split_seed: int = 0
    num_workers: int = Field(2, ge=0, le=64, description="Threads that load.")

    @field_validator("labels", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        """Take a name for the question that its column answers."""
        if not isinstance(given, list | tuple):
            return given
        return [{"name": one, "positive": one} if isinstance(one, str) else one for one in given]

    @model_validator(mode="after")
    def _sane(self) -> FinetuneDataConfig:
        if self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction leave nothing to train on")
        names = [label.name for label in self.labels]
        if len(set(names)) < len(names):
            raise ValueError("labels must have different names")
        return self


class DecisionConfig(Config):
    """From logits to probabilities, and to yes or no: both are chosen on validation."""

    calibration: Literal["platt", "temperature", "none"] = Field(
        "platt",
        description="platt: slope and offset, temperature: slope alone, of each label's logits, so that of images with "
        "probability 0.3 about 30 % are positive.",
    )
    threshold: Literal["f1", "youden", "sensitivity", "specificity"] = Field(
        "f1",
        description="What the threshold of yes is best for; sensitivity and specificity: that which reaches `target`.",
    )
    target: float | None = Field(None, gt=0, lt=1, description="Sensitivity or specificity to reach on validation.")

    @model_validator(mode="after")
    def _target_where_there_is_one(self) -> DecisionConfig:
        if (self.threshold in ("sensitivity", "specificity")) != (self.target is not None):
            raise ValueError("target belongs to threshold: sensitivity and specificity, and is needed there")
        return self


class FinetuneConfig(Config):
    """`medvlp finetune`."""

    kind: Literal["finetune"] = "finetune"
    run: RunConfig
    encoder: str = Field(description="A run, or zoo:NAME:FILE, timm:FOLDER, hf:FOLDER, random:NAME.")
    task: Literal["classification", "segmentation", "volume_segmentation", "report_generation", "vqa"] = Field(
        "classification", description="Of images or volumes; segmentation is of images, volume_segmentation of volumes."
    )
    data: FinetuneDataConfig
    train: FineTuneConfig = FineTuneConfig()
    classification: ClassificationConfig = ClassificationConfig()
    decision: DecisionConfig = DecisionConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    volume_segmentation: VolumeSegmentationConfig = VolumeSegmentationConfig()
    reports: ReportsConfig = ReportsConfig()
    vqa: VqaConfig = VqaConfig(question_text="trained")
    device: str = Field("auto", description="auto, cpu or cuda.")
    checkpoint_every: int = Field(200, ge=1, description="Steps; validation saves, too.")
    log_every: int = Field(10, ge=1)
    bootstrap_resamples: int = Field(1000, ge=10)
    bootstrap_seed: int = 0
    alpha: float = Field(0.05, gt=0, lt=1)
    track: TrackConfig = TrackConfig()

    @model_validator(mode="after")
    def _of_its_task(self) -> FinetuneConfig:
        sections = {
            "classification": ("classification", "decision"),
            "segmentation": ("segmentation",),
            "volume_segmentation": ("volume_segmentation",),
            "report_generation": ("reports",),
            "vqa": ("vqa",),
        }
        for task, names in sections.items():
            for name in names:
                if self.task != task and getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(f"{name} has no effect on task: {self.task}")
        if not self.asks_labels:
            for name in ("labels", "uncertain", "not_mentioned"):
                if getattr(self.data, name) != FinetuneDataConfig.model_fields[name].default:
                    raise ValueError(f"data.{name} has no effect on {self._asked}")
        check_fine_tuning(self.task, self.train, "train")
        if self.vqa.question_text != "trained":
            raise ValueError(
                "vqa.question_text must be trained: a model of one's own keeps no text side of its encoder"
            )
        if self.classification.legacy_scores:
            raise ValueError("classification.legacy_scores belongs to tasks of the benchmark: leave it out")
        return self

    @property
    def asks_labels(self) -> bool:
        """Whether labels are what is asked, or what questions are made from."""
        return self.task in ("classification", "segmentation", "volume_segmentation") or (
            self.task == "vqa" and self.vqa.questions == "labels"
        )

    @property
    def _asked(self) -> str:
        return "vqa.questions: table" if self.task == "vqa" else f"task: {self.task}"
