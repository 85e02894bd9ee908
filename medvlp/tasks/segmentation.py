"""Segmentation: which pixels of an image belong to each label, by a head trained on an encoder, frozen or tuned.

Guarantee: an image counts as one without a structure only where the task says that all are marked and no label says
otherwise. Kept are reference and predicted mask on the stored square, as runs, one row per image and label, with the
spacing of the square where the image's is known.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.io.stored import stored_transform
from medvlp.tasks._regions import RegionReader, masks_of, runs_of
from medvlp.tasks._samples import by_split, collapse, label_subset
from medvlp.tasks.base import FROZEN, SPLITS, Head, Samples, Subject, Task

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float
    from torch import nn

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.models.segmentation import Segmenter
    from medvlp.store.array_store import Store
    from medvlp.tasks._segmenter import SegmenterTuning
    from medvlp.zoo import Encoder

IMAGES_AT_ONCE = 64
PRIOR_LEVELS = 20
"""Thresholds that the location prior tries: 1/20, 2/20, ... of the training images."""


@dataclass(frozen=True)
class Outlines:
    """Reference and predicted masks on the stored square, one row per image and label.

    Args:
        sample_ids: Image of each row.
        patient_ids: Patient of each row.
        label_names: All labels that were asked for.
        labels: Label of each row.
        reference: Start and length of each run, in row-major order; no run where the structure is not there.
        predicted: Likewise.
        side: Of the stored square, in pixels.
        spacing_mm: Of the square along rows and columns; NaN where it is not known.
        tolerance: Of surface distances: in mm, and in pixels for images of unknown spacing.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    labels: Sequence[str]
    reference: Sequence[np.ndarray]
    predicted: Sequence[np.ndarray]
    side: int
    spacing_mm: Float[np.ndarray, "m 2"]
    tolerance: tuple[float, float]

    def masks(self, rows: slice) -> tuple[Bool[np.ndarray, "m s s"], Bool[np.ndarray, "m s s"]]:
        """Return reference and predicted masks of some rows."""
        return masks_of(self.reference[rows], self.side), masks_of(self.predicted[rows], self.side)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image and label; `reference` and `predicted` are lists of runs."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sample_id": list(self.sample_ids),
                "patient_id": list(self.patient_ids),
                "label": pd.Series(list(self.labels), dtype=pd.CategoricalDtype(list(self.label_names))),
                "reference": [np.asarray(runs, dtype=np.int32) for runs in self.reference],
                "predicted": [np.asarray(runs, dtype=np.int32) for runs in self.predicted],
                "side": self.side,
                "row_mm": self.spacing_mm[:, 0],
                "column_mm": self.spacing_mm[:, 1],
                "tolerance_mm": self.tolerance[0],
                "tolerance_pixels": self.tolerance[1],
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Outlines:
        """Inverse of `to_frame`."""
        first = frame.iloc[0] if len(frame) else {"side": 1, "tolerance_mm": 1.0, "tolerance_pixels": 1.0}
        return cls(
            frame["sample_id"].tolist(),
            frame["patient_id"].tolist(),
            frame["label"].cat.categories.tolist(),
            frame["label"].tolist(),
            [np.asarray(runs, dtype=np.int64) for runs in frame["reference"]],
            [np.asarray(runs, dtype=np.int64) for runs in frame["predicted"]],
            int(first["side"]),
            frame[["row_mm", "column_mm"]].to_numpy(dtype=np.float64),
            (float(first["tolerance_mm"]), float(first["tolerance_pixels"])),
        )


