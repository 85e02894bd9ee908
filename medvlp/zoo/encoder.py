"""One interface to every image encoder, and to its text side where it has one.

Guarantee: evaluation mode, no gradients, deterministic; many images give what each gives alone; a file goes through the
one saved preprocessing and gives the same features as its square in a store that was prepared with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
import torch
from torch import nn

from medvlp.config.base import json_sha256
from medvlp.config.preprocessing import AnyPreprocessing
from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.io import read_radiograph
from medvlp.io.enlarge import to_image, to_square
from medvlp.io.stored import to_stored
from medvlp.models.weights import state_sha256
from medvlp.objectives.group_metric import best_pairs_probability
from medvlp.store.manifest import UNITS
from medvlp.types import Features, Radiograph, TextFeatures
from medvlp.zoo.text_side import Prompts, Reduce, TextSide, as_texts, questions

if TYPE_CHECKING:
    from jaxtyping import Float, Float32, Int, UInt8

    from medvlp.store.array_store import Store

Image = str | Path | Radiograph
Items = TypeVar("Items", list[Image], list[str], np.ndarray)


class Encoder:
    """An image encoder with its preprocessing.

    Args:
        name: Short name for tables, no path.
        image_tower: Module from normalised pixels to `Features`.
        dim: Width of `pooled`.
        preprocessing: From a file to the tensor that the tower takes; of images here, subclasses take others.
        architecture: JSON-able description that, with weights and preprocessing, decides the hash.
        text: Text side, where the method has one.
        device: Where it computes.
        batch_size: Images or texts at a time.

    Attributes:
        loaded: How its weights were read, in words; set by the loader.
    """

    loaded: tuple[str, ...] = ()
    preprocessing: Any
    kind: ClassVar[str] = "image"
    """What it takes: image, volume or video, as a store names what it holds."""

    def __init__(
        self,
        name: str,
        image_tower: nn.Module,
        dim: int,
        preprocessing: AnyPreprocessing,
        architecture: dict[str, object],
        *,
        text: TextSide | None = None,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        self.name, self.dim, self.preprocessing, self.architecture = name, dim, preprocessing, architecture
        self.device, self.batch_size, self._text = torch.device(device), batch_size, text
        self.image_tower = image_tower.to(self.device).eval()
        if text is not None:
            text.method.to(self.device).eval()
        module: nn.Module = image_tower if text is None else text.method
        self.hash = json_sha256(
            {"weights": state_sha256(module.state_dict()), "preprocessing": preprocessing.resolved(), **architecture}
        )

    @property
    def has_text(self) -> bool:
        """Whether `encode_text`, `embed_text` and the zero-shot calls work."""
        return self._text is not None

    @property
    def scores_text(self) -> bool:
        """Whether the zero-shot calls work."""
        return self._text is not None and self._text.method.scores_text

    @property
    def shared_space(self) -> bool:
        """Whether images and texts have vectors in one space."""
        return self._text is not None and self._text.method.shared_space

    @property
    def heat_map_kind(self) -> str | None:
        """How `heat_maps` finds evidence: query attention, patch-text similarity or Grad-CAM; None where it cannot."""
        return None if self._text is None else self._text.method.heat_map_kind

    @torch.inference_mode()
    def __call__(self, pixels: Float[torch.Tensor, "b c h w"]) -> Features:
        """Return the features of preprocessed pixels, on the encoder's device."""
        parts = [self.image_tower(part.to(self.device)) for part in pixels.split(self.batch_size)]
        return _concatenate(parts)

    def preprocess(self, image: Image) -> UInt8[np.ndarray, "s s"]:
        """Return the stored square of a file or radiograph, `preprocessing.stored` applied.

        Raises:
            UserError: The file cannot be read.
        """
        config = self.preprocessing.stored
        radiograph = image if isinstance(image, Radiograph) else read_radiograph(Path(image), config)
        return to_stored(radiograph, config)

    def encode_image(self, images: Iterable[Image]) -> Features:
        """Return the features of files and radiographs, in the order given.

        Args:
            images: Files are read by `preprocessing.stored`. A radiograph is taken as it was read: where that config is
                not the default, read it by `medvlp.read_radiograph(path, encoder.preprocessing.stored)`.

        Raises:
            UserError: A file cannot be read.
        """
        images = [images] if isinstance(images, str | Path | Radiograph) else list(images)
        parts = [
            self.encode_stored(np.stack([self.preprocess(image) for image in chunk]))
            for chunk in _chunks(images, self.batch_size)
        ]
        return _concatenate(parts)

    @torch.inference_mode()
    def encode_stored(self, pixels: UInt8[np.ndarray, "b h w"]) -> Features:
        """Return the features of squares from a store, resized to the model input and normalised."""
        return _concatenate([self.image_tower(part) for part in self._inputs(pixels)])

    def encode_rows(self, store: Store, rows: Int[np.ndarray, " n"]) -> Features:
        """Return the features of rows of a store's images table.

        Raises:
            UserError: The store holds something else than what the encoder takes.
        """
        self.check_store(store)
        return self.encode_stored(store.read(store.images["index"].to_numpy()[rows]))

    def check_store(self, store: Store) -> None:
        """Raise `UserError` unless a store holds what the encoder takes."""
        if store.kind != self.kind:
            raise UserError(
                f"The encoder '{self.name}' takes {UNITS[self.kind]}, and the store holds {UNITS[store.kind]}.",
                store.path,
                "Use a store or an encoder of the other kind.",
            )

    @torch.inference_mode()
    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Return the features of texts, padded to the longest.

        Raises:
            UserError: The encoder has no text side.
        """
        return self._text_side().encode(texts)

    @torch.inference_mode()
    def embed_text(self, texts: Sequence[str], max_tokens: int | None = None) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of texts in the space that images are projected to.

        Args:
            texts: One text or more.
            max_tokens: Longer texts are cut to it, or to the encoder's own limit if that is lower.
        """
        side = self._space_side()
        if max_tokens is not None:
            side = replace(side, max_tokens=min(max_tokens, side.max_tokens))
        chunks = _chunks(as_texts(texts), self.batch_size)
        return torch.cat([side.method.project_text(side.encode(chunk)).float() for chunk in chunks])

    @torch.inference_mode()
    def embed_features(self, features: Features) -> Float[torch.Tensor, "b d"]:
        """Return unit vectors of encoded images in the space that texts are projected to."""
        return self._space_side().method.project_image(features.to(self.device)).float()

    def zero_shot(
        self,
        images: Iterable[Any],
        texts: Sequence[Prompts],
        negatives: Sequence[Prompts] | None = None,
        reduce: Reduce = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each text for each image, as `encode_image` takes it; see `zero_shot_features`."""
        self._text_side()
        return self.zero_shot_features(self.encode_image(images), texts, negatives, reduce)

    def zero_shot_stored(
        self,
        pixels: UInt8[np.ndarray, "b h w"],
        texts: Sequence[Prompts],
        negatives: Sequence[Prompts] | None = None,
        reduce: Reduce = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """As `zero_shot`, of squares from a store."""
        self._text_side()
        return self.zero_shot_features(self.encode_stored(pixels), texts, negatives, reduce)

    @torch.inference_mode()
    def zero_shot_features(
        self,
        features: Features,
        texts: Sequence[Prompts],
        negatives: Sequence[Prompts] | None = None,
        reduce: Reduce = "mean",
    ) -> Float[torch.Tensor, "b k"]:
        """Return the probability of each text for each encoded image.

        Column k is the method's own answer (`Method.zero_shot`): for a contrastive method a two-class softmax of
        `logit_scale * cosine` between text k and its negative. The columns are independent and do not sum to 1.

        Args:
            features: Encoded images.
            texts: k texts, or k lists of prompts that say the same.
            negatives: Their opposites, in the same order; by default "no " before every prompt.
            reduce: How the logits of several prompts become one: their mean or their maximum. With `best` the cosines
                to the sum of the 50 pairs of prompts that are surest of these images, as in KEEP (arXiv 2412.13126),
                take the place of the method's own answer: an image's depends on the images beside it.
        """
        positives, opposites = questions(texts, negatives)
        side = self._text_side()
        if not side.method.scores_text:
            raise UserError(
                f"The encoder '{self.name}' cannot score images by texts.",
                "zero_shot",
                "Use a method with zero-shot scores; see `medvlp methods`.",
            )
        if reduce == "best":
            images, scale = self.embed_features(features), side.method.logit_scale.float()
            sides = (
                (self.embed_text(ours), self.embed_text(theirs))
                for ours, theirs in zip(positives, opposites, strict=True)
            )
            return torch.stack([best_pairs_probability(images, *pair, scale) for pair in sides], dim=1)
        scores = side.method.zero_shot(features.to(self.device), positives, opposites, side.encode, reduce)
        return scores.float()

    def heat_maps(self, images: Iterable[Image], texts: Sequence[str]) -> list[Float32[np.ndarray, "t h w"]]:
        """Return where each image shows what each text says, on the pixels of the image: larger is more evidence.

        What the stored square does not show (`aspect: crop`) is NaN: the encoder has not seen it.

        Args:
            images: As in `encode_image`; sizes may differ.
            texts: What is looked for.

        Raises:
            UserError: The encoder has no heat maps, a text is empty, or a file cannot be read.
        """
        self.check_heat_maps(texts)
        images = [images] if isinstance(images, str | Path | Radiograph) else list(images)
        config, found = self.preprocessing.stored, []
        for chunk in _chunks(images, self.batch_size):
            radiographs = [
                image if isinstance(image, Radiograph) else read_radiograph(Path(image), config) for image in chunk
            ]
            maps = self.token_heat_maps(np.stack([to_stored(image, config) for image in radiographs]), texts)
            for own, image in zip(maps.cpu().numpy(), radiographs, strict=True):
                height, width = image.array.shape[:2]
                found.append(to_image(own, height, width, config))
        return found

    def heat_maps_stored(
        self, pixels: UInt8[np.ndarray, "b s s"], texts: Sequence[str]
    ) -> Float32[np.ndarray, "b t s s"]:
        """As `heat_maps`, of squares from a store, on their pixels."""
        return to_square(self.token_heat_maps(pixels, texts).cpu().numpy(), pixels.shape[1])

    def token_heat_maps(
        self, pixels: UInt8[np.ndarray, "b s s"], texts: Sequence[str]
    ) -> Float[torch.Tensor, "b t g w"]:
        """As `heat_maps_stored`, on the encoder's own grid, whose cells cover the square evenly."""
        side = self.check_heat_maps(texts)
        with torch.no_grad():
            maps = [side.method.heat_map(part, list(texts), side.encode) for part in self._inputs(pixels)]
            return torch.cat(maps).float()

    def check_heat_maps(self, texts: Sequence[str]) -> TextSide:
        """Return the text side.

        Raises:
            UserError: There is none, it has no heat maps, or a text is empty.
        """
        side = self._text_side()
        if side.method.heat_map_kind is None:
            raise UserError(
                f"The encoder '{self.name}' has no heat maps.",
                "heat maps",
                "Use a method with heat maps; see `medvlp methods`.",
            )
        if isinstance(texts, str) or not texts or not all(text.strip() for text in texts):
            raise UserError("There is no text to look for, or an empty one.", "heat maps", "Give texts with words.")
        return side

    def _space_side(self) -> TextSide:
        side = self._text_side()
        if not side.method.shared_space:
            raise UserError(
                f"The encoder '{self.name}' has no space that images and texts share.",
                "encoder",
                "Use a method with such vectors; see `medvlp methods`.",
            )
        return side

    def _text_side(self) -> TextSide:
        if self._text is None:
            raise UserError(
                f"The encoder '{self.name}' has no text side.", "encoder", "Use a run of a method with a text tower."
            )
        return self._text

    def _inputs(self, pixels: UInt8[np.ndarray, "b s s"]) -> Iterator[Float[torch.Tensor, "b c h w"]]:
        """Yield squares from a store as the tower takes them, a batch at a time."""
        if not len(pixels):
            raise UserError("There are no images to encode.", "encoder", "Give one image or more.")
        config = self.preprocessing.input
        for chunk in _chunks(pixels, self.batch_size):
            yield normalise(to_tensor(resize_pixels(chunk, config.size)).to(self.device), config)


def _chunks(items: Items, size: int) -> Iterator[Items]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _concatenate(parts: Sequence[Features]) -> Features:
    """Return the features of all images; a field that is no tensor (the grid) is the same in every part."""
    if not parts:
        raise UserError("There are no images to encode.", "encoder", "Give one image or more.")
    names = [field.name for field in fields(Features) if isinstance(getattr(parts[0], field.name), torch.Tensor)]
    joined: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return replace(parts[0], **joined)
