"""Configuration of one task of the benchmark, and of its fine-tuning.

Guarantee: labels are named where a task asks for them, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from medvlp.config.base import Config, Positive
from medvlp.config.classification import ClassificationConfig, TuningConfig
from medvlp.config.data import AnyAugmentConfig, AugmentConfig, VolumeAugmentConfig
from medvlp.config.prompts import RetrievalConfig, ZeroShotConfig
from medvlp.config.questions import VqaConfig
from medvlp.config.reading import ReadingConfig
from medvlp.config.reports import ReportsConfig
from medvlp.config.segmentation import SegmentationConfig
from medvlp.config.tree import overlay
from medvlp.config.volume_segmentation import VolumeSegmentationConfig


class LabelConfig(Config):
    """A binary question: samples with `positive` against samples with `negative`; all others are left out."""

    name: str
    positive: str = Field(description="Label column that must be 1.")
    negative: str | None = Field(
        None, description="Label column that must be 1 for a negative; None: `positive` must be 0."
    )
    below: float | None = Field(
        None,
        exclude_if=lambda bound: bound is None,  # tasks without it stay what they were
        description="`positive` names a measurement, and below this it is positive, else negative; not given, neither.",
    )
    prompts: dict[Literal["positive", "negative"], tuple[str, ...]] = Field(default_factory=dict)
    regions: tuple[str, ...] = Field(
        (),
        description="Grounding, segmentation, questions about places: names of its boxes or masks; empty takes those "
        "named `positive`.",
    )
    finding: str | None = Field(
        None, description="Entry of the finding book, for described and generated prompts; null reads it from `name`."
    )

    @model_validator(mode="after")
    def _measured_or_labelled(self) -> LabelConfig:
        if self.below is not None and (self.negative is not None or self.regions):
            raise ValueError("negative and regions have no effect beside below")
        return self


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
    optimizer: Literal["adamw", "adam", "adam_amsgrad", "sgd"] = Field(
        "adamw",
        description="sgd has a momentum of 0.9; all but adamw add weight_decay to the gradient.",
    )
    weight_decay: float = Field(0.05, ge=0)
    warmup_steps: int = Field(20, ge=0)
    schedule: Literal["cosine", "linear", "plateau", "legacy_cosine"] = Field(
        "cosine",
        description="Of the rate after the warm-up: down to 0, or by `plateau`. legacy_cosine is BenchX's: the first "
        "step has rate 0, and behind `legacy_total` the cosine goes on, so that the rate climbs again.",
    )
    legacy_total: int | None = Field(None, ge=1, description="legacy_cosine: step at which the rate is 0.")
    plateau: PlateauConfig = PlateauConfig()
    clip_norm: float | None = Field(1.0, gt=0, description="Of the gradient; null clips nothing.")
    validate_every: int | None = Field(None, ge=1, description="Steps; None validates after each epoch.")
    validate_epochs: int | None = Field(
        None, ge=1, description="Epochs, in place of validate_every; what is trained after the last one is not used."
    )
    first_validation: int | None = Field(None, ge=1, description="With validate_epochs: the first epoch validated.")
    last_batch: Literal["drop", "keep"] = Field(
        "drop", description="The samples left over at the end of an epoch: leave them out, or take a short batch."
    )
    ema: float | None = Field(None, gt=0, lt=1, description="Decay of an averaged copy, which is validated and kept.")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="Of training; validation and use are in fp32.")
    input_size: int | None = Field(None, ge=16, le=2048, description="Side in pixels; None takes the encoder's own.")
    augment: AnyAugmentConfig = Field(
        AugmentConfig(),
        description="Of images, or with kind: volume of volumes; it must fit the store. Left out, images are cropped, "
        "brighter or darker, and volumes as they are. Without flip where a label or a text names a side.",
    )

    @model_validator(mode="after")
    def _plateau_has_an_effect(self) -> FineTuneConfig:
        if self.schedule != "plateau" and self.plateau != PlateauConfig():
            raise ValueError("plateau has no effect without schedule: plateau")
        if (self.schedule == "legacy_cosine") != (self.legacy_total is not None):
            raise ValueError("legacy_total belongs to schedule: legacy_cosine, and is needed there")
        if self.legacy_total is not None and self.legacy_total <= self.warmup_steps:
            raise ValueError("legacy_total must be above warmup_steps")
        return self

    @model_validator(mode="after")
    def _validated_by_steps_or_epochs(self) -> FineTuneConfig:
        if self.validate_every is not None and self.validate_epochs is not None:
            raise ValueError("give validate_every (steps) or validate_epochs, not both")
        if self.first_validation is not None and self.validate_epochs is None:
            raise ValueError("first_validation has no effect without validate_epochs")
        return self

    @model_validator(mode="after")
    def _no_text(self) -> FineTuneConfig:
        if self.augment.changes_text:
            raise ValueError(
                "shuffle_sentences, keep_sentences and drop_words change texts; fine-tuning has none: leave them out"
            )
        return self


def check_fine_tuning(kind: str, how: FineTuneConfig, key: str) -> None:
    """Raise `ValueError` where a fine-tuning does not fit its type of task.

    Args:
        kind: Type of the task.
        how: The fine-tuning.
        key: Its key in the configuration, for errors.
    """
    volumes = isinstance(how.augment, VolumeAugmentConfig)
    if kind in ("report_generation", "vqa") and how.augment.mirrors:
        raise ValueError(f"{key}.augment.flip swaps the sides of an image, and a text names them: leave it out")
    if kind == "volume_segmentation" and how.input_size is not None:
        raise ValueError(f"{key}.input_size is of pictures, and has no effect on volumes")
    if kind == "volume_segmentation" and not volumes and how.augment != AugmentConfig():
        raise ValueError(f"{key}.augment is of pictures, and the task of volumes: give kind: volume in it")
    if kind == "segmentation" and volumes:
        raise ValueError(f"{key}.augment is of volumes, and the task of pictures: leave its kind out")


class GroundingConfig(Config):
    """Where a finding is said to be."""

    target: Literal["boxes", "masks"] = "boxes"
    images: Literal["test", "all"] = Field(
        "test", description="Images that are asked; all where few hold a region, because nothing is trained."
    )


class EncoderSettings(Config):
    """What a task has otherwise for one encoder: fields of `fine_tune` and of `classification`."""

    fine_tune: dict[str, Any] = Field(default_factory=dict)
    classification: dict[str, Any] = Field(default_factory=dict)


class TaskConfig(Config):
    """One task of the benchmark. `version` rises with every change that can move a number."""

    kind: Literal["task"] = "task"
    name: str
    version: int = Field(ge=1)
    type: str = Field("classification", description="Module of medvlp.tasks.")
    dataset: str
    labels: tuple[LabelConfig, ...] = Field(
        (), description="What is asked; retrieval, report generation and questions of a table ask no label."
    )
    uncertain: Literal["ignore", "positive", "negative"] = "ignore"
    not_mentioned: Literal["ignore", "negative"] = "ignore"
    views: tuple[str, ...] = Field((), description="Views used; empty uses all.")
    linear_probe_c: tuple[Positive, ...] = Field(
        (0.001, 0.01, 0.1, 1.0, 10.0), description="Inverse penalties tried on val."
    )
    knn_k: tuple[Annotated[int, Field(ge=1)], ...] = (1, 5, 10, 20, 50)
    store_options: dict[str, str] = Field(
        default_factory=dict,
        description="`options` that the store must have been prepared with, where labels depend on them.",
    )
    label_subsets: Literal["drawn", "lists"] = Field(
        "drawn",
        description="What a fraction of the labels is. drawn: a stratified draw; lists: that of the split lists that "
        "the store must have been prepared with (0.01 is train_1, 0.1 is train_10).",
    )
    fine_tune: FineTuneConfig = FineTuneConfig()
    classification: ClassificationConfig = ClassificationConfig()
    per_encoder: dict[str, EncoderSettings] = Field(
        default_factory=dict,
        description="Name of an encoder, or of its format in `medvlp zoo list` -> what it has otherwise.",
    )
    tuning: TuningConfig | None = Field(
        None, description="Settings of `fine_tune` that are tried for each encoder; the best on val is used."
    )
    grounding: GroundingConfig = GroundingConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    zero_shot: ZeroShotConfig = ZeroShotConfig()
    vqa: VqaConfig = VqaConfig()
    reports: ReportsConfig = ReportsConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    volume_segmentation: VolumeSegmentationConfig = VolumeSegmentationConfig()
    study_reading: ReadingConfig = Field(
        ReadingConfig(),
        exclude_if=lambda section: section == ReadingConfig(),  # tasks without it stay what they were
    )

    @model_validator(mode="after")
    def _labels_where_they_are_asked(self) -> TaskConfig:
        made = self.type == "vqa" and self.vqa.questions == "labels"
        unlabelled = ("retrieval", "class_retrieval", "report_generation", "vqa", "study_reading")
        if self.type in unlabelled and self.labels and not made:
            raise ValueError(f"labels has no effect on {self.type}: leave it out")
        asking = (
            "classification",
            "grounding",
            "segmentation",
            "volume_segmentation",
            "volume_grounding",
            "image_retrieval",
        )
        if (made or self.type in asking) and not self.labels:
            raise ValueError("labels must name one label or more")
        return self

    def settings_of(self, *names: str) -> Self:
        """Return the task as it is for an encoder, by the first of its names that `per_encoder` has.

        The result has no `per_encoder`, so that it changes only with what it is for this encoder.
        """
        own = next((self.per_encoder[name] for name in names if name in self.per_encoder), EncoderSettings())
        given = self.model_dump(exclude={"per_encoder"})
        for part in ("fine_tune", "classification"):
            given[part] = overlay(given[part], getattr(own, part))
        return self.model_validate(given)

    @model_validator(mode="after")
    def _only_where_it_has_an_effect(self) -> TaskConfig:
        if self.type == "classification":
            if self.classification.classes == "exclusive" and len(self.labels) != 1:
                raise ValueError("classification.classes: exclusive needs one label, which is told from its absence")
            if self.classification.select == "f1" and len(self.labels) != 1:
                raise ValueError("classification.select: f1 needs one label; use auroc")
        elif self.classification != ClassificationConfig() or self.tuning or self.per_encoder:
            raise ValueError(f"classification, tuning and per_encoder have no effect on {self.type}: leave them out")
        if self.store_options and self.type != "classification":
            raise ValueError(f"store_options has no effect on {self.type}: leave it out")
        if self.label_subsets == "lists" and self.type not in ("classification", "segmentation", "volume_segmentation"):
            raise ValueError(f"label_subsets has no effect on {self.type}: leave it out")
        return self

    @model_validator(mode="after")
    def _volumes_are_not_pictures(self) -> TaskConfig:
        check_fine_tuning(self.type, self.fine_tune, "fine_tune")
        return self

    @model_validator(mode="after")
    def _every_encoder_fits(self) -> TaskConfig:
        for name in self.per_encoder:
            try:
                self.settings_of(name)
            except ValidationError as error:
                found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise ValueError(f"per_encoder.{name}: {found}") from error
        return self

    @model_validator(mode="after")
    def _sections_where_they_are_read(self) -> TaskConfig:
        of_one_type = (
            ("vqa", "vqa"),
            ("zero_shot", "classification"),
            ("volume_segmentation", "volume_segmentation"),
            ("study_reading", "study_reading"),
        )
        for section, kind in of_one_type:
            if self.type != kind and getattr(self, section) != type(self).model_fields[section].default:
                raise ValueError(f"{section} has no effect on {self.type}: leave it out")
        if self.type == "image_retrieval" and self.retrieval != type(self).model_fields["retrieval"].default:
            raise ValueError("retrieval has no effect on image_retrieval, which compares no texts: leave it out")
        if self.type == "study_reading" and not self.study_reading.questions:
            raise ValueError("study_reading.questions must name a measurement or a label")
        if any(label.below is not None for label in self.labels) and self.type not in (
            "classification",
            "image_retrieval",
        ):
            raise ValueError(f"labels.below has no effect on {self.type}: leave it out")
        if self.retrieval.pool is not None and self.type != "retrieval":
            raise ValueError(f"retrieval.pool has no effect on {self.type}: leave it out")
        of_classes = (self.retrieval.subset, self.retrieval.classes, self.retrieval.legacy_one_way)
        if self.type == "class_retrieval":
            if not self.retrieval.classes:
                raise ValueError("retrieval.classes must name the labels that make up a class")
        elif of_classes != (None, (), False):
            raise ValueError(f"subset, classes and legacy_one_way have no effect on {self.type}: leave them out")
        return self