class Segmentation(Task):
    """Masks of the labels, or of their boxes, filled."""

    code_version: ClassVar[int] = 1
    scoring: ClassVar[str] = "segmentation"
    protocols: ClassVar[frozenset[str]] = frozenset({FROZEN, "fine_tune"})
    needs: ClassVar[str] = ""
    asks_where: ClassVar[bool] = True

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images; a label is 1 where its structure is seen, 0 where it is not there, NaN where unknown.

        Raises:
            UserError: The store has no masks (boxes), none of a label's names, or none in a split.
        """
        config = self.config.segmentation
        frame = store.samples()
        there, seen = self._regions(store).marked()
        position = {image: row for row, image in enumerate(store.images["image_id"])}
        rows = [position[image] for image in frame["image_id"]]
        labels = np.where(seen, 1.0, 0.0 if config.unmarked == "empty" else np.nan)
        labels[there & ~seen] = np.nan
        labels = labels[rows]
        for k, label in enumerate(self.config.labels):
            if f"label:{label.positive}" in frame:
                said = collapse(frame[f"label:{label.positive}"].to_numpy(), self.config)
                uncertain = frame[f"label:{label.positive}"].to_numpy(dtype=np.float64) == -1
                labels[(labels[:, k] == 0) & ((said == 1) | (uncertain & np.isnan(said))), k] = np.nan
        if config.classes == "exclusive":
            labels[np.isnan(labels).any(axis=1)] = np.nan
        found = by_split(store, frame, self.config, [label.name for label in self.config.labels], labels)
        for split in SPLITS:
            if not (found[split].labels == 1).any():
                raise UserError(
                    f"No image of the split '{split}' shows one of the task's labels: its masks are empty or missing.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Check `regions` and `views` of the task, and what the store holds, with `medvlp data show`.",
                )
        return found

    def _regions(self, store: Store) -> RegionReader:
        config = self.config.segmentation
        return RegionReader(store, self.config.labels, config.target, config.legacy_boxes, self.config.name)

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return a share of the images, stratified by their rarest structure, or by lists."""
        return label_subset(train, fraction, draw, self.config)

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        task = self.config.resolved()
        return {"code_version": self.code_version, "protocol": protocol} | {
            key: task[key] for key in ("segmentation", "fine_tune")
        }

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Train a head; a subject without an encoder gets the location prior of the training images.

        Raises:
            UserError: Fewer than two training images, or none with a structure; the encoder's features have no grid;
                the loss is not finite.
        """
        where = f"task {self.config.name}, {protocol}"
        if len(train) < 2 or not (train.labels == 1).any():
            raise UserError(
                f"None of the {len(train)} training images shows one of the labels.", where, "Use a larger fraction."
            )
        regions = self._regions(subject.store)
        if subject.load_encoder is None:
            prior = _location_prior(regions, train, val)
            return Head(lambda samples: self._kept(subject.store, samples, regions, _same(prior, len(samples))))
        return self._trained(subject, protocol, train, val, seed)[1]

    def network(self, tower: nn.Module, dim: int, taken: ModelInputConfig) -> Segmenter:
        """Return the tower with a dense head; see `Task.network`.

        Raises:
            UserError: The encoder's features have no grid, or the tower cannot take the input size.
        """
        from medvlp.models.segmentation import Segmenter
        from medvlp.tasks._segmenter import model_input

        config = self.config.segmentation
        own = model_input(self.config, taken)
        return Segmenter(
            tower,
            side=own.size,
            pixel_channels=own.channels,
            classes=len(self.config.labels) + (config.classes == "exclusive"),
            decoder=config.decoder,
            channels=config.channels,
            level_norm=config.level_norm,
            frozen=self.config.fine_tune.freeze_encoder,
            drop_path=config.legacy_drop_path,
        )

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> SegmenterTuning:
        """Return a segmenter on a copy of the encoder's tower; see `Task.tunable`."""
        from medvlp.tasks._segmenter import PooledSegmenterTuning, SegmenterTuning

        network = self.network(copy.deepcopy(encoder.image_tower), encoder.dim, encoder.preprocessing.input)
        kind = PooledSegmenterTuning if self.config.segmentation.select == "pooled_dice" else SegmenterTuning
        regions, ready = self._regions(store), network.to(encoder.device)
        return kind(ready, encoder, store, regions, train, val, self.config, seed, num_workers)

    def kept(self, tunable: SegmenterTuning, network: nn.Module, samples: Samples) -> Outlines:
        """Return references and predicted masks; see `Task.kept`."""
        return self._kept(tunable.store, samples, tunable.regions, tunable.masks(network, samples))

    def _kept(
        self,
        store: Store,
        samples: Samples,
        regions: RegionReader,
        found: Iterator[tuple[int, Bool[np.ndarray, "b k s s"]]],
    ) -> Outlines:
        """Keep predicted masks, given as (place of the first, masks), beside the references where these are known."""
        images = store.images.iloc[samples.rows]
        spacing = _stored_spacing(images, store)
        at, of, reference, predicted = [], [], [], []
        for start, masks in found:
            wanted = regions(samples.rows[start : start + len(masks)]) != 0
            for i, k in np.argwhere(~np.isnan(samples.labels[start : start + len(masks)])):
                at.append(start + int(i))
                of.append(samples.label_names[k])
                reference.append(runs_of(wanted[i, k]))
                predicted.append(runs_of(masks[i, k]))
        config = self.config.segmentation
        return Outlines(
            [samples.sample_ids[i] for i in at],
            [samples.patient_ids[i] for i in at],
            samples.label_names,
            of,
            reference,
            predicted,
            store.size,
            spacing[at],
            (config.tolerance_mm, config.tolerance_pixels),
        )


