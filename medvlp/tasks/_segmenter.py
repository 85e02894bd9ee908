"""Training of a dense head on an image tower, and its masks.

Guarantee: validation and prediction are on the stored square, where the references are. Logits that are not finite are
refused, never taken for an empty mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from medvlp.config.data import AugmentConfig
from medvlp.data.masked_images import MASKS, MaskLoader
from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.objectives.dense import exclusive_loss, overlapping_loss
from medvlp.tasks._fine_tune import Term, Tunable, check_finite, check_sides
from medvlp.tasks.base import Samples

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int, UInt8

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.config.segmentation import SegmentationConfig
    from medvlp.config.task import FineTuneConfig, TaskConfig
    from medvlp.models.segmentation import Segmenter
    from medvlp.store.array_store import Store
    from medvlp.tasks._regions import RegionReader
    from medvlp.types import Batch
    from medvlp.zoo import Encoder

IMAGES_AT_ONCE = 8


class SegmenterTuning(Tunable):
    """Training of a segmenter on a copy of an encoder's tower; judged by the mean Dice over images with the structure.

    Args:
        network: Segmenter on a copy of the encoder's tower.
        encoder: Where it comes from.
        store: The prepared store.
        regions: Masks by rows of the images table.
        train: Training samples.
        val: Validation samples.
        task: Losses, inference, batch size, augmentation.
        seed: Seed of order and augmentation.
        num_workers: Threads of the loader.

    Raises:
        UserError: Windows do not slide over squares of the store's size, or a batch has a single image.
    """

    criterion: ClassVar[str] = "dice"

    def __init__(
        self,
        network: Segmenter,
        encoder: Encoder,
        store: Store,
        regions: RegionReader,
        train: Samples,
        val: Samples,
        task: TaskConfig,
        seed: int,
        num_workers: int = 1,
    ) -> None:
        config, how = task.segmentation, task.fine_tune
        self.network, self.name, self.store, self.val = network, encoder.name, store, val
        self.regions, self.config, self.device = regions, config, encoder.device
        self.input = model_input(task, encoder.preprocessing.input)
        if config.inference == "sliding" and self.input.size >= store.size:
            raise UserError(
                f"Windows of {self.input.size} pixels do not slide over stored squares of {store.size}.",
                "segmentation.inference",
                "Use inference: whole, or a store of larger images.",
            )
        if min(how.batch_size, len(train)) < 2:
            raise UserError(
                "A batch has a single image, of which a head cannot take its statistics.",
                f"task {task.name}",
                "Set fine_tune.batch_size to 2 or more, and train on two images or more.",
            )
        self._known = torch.zeros((int(train.rows.max()) + 1, train.labels.shape[1]), dtype=torch.bool)
        self._known[torch.from_numpy(train.rows)] = torch.from_numpy(~np.isnan(train.labels))
        check_sides(task)
        self.loader = MaskLoader(
            store,
            train.rows,
            masks=self._training_masks,
            batch_size=how.batch_size,
            input_size=self.input.size,
            seed=seed,
            augment=self._augment(how),
            num_workers=num_workers,
        )

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return the loss of the head, and that of its auxiliary head, and how much they score."""
        config = self.config
        masks, known = batch.extra[MASKS].to(self.device), self._known[batch.index].to(self.device)
        outputs = network(normalise(batch.pixels.to(self.device), self.input))
        weights = {"cross_entropy": config.cross_entropy, "dice": config.dice}
        found = [
            exclusive_loss(logits, masks, **weights)
            if config.classes == "exclusive"
            else overlapping_loss(logits, masks, known, **weights)
            for logits in outputs
        ]
        terms = {"segmentation": found[0]}
        for value, count in found[1:]:
            terms["auxiliary"] = (config.auxiliary * value, count)
        return terms

    def validate(self, network: nn.Module) -> float:
        """Return the score on the validation images."""
        counts = np.zeros((len(self.val), len(self.val.label_names), 3))
        for start, found in self.masks(network, self.val):
            wanted = self.regions(self.val.rows[start : start + len(found)]) != 0
            for place, each in enumerate((found & wanted, found, wanted)):
                counts[start : start + len(found), :, place] = each.sum(axis=(2, 3))
        return self.score(counts, self.val.labels)

    def score(self, counts: Float[np.ndarray, "n k 3"], labels: Float[np.ndarray, "n k"]) -> float:
        """Return the mean over labels of the mean Dice over the images that show them.

        Args:
            counts: Pixels in both masks, in the prediction and in the reference.
            labels: 1 where the image shows the label.
        """
        common, predicted, reference = np.moveaxis(counts, 2, 0)
        dice = 2 * common / np.maximum(predicted + reference, 1)
        shown = [column[own == 1].mean() for column, own in zip(dice.T, labels.T, strict=True) if (own == 1).any()]
        return float(np.mean(shown)) if shown else float("nan")

    def masks(self, network: nn.Module, samples: Samples) -> Iterator[tuple[int, Bool[np.ndarray, "b k s s"]]]:
        """Yield the place of a first sample and the predicted masks from it on, on the stored square."""
        places = self.store.images["index"].to_numpy()
        for start in range(0, len(samples), IMAGES_AT_ONCE):
            stored = self.store.read(places[samples.rows[start : start + IMAGES_AT_ONCE]])
            yield start, predicted_masks(network, stored, self.input, self.config, self.device)

    def _training_masks(self, rows: Int[np.ndarray, " b"]) -> UInt8[np.ndarray, "b k s s"]:
        masks = self.regions(rows)
        if self.config.classes == "exclusive" and (twice := (masks.sum(1) > 1).any(axis=(1, 2))).any():
            image = self.store.images["image_id"].iloc[int(rows[int(twice.argmax())])]
            raise UserError(
                f"Masks of two labels of the task overlap in the image {image}.",
                "segmentation.classes: exclusive",
                "Use classes: overlapping, or labels that do not overlap.",
            )
        return masks

    def _augment(self, how: FineTuneConfig) -> Any:
        """Return the augmentation; where windows slide, one covers as much of the stored square in training, too."""
        if self.config.inference == "whole":
            return how.augment
        assert isinstance(how.augment, AugmentConfig)
        share = (self.input.size / self.store.size) ** 2
        low, high = how.augment.crop_scale
        return how.augment.model_copy(update={"crop_scale": (low * share, high * share)})


