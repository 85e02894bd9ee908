"""Example images of the test split, for the report.

Guarantee: which images are shown depends on the store and the tasks alone; one image per patient, positives and
negatives of every label in turn; of grounding and segmentation one image for each finding, of report generation a few
studies.
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

if TYPE_CHECKING:
    from jaxtyping import Shaped

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
        pixels = store.read(store.images["index"].to_numpy()[rows])
        for row, image in zip(rows.tolist(), pixels, strict=True):
            sample_id = str(store.images["image_id"].iloc[row])
            name = _write_image(store.dataset, sample_id, image, folder, scratch)
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
            pixels = store.read(store.images["index"].to_numpy()[samples.rows[[at]]])
            sample_id = samples.sample_ids[at]
            name = _write_image(store.dataset, sample_id, pixels[0], folder, scratch)
            index.append({"task": task, "finding": finding, "sample_id": sample_id, "file": name})
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
            pixels = store.read(store.images["index"].to_numpy()[rows])
            names = store.images["image_id"].astype(str).iloc[rows]
            files = [
                _write_image(store.dataset, name, image, folder, scratch)
                for name, image in zip(names, pixels, strict=True)
            ]
            index.append({"task": task, "sample_id": samples.sample_ids[at], "files": files})
    write_atomic(folder / "studies.json", as_json(index).encode(), scratch)


def _write_image(dataset: str, sample_id: str, image: np.ndarray, folder: Path, scratch: Path) -> str:
    name = f"{dataset}/{file_name(sample_id)}.png"
    write_png(folder / name, image, scratch)
    return name


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
