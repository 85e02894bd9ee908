"""The base of every method: two towers, two projections, a scale, and named losses of a batch.

Guarantee: the loop knows no objective and a method no loop. Pixels arrive as stored and are normalised on the device by
the configured model input; constants come complete and checked from the method's own YAML.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from medvlp.config.methods import merge_method
from medvlp.config.schema import MethodConfig
from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.models.projection import Projection
from medvlp.models.text import TextTower
from medvlp.models.vision2d import ImageTower
from medvlp.types import Batch, Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float


class Method(nn.Module, ABC):
    """Base class; a subclass says what it `needs` and computes `losses`.

    Args:
        config: Towers, objectives and options; what `objectives` and `options` leave out is taken from the YAML.
        vocab_size: Tokens of the tokenizer.
        pad_id: Its padding token.
        label_names: Columns of `batch.labels` and `batch.text.labels`.

    Attributes:
        log_scale: Logarithm `[1]` of the factor of cosines: a parameter where it is learnt, else a buffer.
    """

    needs: ClassVar[frozenset[str]]
    """Of "reports" and "labels"."""
    paired: ClassVar[bool]
    """Whether text row i of a batch belongs to image i."""

    log_scale: torch.Tensor

    def __init__(self, config: MethodConfig, vocab_size: int, pad_id: int, label_names: Sequence[str]) -> None:
        super().__init__()
        if config.text is None:
            raise UserError(f"The method '{config.name}' needs a text tower.", "method.text", "Give method.text.")
        self.config = complete(config)
        self.label_names = tuple(label_names)
        self.vocab_size, self.pad_id = vocab_size, pad_id
        self.image_encoder = ImageTower(config.image)
        self.text_encoder = TextTower(
            config.text, vocab_size, pad_id, bool(self.config.options.get("legacy_pad_mean", False))
        )
        self.image_projection = Projection(self.image_encoder.dim, config.projection)
        self.text_projection = Projection(self.text_encoder.dim, config.projection)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return the name, weighted value and count of each term; the training loss is the sum of the values."""

    def forward(self, batch: Batch) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return `losses`, so that DDP and FSDP see the call."""
        return self.losses(batch)

    @property
    def logit_scale(self) -> Float[torch.Tensor, ""]:
        """Factor of cosines before a softmax."""
        return self.log_scale.exp().squeeze()

    def encode_image(self, pixels: Float[torch.Tensor, "b c h w"]) -> Features:
        """Return the features of normalised pixels."""
        return self.image_encoder(pixels)

    def encode_stored(self, pixels: torch.Tensor) -> Features:
        """Return the features of stored pixels [b 1 h w], normalised on their device."""
        return self.encode_image(normalise(pixels, self.config.image.input))

    def encode_text(self, text: TextBatch) -> TextFeatures:
        """Return the features of tokenised texts."""
        return self.text_encoder(text)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of images in the shared space."""
        return self.image_projection(features.pooled)

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts in the shared space."""
        return self.text_projection(features.pooled)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of both towers in the backward pass instead of keeping them."""
        self.image_encoder.set_gradient_checkpointing(enabled)
        self.text_encoder.set_gradient_checkpointing(enabled)

    def objective(self, name: str) -> Mapping[str, Any]:
        """Return the weight and constants of a term."""
        return self.config.objectives[name]

    def positive(self, name: str, constant: str) -> float:
        """Return a constant of a term that must be above 0.

        Raises:
            UserError: It is not.
        """
        value = float(self.objective(name)[constant])
        if not 0 < value < math.inf:
            key = f"method.objectives.{name}.{constant}"
            raise UserError(f"{key} is {value:g}.", key, "Give a number above 0.")
        return value

    def texts_of(self, batch: Batch) -> TextBatch:
        """Return the batch's texts.

        Raises:
            UserError: There are none, or they do not belong to the images one by one where the method needs that.
        """
        name = self.config.name
        if batch.text is None:
            raise UserError(f"The method '{name}' needs texts.", "data", "Give data.reports, or a store with reports.")
        if self.paired and (not batch.paired or len(batch.text.ids) != len(batch.pixels)):
            raise UserError(
                f"The method '{name}' needs one text per image.",
                "data",
                "Use a store with reports, or an unpaired method such as medclip.",
            )
        return batch.text


def complete(config: MethodConfig) -> MethodConfig:
    """Return the config with every objective and option, those not given from the method's own YAML.

    Raises:
        UserError: A key that the method does not declare, or a value of another type.
    """
    given = {"name": config.name, "objectives": dict(config.objectives), "options": dict(config.options)}
    tree, mistakes = merge_method({"method": given})
    if mistakes:
        raise UserError(" ".join(mistakes), f"method {config.name}", "See the method's file in configs/methods.")
    merged = tree["method"]
    return config.model_copy(update={"objectives": merged["objectives"], "options": merged["options"]})
