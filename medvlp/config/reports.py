"""Configuration of report generation: which text, which decoder, how it is searched.

Guarantee: a setting that has no effect on the kind of decoder is a mistake.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config, Positive

MEMORY_ONLY = ("slots", "memory_heads", "visual_dropout")
SIZES = ("width", "hidden", "layers", "heads", "dropout")


class ReportDecoderConfig(Config):
    """From visual tokens to words."""

    kind: Literal["memory", "causal"] = Field(
        "memory", description="R2Gen's memory-driven transformer, or a causal language model behind visual tokens."
    )
    folder: Path | None = Field(
        None,
        exclude=True,
        description="causal: local Hugging Face folder of model and tokenizer; null trains a small model from nothing.",
    )
    width: int = Field(512, ge=8)
    hidden: int = Field(512, ge=8, description="Width of the feed-forward parts.")
    layers: int = Field(3, ge=1)
    heads: int = Field(8, ge=1)
    slots: int = Field(3, ge=1, description="memory: slots of the relational memory.")
    memory_heads: int = Field(8, ge=1, description="memory: heads of its attention.")
    dropout: float = Field(0.1, ge=0, lt=1)
    visual_dropout: float = Field(0.5, ge=0, lt=1, description="memory: of the projected visual tokens.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ReportDecoderConfig:
        if self.kind == "memory" and self.folder is not None:
            raise ValueError("folder has no effect on a memory decoder: use kind: causal")
        idle = [*(MEMORY_ONLY if self.kind == "causal" else ()), *(SIZES if self.folder is not None else ())]
        idle = [name for name in idle if getattr(self, name) != type(self).model_fields[name].default]
        if idle:
            raise ValueError(f"{' and '.join(idle)} has no effect on this decoder: leave it out")
        for name, heads in (("heads", self.heads), ("memory_heads", self.memory_heads)):
            if self.kind == "memory" and self.width % heads:
                raise ValueError(f"width ({self.width}) must be a multiple of {name} ({heads})")
        if self.kind == "causal" and self.width % (2 * self.heads):
            raise ValueError(f"width ({self.width}) must be a multiple of twice heads ({self.heads})")
        return self


class ExpertConfig(Config):
    """A model of its own whose findings enter the prompt of the decoder."""

    name: str = Field("tuned", description="Kind of expert; tuned is any fine-tuned classification or segmentation.")
    run: Path | None = Field(None, exclude=True, description="tuned: folder of a fine-tuning, which is needed.")
    options: dict[str, Any] = Field(default_factory=dict, description="Of a kind that a package adds.")

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> ExpertConfig:
        if self.name == "tuned" and self.options:  # `run` is missing in what is kept, as other paths are
            raise ValueError("an expert of the kind tuned takes run, and no options")
        return self


class ExpertsConfig(Config):
    """Experts in the manner of VILA-M3 (arXiv 2411.12915): what they find stands as words before the report."""

    use: tuple[ExpertConfig, ...] = Field(min_length=1, description="In the order in which they speak.")
    max_tokens: int = Field(64, ge=4, le=4096, description="Longest prompt; a longer one is cut.")


class ReportsConfig(Config):
    """Report generation: one text for each study. `fine_tune` says how the decoder is trained."""

    sections: tuple[Literal["findings", "impression"], ...] = Field(("findings", "impression"), min_length=1)
    max_images: int = Field(2, ge=1, le=16, description="Images of a study that are shown: the first by their ids.")
    words: Literal["sentences", "r2gen"] = Field(
        "sentences", description="What counts as a word; r2gen as R2Gen and BenchX do. A folder has its own tokens."
    )
    min_count: int = Field(3, ge=1, description="Words that are rarer in the training reports are unknown.")
    max_tokens: int = Field(60, ge=2, le=4096, description="Longest text in training and generation.")
    beams: int = Field(3, ge=1, le=64)
    ban_unknown: bool = Field(True, description="Never write the unknown word.")
    select: Literal["bleu_4", "log_likelihood"] = Field(
        "bleu_4", description="On val: of generated texts, or of the references word by word, which is faster."
    )
    legacy_references: bool = Field(
        False,
        description="As R2Gen and BenchX: score against references cut to max_tokens, with rare words unknown.",
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="Of the input, for all encoders alike; null takes the encoder's own. Grey ones take the average.",
    )
    std: tuple[Positive, ...] | None = Field(None, description="Likewise, the standard deviation.")
    decoder: ReportDecoderConfig = ReportDecoderConfig()
    experts: ExpertsConfig | None = Field(
        None,
        exclude_if=lambda experts: experts is None,  # tasks without experts stay what they were
        description="causal: models whose findings the decoder reads beside the image; null is none.",
    )

    @model_validator(mode="after")
    def _experts_need_a_prompt(self) -> ReportsConfig:
        if self.experts is not None and self.decoder.kind != "causal":
            raise ValueError("experts speak to a language model: use decoder.kind: causal")
        return self

    @model_validator(mode="after")
    def _whole_normalisation(self) -> ReportsConfig:
        sizes = {None if given is None else len(given) for given in (self.mean, self.std)}
        if len(sizes) > 1 or not sizes <= {None, 1, 3}:
            raise ValueError("give mean and std with 1 or 3 values each, or neither")
        return self
