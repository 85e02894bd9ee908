"""The base of every method: towers, a shared space where it has one, and named losses of a batch.

Guarantee: the loop knows no objective and a method no loop. Pixels arrive as stored and are normalised on the device by
the configured model input; constants come complete and checked from the method's own YAML.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from medvlp.config.methods import MethodConfig, merge_method
from medvlp.data.demands import Demands
from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.methods.context import MethodContext
from medvlp.models.grad_cam import grad_cam
from medvlp.models.projection import Projection
from medvlp.models.text import TextTower
from medvlp.models.tower import Tower
from medvlp.models.towers import build_tower
from medvlp.objectives.matryoshka import over_prefixes
from medvlp.objectives.scale import clamped_scale
from medvlp.objectives.zero_shot import opposite, prompt_logits
from medvlp.types import Batch, Features, TextBatch, TextFeatures

if TYPE_CHECKING:
    from jaxtyping import Float

Term = tuple[torch.Tensor, torch.Tensor]
"""Value and count of a loss term."""
Encode = Callable[[Sequence[str]], TextFeatures]
"""Tokenises texts and encodes them with the method's own text tower."""


@dataclass(frozen=True)
class Progress:
    """Where training stands: `step` from 0, of `steps`, with `steps_per_epoch` of them in an epoch."""

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> float:
        """Epochs done, with the part of the present one."""
        return self.step / self.steps_per_epoch


