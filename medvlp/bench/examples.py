"""Example images of the test split, for the report.

Guarantee: which images are shown depends on the store and the tasks alone; one image per patient, positives and
negatives of every label in turn; of grounding and segmentation one image for each finding, of report generation a few
studies. Of a volume the middle axial slice is shown.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.cells import as_json
from medvlp.bench.chosen import MOST, choose
from medvlp.store.files import write_atomic
from medvlp.store.pictures import stored_images

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

    from medvlp.store.array_store import Store
    from medvlp.tasks._study_images import StudyImages
    from medvlp.tasks.base import Samples

STUDIES = 6


def write_examples(stores: Sequence[tuple[Store, Sequence[Samples]]], folder: Path, scratch: Path) -> None:
    """Write `<dataset>/<sample id>.png` and `index.json`.

    Args:
        stores: Each store with the test samples of the tasks on it.
        folder: `RESULTS/examples`.
        scratch: Folder on the same disk.
    """
    index: list[dict[str, Any]] = []
    for store, tests in stores:
        chosen: dict[int, dict[str, float | None]] = {}
        for samples in tests:
            for position in choose(samples, MOST // max(len(tests), 1)):
                known = zip(samples.label_names, samples.labels[position], strict=True)
                values = {name: None if np.isnan(value) else float(value) for name, value in known}
                chosen.setdefault(int(samples.rows[position]), {}).update(values)
        rows = np.array(sorted(chosen), dtype=np.int64)
        for row, name in zip(rows.tolist(), _write_images(store, rows, folder, scratch), strict=True):
            sample_id = str(store.images["image_id"].iloc[row])
            index.append({"sample_id": sample_id, "file": name, "dataset": store.dataset, "labels": chosen[row]})
    write_atomic(folder / "index.json", as_json(index).encode(), scratch)


def write_places(tasks: Sequence[tuple[str, Store, Samples]], folder: Path, scratch: Path) -> None:
    """Write one image for each finding of each task of grounding or segmentation, and `places.json`.

    Args:
        tasks: Name, store and test samples of each task.
        folder: `RESULTS/examples`.
        scratch: Folder on the same disk.
    """
    index: list[dict[str, Any]] = []
    for task, store, samples in tasks:
        for k, finding in enumerate(samples.label_names):
            present = np.flatnonzero(samples.labels[:, k] == 1).tolist()
            if not present:
                continue
            # Not the first in the order of ids, which may be one site or one patient.
            at = min(present, key=lambda i: hashlib.sha256(samples.sample_ids[i].encode()).digest())
            (name,) = _write_images(store, samples.rows[[at]], folder, scratch)
            index.append({"task": task, "finding": finding, "sample_id": samples.sample_ids[at], "file": name})
    write_atomic(folder / "places.json", as_json(index).encode(), scratch)


def write_studies(tasks: Sequence[tuple[str, Store, Samples, StudyImages]], folder: Path, scratch: Path) -> None:
    """Write the images of a few studies of each task of report generation, and `studies.json`.

    Args:
        tasks: Name, store, test samples and images of each task.
        folder: `RESULTS/examples`.
        scratch: Folder on the same disk.
    """
    index: list[dict[str, Any]] = []
    for task, store, samples, images in tasks:
        order = sorted(range(len(samples)), key=lambda i: hashlib.sha256(samples.sample_ids[i].encode()).digest())
        first = {samples.patient_ids[at]: at for at in reversed(order)}  # each patient once
        for at in [at for at in order if first[samples.patient_ids[at]] == at][:STUDIES]:
            rows = images.of(samples.rows[[at]])[0]
            rows = rows[rows >= 0]
            files = _write_images(store, rows, folder, scratch)
            index.append({"task": task, "sample_id": samples.sample_ids[at], "files": files})
    write_atomic(folder / "studies.json", as_json(index).encode(), scratch)


def _write_images(store: Store, rows: Int[np.ndarray, " m"], folder: Path, scratch: Path) -> list[str]:
    """Write rows of the images table as `<dataset>/<image id>.png`, slices as `<image id>-axial.png`."""
    ending = "-axial" if store.kind == "volume" else ""  # the name alone is that of all its slices
    names = [f"{store.dataset}/{file_name(str(one))}{ending}.png" for one in store.images["image_id"].iloc[rows]]
    for name, image in zip(names, stored_images(store, rows), strict=True):
        write_png(folder / name, image, scratch)
    return names


def write_png(path: Path, image: Shaped[np.ndarray, "h w *c"], scratch: Path) -> None:
    """Write an image atomically; `scratch` is a folder on the same disk."""
    import cv2

    done, png = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)  # OpenCV: blue first
    if not done:
        raise ValueError(f"{path.name} cannot be written as PNG")
    write_atomic(path, png.tobytes(), scratch)


def file_name(sample_id: str) -> str:
    """Return a name for a file that any disk takes."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in sample_id)
