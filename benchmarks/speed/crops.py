"""96³ crops of a 300×512×512 CT: from a prepared store, and from .nii.gz by nibabel, side by side in one run.

    python benchmarks/speed/crops.py [--volumes 4] [--out benchmarks/results/crops.json]

The CT is the phantom with scanner noise; further volumes of the store are copies, so that crops come from many files.
The places are the same for both. nibabel's slicer decompresses all that lies before the crop; one volume is enough for
it. The page cache is warm for both sides; each side is read in 2 threads and in 1.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import made_ct
import numpy as np

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data import VolumeLoader
from medvlp.sources.base import Source
from medvlp.store import prepare as preparing
from medvlp.store.array_store import Store
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

SIDE = 96
TARGETS = {"ratio": 100, "store_crops_per_second": 300}


class Volumes(Source):
    """The files of a folder, each a study."""

    name = "phantom"
    kind = "volume"

    def studies(self) -> Iterator[Study]:
        """Yield a study for each file."""
        for file in sorted(self.root.glob("*.nii.gz")):
            image = ImageRef(file.name, file.name, "CT", facts=VolumeFacts(Intensity.HU))
            yield Study(file.name, file.name, (image,))


def make(folder: Path, volumes: int) -> tuple[Path, Store]:
    """Write the NIfTI files and the store."""
    import nibabel

    raw = folder / "raw"
    raw.mkdir()
    own = made_ct.AFFINE[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(made_ct.ct_volume().transpose(2, 1, 0), own)
    image.header.set_data_dtype(np.int16)
    nibabel.save(image, raw / "0.nii.gz")
    for number in range(1, volumes):
        os.link(raw / "0.nii.gz", raw / f"{number}.nii.gz")
    preparing.SOURCES = SimpleNamespace(get=lambda _: Volumes)
    preparing.prepare(PrepareConfig(source="phantom", root=raw, out=folder / "store", num_workers=1))
    return raw / "0.nii.gz", Store.open(folder / "store")


def per_second(crop: Callable[[tuple[int, ...]], np.ndarray], places: list[tuple[int, ...]], threads: int) -> float:
    """Return crops a second of the quickest of three rounds: the one that other programs disturbed least."""
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(3):
            started = time.perf_counter()
            for _ in pool.map(crop, places):
                pass
            seconds.append(time.perf_counter() - started)
    return round(len(places) / min(seconds), 2)


def loader_speed(store: Store) -> float:
    """Return samples a second of the training loader, batches of 8."""
    crop = VolumeInputConfig(size=(SIDE,) * 3, spacing_mm=made_ct.SPACING_MM)
    rows = np.resize(np.arange(len(store)), 400)
    loader = VolumeLoader(store, rows, config=crop, augment=VolumeAugmentConfig(), seed=0, batch_size=8)
    speeds = []
    for epoch in range(3):
        started, samples = time.perf_counter(), 0
        for batch in loader.epoch(epoch):
            samples += len(batch.index)
        speeds.append(samples / (time.perf_counter() - started))
    return round(statistics.median(speeds), 1)


def main() -> None:
    """Measure, check that both sides give the same voxels, print and write JSON."""
    import nibabel

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--crops", type=int, default=400)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "crops.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        nifti, store = make(Path(folder), arguments.volumes)
        rng = np.random.default_rng(0)
        places = [
            (number % arguments.volumes, *(int(rng.integers(0, size - SIDE + 1)) for size in made_ct.SHAPE))
            for number in range(arguments.crops)
        ]

        def from_store(place: tuple[int, ...]) -> np.ndarray:
            return store.crop(place[0], place[1:], (SIDE,) * 3)

        def from_nifti(place: tuple[int, ...]) -> np.ndarray:
            d, h, w = (slice(start, start + SIDE) for start in place[1:])
            return np.asarray(nibabel.load(nifti).dataobj[w, h, d])

        for place in places[:3]:
            if not np.array_equal(from_store(place), from_nifti(place).transpose(2, 1, 0)):
                raise SystemExit("the store and the file give other voxels")
        rates: dict[str, list[float]] = {"store": [], "nifti": []}
        for threads in (2, 1):
            rates["store"].append(per_second(from_store, places, threads))
            rates["nifti"].append(per_second(from_nifti, places[:8], threads))
        loaded = loader_speed(store)
        shard = Path(folder) / "store" / "volumes.zarr" / "000000" / "c" / "0" / "0" / "0"
        sizes = {"store": shard.stat().st_size, "nifti": nifti.stat().st_size}
    result = {
        "what": f"{SIDE}³ crops at random places of {arguments.volumes} volumes {'×'.join(map(str, made_ct.SHAPE))}",
        "store_crops_per_second": rates["store"][0],
        "nifti_crops_per_second": rates["nifti"][0],
        "ratio": round(rates["store"][0] / rates["nifti"][0], 1),
        "one_thread": {"store_crops_per_second": rates["store"][1], "nifti_crops_per_second": rates["nifti"][1]},
        "ratio_one_thread": round(rates["store"][1] / rates["nifti"][1], 1),
        "loader_samples_per_second": loaded,
        "bytes": sizes,
        "stored": store.config.resolved(),
        "targets": TARGETS,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("nibabel", "numpy", "tensorstore")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
