"""A tiny raw data set of volumes in NIfTI, with label maps; written and read here, for tests of stores."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.base import Source
from medvlp.sources.phantom.write import nifti
from medvlp.store.prepare import PrepareSummary, prepare
from medvlp.types import ImageRef, Intensity, Lesion, Mask, Study, VolumeFacts

SHAPES = ((20, 33, 40), (17, 16, 16), (5, 40, 18), (33, 20, 30))
STRUCTURES = ("liver", "spleen")
SPACING_MM = (2.5, 0.75, 0.5)
LESION_MM = (4.0, -3.0, 20.0)


def affine(number: int) -> np.ndarray:
    """From the index (d, h, w, 1) to RAS in mm."""
    d, h, w = SPACING_MM
    return np.array([[0.0, 0, w, -number], [0, h, 0, -8], [d, 0, 0, 10], [0, 0, 0, 1]])


def voxels(number: int) -> np.ndarray:
    """Voxels of a volume in HU, `[d h w]` in RAS: a tilted plane with noise, so that no axis can be swapped unseen."""
    shape = SHAPES[number]
    d, h, w = np.indices(shape)
    noise = np.random.default_rng(number).integers(-30, 30, shape)
    return (40 * d - 12 * h + 5 * w + noise - 500).astype(np.int16)


def label_map(number: int) -> np.ndarray:
    """1 liver, 2 spleen."""
    labels = np.zeros(SHAPES[number], np.uint8)
    labels[2:5, 3:12, 4:9] = 1
    labels[1:4, 2:4, 10:15] = 2
    return labels


def write(root: Path) -> Path:
    """Write the files; the last volume has no label map."""
    root.mkdir(parents=True)
    for number in range(len(SHAPES)):
        (root / f"{number}.nii.gz").write_bytes(nifti(voxels(number), affine(number)))
        if number < 3:
            (root / f"{number}_labels.nii.gz").write_bytes(nifti(label_map(number), affine(number)))
    return root


class Volumes(Source):
    """Studies of one volume each."""

    name = "phantom"
    kind = "volume"

    def studies(self) -> Iterator[Study]:
        for number in range(len(SHAPES)):
            path = f"{number}.nii.gz"
            labelled = f"{number}_labels.nii.gz"
            masks = tuple(
                Mask(f"v{number}", name, labelled, values=(value,)) for value, name in enumerate(STRUCTURES, 1)
            )
            yield Study(
                study_id=f"s{number}",
                patient_id=f"p{number // 2}",
                images=(ImageRef(f"v{number}", path, "CT", facts=VolumeFacts(Intensity.HU)),),
                masks=masks if (self.root / labelled).exists() else (),
                lesions=(Lesion(f"v{number}", "nodule", LESION_MM, 6.0),) if number == 0 else (),
                labels={"Lung Lesion": float(number == 0)},
                date=f"2019030{number + 1}",
                split="test" if number == 3 else "train",
            )


@contextlib.contextmanager
def reading(source: type[Source]) -> Iterator[None]:
    """Let `prepare` read a class of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvlp.store.prepare.SOURCES", SimpleNamespace(get=lambda _: source))
        yield


def run(root: Path, out: Path, source: type[Source] = Volumes, **changes: object) -> PrepareSummary:
    """Prepare a store of the tiny data set."""
    fields = {"source": "phantom", "root": root, "out": out, "num_workers": 1, "val_fraction": 0.0}
    fields["volume"] = {"chunk": 16}
    with reading(source):
        return prepare(PrepareConfig.model_validate(fields | changes))
