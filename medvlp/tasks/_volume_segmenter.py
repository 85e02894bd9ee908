"""Training of a dense head on a tower of volumes, and the classes of voxels that it finds.

Guarantee: validation and prediction are on the voxels of the volume, where the references are; a volume is covered by
windows of the model input at one distance of voxels, or stretched to it as a whole, as in training. Places of training
windows are functions of (seed, epoch, row). Logits that are not finite are refused, never taken for background.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from medvlp.config.data import VolumeAugmentConfig
from medvlp.data.counter import CROP, uniforms
from medvlp.data.inputs import fitting_augmentation
from medvlp.data.transforms import normalise
from medvlp.data.volume_augment import on_device
from medvlp.data.volume_input import fits, input_view
from medvlp.data.volume_loader import check_volumes
from medvlp.data.volume_rows import CLASSES, VolumeRowLoader
from medvlp.data.volume_views import Grid, Part, part_of, put_back, read_view, respaced, stretched
from medvlp.errors import UserError
from medvlp.objectives.dense import exclusive_loss
from medvlp.tasks._fine_tune import Term, Tunable, check_finite, check_sides
from medvlp.tasks.base import Samples

if TYPE_CHECKING:
    from jaxtyping import Float, Int16, UInt8

    from medvlp.config.task import TaskConfig
    from medvlp.config.volumes import VolumeInputConfig
    from medvlp.models.volume_segmentation import VolumeSegmenter
    from medvlp.store.array_store import Store
    from medvlp.tasks._volume_regions import VolumeRegions
    from medvlp.types import Batch, Volume
    from medvlp.zoo.volume_encoder import VolumeEncoder

WINDOWS_AT_ONCE = 4
VOXEL_BYTES = 18
"""Of a voxel at the network's distance at least: as int16 and float32, the weight of windows, and two logits."""
BEYOND = -(2.0**15) - 1
"""What no int16 voxel is: marks what a window has beyond its volume."""


