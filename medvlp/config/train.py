"""Configuration of `medvlp pretrain`: run, data, method, optimiser, loop and curves.

Guarantee: a global batch splits evenly into its micro-batches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive
from medvlp.config.data import PretrainDataConfig
from medvlp.config.methods import MethodConfig
from medvlp.config.towers import kind_of

Decay = Annotated[float, Field(ge=0, lt=1)]


class RunConfig(Config):
    """Where a run lives and from which seed it starts."""

    dir: Path
    seed: int = Field(0, ge=-(2**63), lt=2**63)
    name: str | None = None


class LookaheadConfig(Config):
    """Lookahead around the optimiser (arXiv 1907.08610); without `ema`, model/ holds the slow weights."""

    steps: int = Field(5, ge=1, description="Steps of the optimiser for one of the slow weights.")
    alpha: float = Field(0.5, gt=0, le=1, description="How far the slow weights move towards the others.")


class OptimizerConfig(Config):
    """Optimiser and learning-rate schedule: linear warm-up, then down to `min_lr_ratio`."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 3e-4
    weight_decay: float = Field(0.05, ge=0)
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    eps: Positive = 1e-8
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    momentum: float = Field(0.9, ge=0, lt=1)
    warmup_steps: int = Field(50, ge=0)
    min_lr_ratio: float = Field(0.01, ge=0, le=1)
    clip_norm: float | None = Field(1.0, gt=0)
    lookahead: LookaheadConfig | None = None


class TrainConfig(Config):
    """The training loop."""

    steps: int = Field(1000, ge=1)
    batch_size: int = Field(64, ge=1, description="Samples per optimiser step over all ranks.")
    accumulate: int = Field(1, ge=1, description="Micro-batches per optimiser step.")
    grad_cache: int | None = Field(
        None,
        ge=1,
        description="Samples that the towers take at a time, for one more forward pass; unlike with accumulate, the "
        "contrast sees the whole batch. For methods whose losses need one vector of each image and text.",
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["fp32", "bf16"] = "fp32"
    ema: float | None = Field(
        None, gt=0, lt=1, description="Decay of an averaged copy; the copy is what is saved in model/."
    )
    gradient_checkpointing: bool = False
    compile: bool = False
    strategy: Literal["ddp", "fsdp2"] = "ddp"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    checkpoint_every: int = Field(200, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    log_every: int = Field(10, ge=1)
    validate_every: int = Field(200, ge=1)

    @model_validator(mode="after")
    def _batch_splits(self) -> TrainConfig:
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        if self.grad_cache is not None and (self.accumulate > 1 or self.strategy == "fsdp2"):
            raise ValueError("grad_cache does not go with accumulate, which it takes the place of, nor with fsdp2")
        return self


class TrackConfig(Config):
    """Where curves go. A local `metrics.jsonl` is always written."""

    mlflow: bool = True
    uri: str | None = Field(
        None, description="Tracking server; default MLFLOW_TRACKING_URI, else a SQLite file beside the run."
    )
    experiment: str = "medvlp"
    system_metrics: bool = True


class PretrainConfig(Config):
    """`medvlp pretrain`."""

    kind: Literal["pretrain"] = "pretrain"
    run: RunConfig
    data: PretrainDataConfig
    method: MethodConfig
    train: TrainConfig = TrainConfig()
    track: TrackConfig = TrackConfig()

    @model_validator(mode="before")
    @classmethod
    def _augmentation_of_volumes(cls, given: Any) -> Any:
        """Say of `data.augment` that it is of volumes where the method's image tower takes them."""
        data = given.get("data") if isinstance(given, dict) else None
        if not isinstance(data, dict) or _image_kind(given.get("method")) != "volume":
            return given
        augment = data.get("augment", {})
        return (
            {**given, "data": {**data, "augment": {"kind": "volume", **augment}}}
            if isinstance(augment, dict)
            else given
        )

    @model_validator(mode="after")
    def _augmentation_fits_the_images(self) -> PretrainConfig:
        of, taken = self.data.augment.kind, self.method.image.kind
        if (of == "volume") != (taken == "volume"):
            raise ValueError(f"data.augment is of the kind {of}, and the method takes images of the kind {taken}")
        return self


def _image_kind(method: Any) -> str:
    image = method.get("image") if isinstance(method, dict) else getattr(method, "image", None)
    return kind_of(image)