class Method(nn.Module, ABC):
    """Base class; a subclass says what it demands and computes `losses`.

    Args:
        config: Towers, objectives and options; what `objectives` and `options` leave out is taken from the YAML.
        context: Vocabulary, label columns and concepts.

    Attributes:
        text_encoder: None for a method of images alone.
        image_projection: To the shared space, with `text_projection`; a subclass with `shared_space = False` builds
            what it needs itself.
        figures: Value and count of what `losses` found beside its terms, e.g. an accuracy: logged, in no loss.
        log_scale: Logarithm `[1]` of the factor of cosines: a parameter where it is learnt, else a buffer; see
            `set_scale`.
        progress: Where training stands; set before every step.
    """

    uses_text: ClassVar[bool] = True
    """Whether it has a text tower."""
    uses_sentences: ClassVar[bool] = False
    """Whether its text tower reads `sentence_ids`."""
    shared_space: ClassVar[bool] = True
    """Whether images and texts are projected to one space by one vector each."""
    scores_text: ClassVar[bool] = True
    """Whether `zero_shot` works."""
    heat_map_kind: ClassVar[str | None] = "Grad-CAM"
    """How `heat_map` finds evidence: query attention, patch-text similarity, Grad-CAM; None where it cannot."""
    nests: ClassVar[bool] = False
    """Whether `matryoshka` works: its contrast of one vector per side goes through `over_prefixes`."""
    training_parts: ClassVar[tuple[str, ...]] = ()
    """Modules, parameters and buffers that only `losses` needs: checkpoints hold them, a saved model does not."""

    image_encoder: Tower
    text_encoder: TextTower | None
    image_projection: nn.Module
    text_projection: nn.Module
    log_scale: torch.Tensor

    def __init__(self, config: MethodConfig, context: MethodContext) -> None:
        super().__init__()
        if self.uses_text and config.text is None:
            raise UserError(f"The method '{config.name}' needs a text tower.", "method.text", "Give method.text.")
        if not self.uses_text and config.text is not None:
            raise UserError(f"The method '{config.name}' has no text tower.", "method.text", "Set method.text=null.")
        if config.matryoshka.prefixes and not self.nests:
            raise UserError(
                f"The method '{config.name}' has no contrast of one vector per side that prefixes could be taken of.",
                "method.matryoshka",
                "Leave it out, or use e.g. clip or convirt.",
            )
        self.config = complete(config)
        self.context = context
        self.progress = Progress(0, 1, 1)
        self.figures: dict[str, Term] = {}
        self.image_encoder = build_tower(config.image)
        self.text_encoder = None if config.text is None else self.build_text_tower()
        if self.shared_space:
            self.build_projections()

    def build_projections(self) -> None:
        """Make what `project_image` and `project_text` need; a subclass that projects otherwise replaces this."""
        self.image_projection = Projection(self.image_encoder.dim, self.config.projection)
        if self.text_encoder is not None:
            self.text_projection = Projection(self.text_encoder.dim, self.config.projection)

    def build_text_tower(self) -> TextTower:
        """Return the text tower; a subclass with another kind replaces this."""
        assert self.config.text is not None
        pads = bool(self.config.options.get("legacy_pad_mean", False))
        return TextTower(self.config.text, self.context.vocab_size, self.context.pad_id, pads)

    @classmethod
    def demands(cls, config: MethodConfig) -> Demands:
        """Return what every batch must hold; `config` is complete."""
        return Demands(reports=cls.uses_text)

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return the name, weighted value and count of each term; the training loss is the sum of the values."""

    def forward(self, batch: Batch) -> dict[str, Term]:
        """Return `losses`, so that DDP and FSDP see the call."""
        return self.losses(batch)

    def weighted(self, terms: Mapping[str, Term]) -> dict[str, Term]:
        """Return terms times the weights of `objectives`."""
        return {name: (self.objective(name)["weight"] * value, count) for name, (value, count) in terms.items()}

    def over_prefixes(self, objective: Callable[..., Term], *vectors: Float[torch.Tensor, "_ d"]) -> Term:
        """Return an objective of unit vectors, summed over the prefixes of `matryoshka` where it is on.

        Raises:
            UserError: A prefix is longer than the vectors.
        """
        nested, width = self.config.matryoshka, vectors[0].shape[1]
        if not nested.prefixes:
            return objective(*vectors)
        if nested.prefixes[-1] > width:
            raise UserError(
                f"The prefix {nested.prefixes[-1]} is longer than the vectors, which have {width} dimensions.",
                "method.matryoshka.prefixes",
                f"Give numbers up to {width}.",
            )
        return over_prefixes(objective, vectors, nested.prefixes, nested.weights)

    def is_on(self, name: str) -> bool:
        """Return whether a term has a weight; one without need not be computed."""
        return self.objective(name)["weight"] != 0

    # What the loop calls around a step.

    def begin_step(self, progress: Progress) -> None:
        """Take note of where training stands, before the forward pass of a step."""
        self.progress = progress

    def adjust_gradients(self) -> None:
        """Change gradients between the backward pass and the optimiser, e.g. of a part held for an epoch."""

    def end_step(self) -> None:
        """Update what no optimiser moves (moving averages, queues), after the optimiser's step."""

    def learning_rate_factors(self) -> dict[str, float]:
        """Return beginnings of parameter names -> factor of the learning rate; the longest that fits counts."""
        return {}

    def drop_training_parts(self) -> None:
        """Remove `training_parts`; encoding and scoring go on."""
        for name in self.training_parts:
            delattr(self, name)

    # Scale of cosines.

    def set_scale(self, temperature: float, learnt: bool) -> None:
        """Make `log_scale` start at 1/temperature."""
        start = torch.tensor([-math.log(temperature)])
        if learnt:
            self.log_scale = nn.Parameter(start)
        else:
            self.register_buffer("log_scale", start)

    def scale_within(self, low: float, high: float) -> torch.Tensor:
        """Return the factor of cosines; the logarithm of a learnt one is held between `low` and `high`."""
        if not self.log_scale.requires_grad:
            return self.log_scale.exp().squeeze()
        if self.training:  # without this an optimiser could carry the parameter far beyond its bound
            with torch.no_grad():
                self.log_scale.clamp_(low, high)
        return clamped_scale(self.log_scale, low, high)

    @property
    def logit_scale(self) -> Float[torch.Tensor, ""]:
        """Factor of cosines before a softmax."""
        return self.log_scale.exp().squeeze()

    # Encoding.

    def encode_image(self, pixels: Float[torch.Tensor, "b c h w"]) -> Features:
        """Return the features of normalised pixels."""
        return self.image_encoder(pixels)

    def normalised(self, pixels: torch.Tensor) -> Float[torch.Tensor, "b c h w"]:
        """Return stored pixels [b 1 h w] as the image tower takes them."""
        return normalise(pixels, self.config.image.input)

    def encode_stored(self, pixels: torch.Tensor) -> Features:
        """Return the features of stored pixels [b 1 h w], normalised on their device."""
        return self.encode_image(self.normalised(pixels))

    def encode_text(self, text: TextBatch) -> TextFeatures:
        """Return the features of tokenised texts."""
        assert self.text_encoder is not None
        return self.text_encoder(text)

    def project_image(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of images in the shared space."""
        return self.image_projection(features.pooled)

    def project_text(self, features: TextFeatures) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts in the shared space."""
        return self.text_projection(features.pooled)

    def zero_shot(
        self,
        image: Features,
        positives: Sequence[Sequence[str]],
        negatives: Sequence[Sequence[str]],
        encode: Encode,
        reduce: Literal["max", "mean"] = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability that each question is answered by its positive prompts.

        Here: a two-class softmax of `logit_scale * cosine`, each side the mean or maximum over its prompts.

        Args:
            image: Encoded images.
            positives: k lists of prompts that say the same.
            negatives: k lists of prompts that say the opposite.
            encode: Encodes prompts.
            reduce: How the logits of several prompts become one.
        """
        groups = [prompts for pair in zip(positives, negatives, strict=True) for prompts in pair]
        vectors = self.project_text(encode([prompt for prompts in groups for prompt in prompts])).float()
        owner = [number for number, prompts in enumerate(groups) for _ in prompts]
        logits = prompt_logits(
            self.project_image(image).float(),
            vectors,
            torch.tensor(owner, device=vectors.device),
            self.logit_scale.float(),
            reduce,
        )
        return logits.unflatten(1, (len(positives), 2)).softmax(2)[..., 0]

    def heat_map(
        self, pixels: Float[torch.Tensor, "b c h w"], texts: Sequence[str], encode: Encode
    ) -> Float[torch.Tensor, "b t g w"]:
        """Return the evidence for each text on a grid that covers the image evenly, larger is more.

        Here: Grad-CAM of the question that `zero_shot` asks, the cosine to the text minus that to its opposite: of the
        cosine alone it finds what makes an image a radiograph. A method without a shared space overrides this, or has
        no `heat_map_kind`.

        Args:
            pixels: Normalised pixels.
            texts: What is looked for.
            encode: Encodes texts.
        """
        tower, directions = self.image_encoder, self.text_directions(texts, encode)
        return grad_cam(
            tower.backbone,
            lambda: self.encode_image(pixels),
            self.project_image,
            directions,
            getattr(tower.config, "tap", None),
        )

    @torch.no_grad()
    def text_directions(self, texts: Sequence[str], encode: Encode) -> Float[torch.Tensor, "t d"]:
        """Return the unit vector of each text minus that of its opposite."""
        vectors = self.project_text(encode([*texts, *map(opposite, texts)]))
        return vectors[: len(texts)] - vectors[len(texts) :]

    # Checks of a batch, and of the configuration.

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute the activations of the towers in the backward pass instead of keeping them."""
        self.image_encoder.set_gradient_checkpointing(enabled)
        if self.text_encoder is not None:
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
        paired = self.demands(self.config).paired
        if paired and (not batch.paired or len(batch.text.ids) != len(batch.pixels)):
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