class VolumeSegmenterTuning(Tunable):
    """Training of a segmenter on a copy of an encoder's tower; judged by the mean Dice over volumes with the structure.

    Args:
        network: Segmenter on a copy of the encoder's tower.
        encoder: Where it comes from.
        store: The prepared store.
        regions: Classes of voxels by rows of the images table.
        train: Training samples.
        val: Validation samples.
        task: Losses, windows, batch size, augmentation.
        seed: Seed of order, places and augmentation.
        num_workers: Threads of the loader.
    """

    criterion: ClassVar[str] = "dice"

    def __init__(
        self,
        network: VolumeSegmenter,
        encoder: VolumeEncoder,
        store: Store,
        regions: VolumeRegions,
        train: Samples,
        val: Samples,
        task: TaskConfig,
        seed: int,
        num_workers: int = 1,
    ) -> None:
        self.network, self.name, self.store, self.val, self.seed = network, encoder.name, store, val, seed
        self.regions, self.config, self.device = regions, task.volume_segmentation, encoder.device
        self.input = model_input(task, encoder.preprocessing.input)
        check_sides(task)
        check_volumes(store, np.concatenate([train.rows, val.rows]), self.input)
        augment = fitting_augmentation(task.fine_tune.augment, self.input, store.path)
        assert isinstance(augment, VolumeAugmentConfig)
        self.loader = VolumeRowLoader(
            train.rows,
            read=self._window,
            augment=augment,
            taken=self.input,
            batch_size=task.fine_tune.batch_size,
            seed=seed,
            num_workers=num_workers,
        )

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return the loss over background and labels, and the number of volumes."""
        batch = on_device(batch, self.device)
        values = batch.extra[CLASSES].flatten(1)
        logits = network(normalise(batch.pixels, self.input)).flatten(2)
        labels = torch.arange(1, logits.shape[1], device=self.device)
        masks = (values[:, None] == labels[:, None]).to(torch.uint8)
        weights = {"cross_entropy": self.config.cross_entropy, "dice": self.config.dice}
        return {"segmentation": exclusive_loss(logits[:, :, None], masks[:, :, None], **weights)}

    def validate(self, network: nn.Module) -> float:
        """Return the mean over labels of the mean Dice over the validation volumes that show them."""
        dice = np.full((len(self.val), len(self.val.label_names)), np.nan)
        for place, found in self.classes(network, self.val):
            wanted = self.regions.classes(int(self.val.rows[place]))
            for k in np.flatnonzero(self.val.labels[place] == 1):
                own, true = found == k + 1, wanted == k + 1
                dice[place, k] = 2 * (own & true).sum() / max(int(own.sum() + true.sum()), 1)
        shown = [column[~np.isnan(column)] for column in dice.T]
        return float(np.mean([column.mean() for column in shown if len(column)]))

    def classes(self, network: nn.Module, samples: Samples) -> Iterator[tuple[int, UInt8[np.ndarray, "d h w"]]]:
        """Yield the place of each sample and the class of each voxel: 0, or 1 + the place of the label.

        Raises:
            UserError: A volume has other numbers than the network takes.
        """
        check_volumes(self.store, samples.rows, self.input)
        places = self.store.images["index"].to_numpy()
        for place, row in enumerate(samples.rows):
            index = int(places[row])
            shape = self.store.shape(index)
            grid = cover(shape, self.store.spacing_mm(index), self.input, self.store.images["image_id"].iloc[row])
            yield (
                place,
                found_classes(
                    network,
                    partial(self.store.crop, index),
                    shape,
                    grid,
                    self.input,
                    self.config.overlap,
                    self.device,
                    self.store.images["image_id"].iloc[row],
                ),
            )

    def _window(
        self, epoch: int, row: int
    ) -> tuple[Int16[np.ndarray, "d h w"], UInt8[np.ndarray, "d h w"], Float[np.ndarray, " 3"]]:
        """Return a training window, the classes of its voxels, and their distance in mm."""
        facts = self.store.images.iloc[row]
        index = int(facts["index"])
        shape, spacing = self.store.shape(index), self.store.spacing_mm(index)
        grid = cover(shape, spacing, self.input, facts["image_id"])
        classes = self.regions.classes(row)
        if self.input.spacing_mm is not None:
            grid = grid.crop(self._place(epoch, row, grid, classes), self.input.size)
        voxels = input_view(partial(self.store.crop, index), shape, grid, self.input)
        distance = np.array(grid.step) * np.array(spacing or (np.nan,) * 3)
        return voxels, read_view(part_of(classes), shape, grid, 0, labels=True), distance

    def _place(self, epoch: int, row: int, grid: Grid, classes: UInt8[np.ndarray, "d h w"]) -> list[int]:
        """Return the first voxel of a window: around a labelled voxel in some of the windows, else anywhere."""
        drawn = uniforms(CROP, self.seed, epoch, np.array([row]), 5)[0]
        room = np.array(grid.size) - np.array(self.input.size)
        if drawn[3] < self.config.foreground and (held := np.flatnonzero(classes)).size:
            voxel = np.unravel_index(held[int(drawn[4] * held.size)], classes.shape)
            centre = (np.array(voxel) - np.array(grid.start)) / np.array(grid.step)
            start = np.rint(centre - np.array(self.input.size) / 2)
        else:
            start = np.floor(drawn[:3] * (np.abs(room) + 1)) * np.sign(room)
        return np.clip(start, np.minimum(room, 0), np.maximum(room, 0)).astype(int).tolist()


def model_input(task: TaskConfig, given: VolumeInputConfig) -> VolumeInputConfig:
    """Return what a segmenter takes: the encoder's own input, at the distance of voxels that the task sets."""
    spacing = task.volume_segmentation.spacing_mm
    return given if spacing is None else given.model_copy(update={"spacing_mm": spacing})


def cover(shape: Sequence[int], spacing_mm: Sequence[float] | None, taken: VolumeInputConfig, where: object) -> Grid:
    """Return the grid that covers a whole volume: at the distance of the model input, or stretched to its size.

    Raises:
        UserError: The input has a distance of voxels, and the volume has none.
    """
    if taken.spacing_mm is None:
        return stretched(shape, taken.size)
    if spacing_mm is None:
        raise UserError(
            "Nothing says at which distance the voxels of the volume lie.",
            where,
            "Use a file with geometry, or leave volume_segmentation.spacing_mm out.",
        )
    return respaced(shape, spacing_mm, taken.spacing_mm)


def segment(
    network: nn.Module, volume: Volume, taken: VolumeInputConfig, overlap: float, where: object = "the volume"
) -> UInt8[np.ndarray, "d h w"]:
    """Return the class of each voxel of a volume that was read from a file.

    Args:
        network: The segmenter.
        volume: The volume.
        taken: What the network takes.
        overlap: Of windows.
        where: What is named if it cannot be done.

    Raises:
        UserError: The volume has other numbers than the network takes, no spacing, too many voxels at the network's
            distance, or the logits are not finite.
    """
    if not fits(volume.intensity, taken):
        what = f"The volume is in {volume.intensity}, the network takes {taken.intensity}."
        raise UserError(what, where, "Convert it, or name what its numbers mean when it is read.")
    shape = volume.array.shape
    grid, device = cover(shape, volume.spacing_mm, taken, where), next(network.parameters()).device
    return found_classes(network, part_of(volume.array), shape, grid, taken, overlap, device, where)