class PooledSegmenterTuning(SegmenterTuning):
    """As its base, judged as mmsegmentation does: by the Dice of all pixels of validation, background included."""

    criterion: ClassVar[str] = "pooled_dice"

    def score(self, counts: Float[np.ndarray, "n k 3"], labels: Float[np.ndarray, "n k"]) -> float:
        """Return the mean of the Dice inside and outside over labels; see the base."""
        known = ~np.isnan(labels)
        common, predicted, reference = (np.where(known, each, 0).sum(axis=0) for each in np.moveaxis(counts, 2, 0))
        total = known.sum(axis=0) * self.store.size**2
        outside = total - predicted - reference + common
        with np.errstate(invalid="ignore"):
            parts = [2 * common / (predicted + reference), 2 * outside / (2 * total - predicted - reference)]
        return float(np.nanmean(parts))


def model_input(task: TaskConfig, given: ModelInputConfig) -> ModelInputConfig:
    """Return what a segmenter takes: the encoder's own input with the side, mean and deviation that the task sets."""
    config = task.segmentation
    changes: dict[str, Any] = {"size": task.fine_tune.input_size or given.size}
    if config.mean is not None and config.std is not None:
        changes |= {"mean": (config.mean,), "std": (config.std,)}
    return given.model_copy(update=changes)


@torch.inference_mode()
def predicted_masks(
    network: nn.Module,
    stored: Int[np.ndarray, "b s s *c"],
    taken: ModelInputConfig,
    config: SegmentationConfig,
    device: torch.device,
) -> Bool[np.ndarray, "b k s s"]:
    """Return the masks of stored squares, on their pixels.

    Args:
        network: The segmenter; it is put into evaluation mode.
        stored: Squares from a store.
        taken: What the network takes.
        config: Classes and inference.
        device: Of the network.

    Raises:
        UserError: The logits are not finite.
    """
    network.eval()
    logits = _logits(network, stored, taken, config, device)
    check_finite(logits, "segmentation")
    if config.classes == "overlapping":
        return (logits > 0).cpu().numpy()
    classes = torch.arange(1, logits.shape[1], device=logits.device).view(1, -1, 1, 1)
    return (logits.argmax(1)[:, None] == classes).cpu().numpy()


def _logits(
    network: nn.Module, stored: np.ndarray, taken: ModelInputConfig, config: SegmentationConfig, device: torch.device
) -> Float[torch.Tensor, "b c s s"]:
    if config.inference == "whole":
        logits = network(normalise(to_tensor(resize_pixels(stored, taken.size)).to(device), taken))[0]
        side = stored.shape[1]
        if logits.shape[2] == side:
            return logits
        return nn.functional.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
    from monai.inferers.utils import sliding_window_inference

    found = sliding_window_inference(
        normalise(to_tensor(stored).to(device), taken),
        (taken.size, taken.size),
        IMAGES_AT_ONCE,
        lambda windows: network(windows)[0],
        overlap=config.overlap,
        mode="gaussian",
    )
    assert isinstance(found, torch.Tensor)
    return found