def _stored_spacing(images: pd.DataFrame, store: Store) -> Float[np.ndarray, "n 2"]:
    """Return the distance of pixels on the stored square in mm, along rows and columns; NaN where it is not known."""
    scales = [
        stored_transform(int(height), int(width), store.image_config)[:2]
        for height, width in zip(images["height"], images["width"], strict=True)
    ]
    own = images[["spacing_row_mm", "spacing_col_mm"]].to_numpy(dtype=np.float64)
    return own / np.asarray(scales, dtype=np.float64).reshape(-1, 2)


def _location_prior(regions: RegionReader, train: Samples, val: Samples) -> Bool[np.ndarray, "k s s"]:
    """Return where a label is in more than a share of the training images with it, the best share on validation."""
    size = regions.store.size
    sums = np.zeros((len(train.label_names), size, size))
    for samples, masks in _in_parts(train, regions):
        sums += (masks * (samples.labels == 1)[:, :, None, None]).sum(axis=0)
    share = sums / np.maximum((train.labels == 1).sum(axis=0), 1)[:, None, None]
    levels = np.arange(1, PRIOR_LEVELS) / PRIOR_LEVELS
    guesses = share[None] > levels[:, None, None, None]
    areas = guesses.sum(axis=(2, 3))
    dice = np.zeros(areas.shape)
    for samples, masks in _in_parts(val, regions):
        common = np.einsum("lkhw,nkhw->lnk", guesses.astype(np.float32), masks.astype(np.float32))
        each = 2 * common / np.maximum(areas[:, None] + masks.sum(axis=(2, 3)), 1)
        dice += (each * (samples.labels == 1)).sum(axis=1)
    return guesses[dice.argmax(axis=0), np.arange(len(share))]


def _in_parts(samples: Samples, regions: RegionReader) -> Iterator[tuple[Samples, Bool[np.ndarray, "b k s s"]]]:
    for start in range(0, len(samples), IMAGES_AT_ONCE):
        part = samples.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(samples))))
        yield part, regions(part.rows) != 0


def _same(mask: Bool[np.ndarray, "k s s"], images: int) -> Iterator[tuple[int, Bool[np.ndarray, "b k s s"]]]:
    for start in range(0, images, IMAGES_AT_ONCE):
        yield start, np.broadcast_to(mask, (min(IMAGES_AT_ONCE, images - start), *mask.shape))
