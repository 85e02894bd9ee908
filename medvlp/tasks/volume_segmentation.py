"""Segmentation of volumes: which voxels belong to each label, by a head trained on an encoder, frozen or tuned.

Guarantee: kept are reference and predicted masks on the voxels of the volume, as runs, one row per volume and label,
with the spacing of the volume; a volume without spacing is left out before anything is trained, because distances in it
have no unit.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from medvlp.errors import UserError
from medvlp.tasks._regions import runs_of
from medvlp.tasks._samples import by_split, label_subset
from medvlp.tasks._volume_regions import VolumeRegions
from medvlp.tasks.base import FROZEN, SPLITS, Head, Samples, Subject, Task
from medvlp.types import UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int
    from torch import nn

    from medvlp.models.volume_segmentation import VolumeSegmenter
    from medvlp.store.array_store import Store
    from medvlp.tasks._volume_segmenter import VolumeSegmenterTuning
    from medvlp.zoo import Encoder


@dataclass(frozen=True)
class VolumeOutlines:
    """Reference and predicted masks on the voxels of volumes, one row per volume and label.

    Args:
        sample_ids: Volume of each row.
        patient_ids: Patient of each row.
        label_names: All labels that were asked for.
        labels: Label of each row.
        reference: Start and length of each run, in row-major order; no run where the structure is not there.
        predicted: Likewise.
        shapes: Voxels of each row's volume along d, h, w.
        spacing_mm: Their distance.
        tolerance_mm: Of surface distances.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    labels: Sequence[str]
    reference: Sequence[np.ndarray]
    predicted: Sequence[np.ndarray]
    shapes: Int[np.ndarray, "m 3"]
    spacing_mm: Float[np.ndarray, "m 3"]
    tolerance_mm: float

    def masks(self, row: int) -> tuple[Bool[np.ndarray, "d h w"], Bool[np.ndarray, "d h w"]]:
        """Return reference and predicted mask of a row."""
        shape = tuple(int(side) for side in self.shapes[row])
        return mask_of(self.reference[row], shape), mask_of(self.predicted[row], shape)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per volume and label; `reference` and `predicted` are lists of runs."""
        import pandas as pd

        columns: dict[str, Any] = {
            "sample_id": list(self.sample_ids),
            "patient_id": list(self.patient_ids),
            "label": pd.Series(list(self.labels), dtype=pd.CategoricalDtype(list(self.label_names))),
            "reference": [np.asarray(runs, dtype=np.int32) for runs in self.reference],
            "predicted": [np.asarray(runs, dtype=np.int32) for runs in self.predicted],
            "tolerance_mm": self.tolerance_mm,
        }
        for place, axis in enumerate("dhw"):
            columns[f"size_{axis}"], columns[f"mm_{axis}"] = self.shapes[:, place], self.spacing_mm[:, place]
        return pd.DataFrame(columns)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> VolumeOutlines:
        """Inverse of `to_frame`."""
        return cls(
            frame["sample_id"].tolist(),
            frame["patient_id"].tolist(),
            frame["label"].cat.categories.tolist(),
            frame["label"].tolist(),
            [np.asarray(runs, dtype=np.int64) for runs in frame["reference"]],
            [np.asarray(runs, dtype=np.int64) for runs in frame["predicted"]],
            frame[["size_d", "size_h", "size_w"]].to_numpy(dtype=np.int64),
            frame[["mm_d", "mm_h", "mm_w"]].to_numpy(dtype=np.float64),
            float(frame["tolerance_mm"].iloc[0]) if len(frame) else 1.0,
        )


def mask_of(runs: Int[np.ndarray, " r"], shape: Sequence[int]) -> Bool[np.ndarray, "d h w"]:
    """Return the mask of runs on a volume: the inverse of `runs_of`."""
    mask = np.zeros(int(np.prod(shape)), dtype=bool)
    for start, length in np.asarray(runs, dtype=np.int64).reshape(-1, 2):
        mask[start : start + length] = True
    return mask.reshape(shape)


def _tested_on_val(found: dict[str, Samples]) -> dict[str, Samples]:
    """Return the data set's validation samples as test, and a tenth of the training patients as validation."""
    train = found["train"]
    people = [
        sample if patient == UNKNOWN_PATIENT else patient
        for sample, patient in zip(train.sample_ids, train.patient_ids, strict=True)
    ]
    order = sorted(set(people), key=lambda person: hashlib.sha256(person.encode()).digest())
    chosen = set(order[: max(1, round(len(order) / 10))])
    aside = np.array([person in chosen for person in people], dtype=bool)
    return {
        "train": train.take(np.flatnonzero(~aside)),
        "val": train.take(np.flatnonzero(aside)),
        "test": found["val"],
    }