@torch.inference_mode()
def found_classes(
    network: nn.Module,
    part: Part,
    shape: Sequence[int],
    grid: Grid,
    taken: VolumeInputConfig,
    overlap: float,
    device: torch.device,
    where: object = "the volume",
) -> UInt8[np.ndarray, "d h w"]:
    """Return the class of each voxel of a volume, 0 for background.

    Args:
        network: The segmenter; it is put into evaluation mode.
        part: Reads voxels of the volume.
        shape: Voxels of the volume along d, h, w.
        grid: As `cover` gave it.
        taken: What the network takes.
        overlap: Share by which neighbouring windows overlap.
        device: Of the network.
        where: What is named if it cannot be done.

    Raises:
        UserError: The logits are not finite, or memory does not hold those of the whole volume.
    """
    _check_room(grid.size, where)
    network.eval()
    voxels = torch.from_numpy(input_view(part, shape, grid, taken))[None, None]
    if taken.spacing_mm is None:
        logits = network(normalise(voxels.to(device), taken))
    else:
        from monai.inferers.utils import sliding_window_inference

        # MONAI weighs windows in the type of its input; int16 is exact in float32.
        logits = sliding_window_inference(
            voxels.float(),
            taken.size,
            WINDOWS_AT_ONCE,
            lambda windows: network(normalise(_filled(windows, taken), taken)),
            overlap=overlap,
            mode="gaussian",
            cval=BEYOND,
            sw_device=device,
            device="cpu",  # a whole body with all classes need not fit the memory of a GPU
        )
    assert isinstance(logits, torch.Tensor)
    check_finite(logits, "volume_segmentation")
    return _largest(logits[0].float().cpu().numpy(), grid, shape)


def _check_room(size: Sequence[int], where: object) -> None:
    """Check that free memory holds the logits of a grid.

    Raises:
        UserError: It does not, whatever the network.
    """
    import psutil

    needed, free = VOXEL_BYTES * math.prod(size), psutil.virtual_memory().available
    if needed > free:
        sides = " x ".join(str(side) for side in size)
        raise UserError(
            f"At the distance of voxels that the network takes the volume has {sides} voxels, for which "
            f"{needed / 2**30:.1f} GiB or more are needed; {free / 2**30:.1f} GiB of memory are free.",
            where,
            "Check the spacing that the file states; use a coarser volume_segmentation.spacing_mm, or a part of the "
            "volume.",
        )


def _filled(windows: Float[torch.Tensor, "n 1 d h w"], taken: VolumeInputConfig) -> Int16[torch.Tensor, "n 1 d h w"]:
    """Return windows with what they have beyond the volume filled as `input_view` fills it."""
    filling = torch.full_like(windows[:, :, :1, :1, :1], taken.outside)
    beyond = windows == BEYOND
    if not taken.windows:
        lowest = windows.masked_fill(beyond, math.inf).amin(dim=(2, 3, 4), keepdim=True)
        filling = filling.clamp(lowest, windows.amax(dim=(2, 3, 4), keepdim=True))
    return torch.where(beyond, filling, windows).to(torch.int16)


def _largest(logits: Float[np.ndarray, "k d h w"], grid: Grid, shape: Sequence[int]) -> UInt8[np.ndarray, "d h w"]:
    """Return the class with the largest logit at each voxel of the volume, one class after the other to save memory."""
    best = put_back(logits[0], grid, shape, 0.0)
    found = np.zeros(best.shape, np.uint8)
    for number, own in enumerate(logits[1:], 1):
        values = put_back(own, grid, shape, -np.inf)
        larger = values > best
        found[larger] = number
        best[larger] = values[larger]
    return _to_the_border(found, grid)


def _to_the_border(found: UInt8[np.ndarray, "d h w"], grid: Grid) -> UInt8[np.ndarray, "d h w"]:
    """Return classes of which voxels beyond the grid, which `respaced` can leave out, have that of the last within."""
    inverse, places = grid.inverse(found.shape), []
    for length, count, start, step in zip(found.shape, grid.size, inverse.start, inverse.step, strict=True):
        centres = start + step * np.arange(length)
        within = np.flatnonzero((centres >= -0.5) & (centres <= count - 0.5))
        places.append(np.clip(np.arange(length), within[0], within[-1]))
    return found[np.ix_(*places)]
