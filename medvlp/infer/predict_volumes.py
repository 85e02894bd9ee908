"""Answers of a fine-tuned model for volumes: files of volumes and DICOM series.

Guarantee: as for images (`medvlp.infer.predict`): every volume has a row or a reason. A label map lies on the grid of
its file, index by index and in the patient's coordinates, so that any viewer lays it over the volume; by a model whose
stored volumes are resampled or cropped it lies on their grid, in the patient's coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.infer.images import Bad
from medvlp.infer.seen import SeenVolume, input_of
from medvlp.io.nifti_writer import write_on_volume
from medvlp.tasks._classifier import logits_of
from medvlp.tasks._tuned import calibrated

if TYPE_CHECKING:
    from medvlp.tasks._tuned import TunedModel
    from medvlp.types import Volume


class VolumeProbabilities:
    """Calibrated probability and answer of every label, of volumes; `row` makes a row of probabilities."""

    def __init__(self, model: TunedModel) -> None:
        self.model = model

    def __call__(self, seen: Sequence[tuple[str, SeenVolume]], first: int) -> list[dict[str, Any] | Bad]:
        """See `medvlp.infer.predict.Answers`."""
        from medvlp.infer.predict import probability_row

        model, taken = self.model, self.model.preprocessing.input
        found: list[dict[str, Any] | Bad] = []
        for name, one in seen:
            voxels = input_of(name, one, taken)
            if isinstance(voxels, Bad):
                found.append(voxels)
                continue
            (own,) = calibrated(model.decisions, logits_of(model.network, voxels, taken, model.device))
            found.append(probability_row(model, name, own))
        return found


class LabelMaps:
    """Label map file and size of every label.

    Args:
        model: A segmentation of volumes.
        folder: Where the files go.
    """

    def __init__(self, model: TunedModel, folder: Path) -> None:
        self.model, self.folder = model, folder

    def __call__(self, seen: Sequence[tuple[str, SeenVolume]], first: int) -> list[dict[str, Any] | Bad]:
        """See `medvlp.infer.predict.Answers`."""
        from medvlp.tasks._volume_segmenter import segment

        model, rows = self.model, list[dict[str, Any] | Bad]()
        number = first
        for name, one in seen:
            try:
                overlap = model.task.volume_segmentation.overlap
                found = segment(model.network, one.volume, model.preprocessing.input, overlap, name)
                file = self.folder / f"{number:06d}.nii.gz"
                write_on_volume(file, found, one.volume)
            except UserError as error:  # one volume must not end the work on the others
                rows.append(Bad(name, error.what, error.fix))
                continue
            rows.append(self._row(file.name, found, one.volume))
            number += 1
        return rows

    def _row(self, file: str, found: np.ndarray, volume: Volume) -> dict[str, Any]:
        row: dict[str, Any] = {"mask": file}
        counts = np.bincount(found.ravel(), minlength=1 + len(self.model.label_names))
        voxel_ml = None if volume.spacing_mm is None else float(np.prod(volume.spacing_mm)) / 1000
        for k, label in enumerate(self.model.label_names, 1):
            voxels = int(counts[k])
            row |= {f"value:{label}": k, f"voxels:{label}": voxels}
            row[f"volume_ml:{label}"] = None if voxel_ml is None else voxels * voxel_ml
        return row