class VolumeSegmentation(Task):
    """One of the labels for each voxel, or background."""

    code_version: ClassVar[int] = 2
    scoring: ClassVar[str] = "volume_segmentation"
    protocols: ClassVar[frozenset[str]] = frozenset({FROZEN, "fine_tune"})
    needs: ClassVar[str] = ""

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the volumes; a label is 1 where it has voxels, 0 where not, NaN where the label map says nothing.

        Raises:
            UserError: The store has no such structures, or none in a split.
        """
        frame = store.samples()
        marked = VolumeRegions(store, self.config.labels, self.config.name).marked()
        # A voxel has one class: a volume of which one label is unknown would teach that its voxels are background.
        marked[np.isnan(marked).any(axis=1)] = np.nan
        marked[store.images["spacing_slice_mm"].isna().to_numpy()] = np.nan
        if modalities := self.config.volume_segmentation.modalities:
            marked[~store.images["modality"].isin(modalities).to_numpy()] = np.nan
        position = {image: row for row, image in enumerate(store.images["image_id"])}
        labels = marked[[position[image] for image in frame["image_id"]]]
        found = by_split(store, frame, self.config, [label.name for label in self.config.labels], labels)
        if self.config.volume_segmentation.test_split == "val":
            found = _tested_on_val(found)
        for split in SPLITS:
            if not (found[split].labels == 1).any():
                raise UserError(
                    f"No volume of the split '{split}' has a label map with the task's structures.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Check `regions` and `modalities` of the task, and what the store holds, with `medvlp data show`.",
                )
        return found

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return a share of the volumes, stratified by their rarest structure."""
        return label_subset(train, fraction, draw, self.config)

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        task = self.config.resolved()
        return {"code_version": self.code_version, "protocol": protocol} | {
            key: task[key] for key in ("volume_segmentation", "fine_tune")
        }

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Train a head.

        Raises:
            UserError: No training volume shows a label; the subject is no encoder of volumes, or one whose windows mean
                something else than the numbers of a volume; the loss is not finite.
        """
        if not (train.labels == 1).any():
            raise UserError(
                f"None of the {len(train)} training volumes shows one of the labels.",
                f"task {self.config.name}, {protocol}",
                "Use a larger fraction.",
            )
        return self._trained(subject, protocol, train, val, seed)[1]

    def network(self, tower: nn.Module, dim: int, taken: Any) -> VolumeSegmenter:
        """Return the tower with a dense head; see `Task.network`.

        Raises:
            UserError: The tower has no maps, or the head does not fit them.
        """
        from medvlp.models.volume_segmentation import VolumeSegmenter

        config = self.config.volume_segmentation
        return VolumeSegmenter(
            tower,
            size=taken.size,
            pixel_channels=taken.channels,
            classes=1 + len(self.config.labels),
            decoder=config.decoder,
            channels=config.channels,
            frozen=self.config.fine_tune.freeze_encoder,
        )

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> VolumeSegmenterTuning:
        """Return a segmenter on a copy of the encoder's tower; see `Task.tunable`."""
        from medvlp.tasks._volume_segmenter import VolumeSegmenterTuning
        from medvlp.zoo.volume_encoder import VolumeEncoder

        network = self.network(copy.deepcopy(encoder.image_tower), encoder.dim, encoder.preprocessing.input)
        regions = VolumeRegions(store, self.config.labels, self.config.name)
        ready, own = network.to(encoder.device), cast(VolumeEncoder, encoder)
        return VolumeSegmenterTuning(ready, own, store, regions, train, val, self.config, seed, num_workers)

    def kept(self, tunable: VolumeSegmenterTuning, network: nn.Module, samples: Samples) -> VolumeOutlines:
        """Return references and predicted masks; see `Task.kept`."""
        at, of, reference, predicted, shapes = [], [], [], [], []
        for place, found in tunable.classes(network, samples):
            wanted = tunable.regions.classes(int(samples.rows[place]))
            for k in np.flatnonzero(~np.isnan(samples.labels[place])).tolist():
                at.append(place)
                of.append(samples.label_names[k])
                reference.append(runs_of(wanted == k + 1))
                predicted.append(runs_of(found == k + 1))
                shapes.append(found.shape)
        columns = ["spacing_slice_mm", "spacing_row_mm", "spacing_col_mm"]
        spacing = tunable.store.images[columns].to_numpy(dtype=np.float64)[samples.rows]
        return VolumeOutlines(
            [samples.sample_ids[i] for i in at],
            [samples.patient_ids[i] for i in at],
            samples.label_names,
            of,
            reference,
            predicted,
            np.array(shapes, dtype=np.int64).reshape(-1, 3),
            spacing[at],
            self.config.volume_segmentation.tolerance_mm,
        )
