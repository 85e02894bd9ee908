"""Configuration of visual question answering: which questions, and what answers them.

Guarantee: a setting that has no effect beside the others is a mistake.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medvlp.config.base import Config


class VqaConfig(Config):
    """Questions about images. `fine_tune` says how what answers them is trained."""

    questions: Literal["table", "labels"] = Field(
        "table",
        description="Those of the data set, or made from the task's labels and their boxes: is it there, which one is "
        "it, on which side, at which height; with as many yes as no, and as many left as right.",
    )
    languages: tuple[str, ...] = Field((), description="table: languages of the questions; empty uses all.")
    question_text: Literal["encoder", "trained"] = Field(
        "encoder",
        description="What reads a question: the encoder's text side, or, where it has none, a small text encoder that "
        "is trained with the head; trained: always the latter.",
    )
    max_tokens: int = Field(32, ge=4, le=512, description="Longest question, in tokens of the small text encoder.")
    width: int = Field(128, ge=8, description="Of the co-attention of image and question.")
    hidden: int = Field(256, ge=8, description="Width of its feed-forward parts.")
    layers: int = Field(2, ge=1)
    heads: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> VqaConfig:
        if self.questions == "labels" and self.languages:
            raise ValueError("languages has no effect on questions made from labels: leave it out")
        if self.width % self.heads:
            raise ValueError(f"width ({self.width}) must be a multiple of heads ({self.heads})")
        return self
