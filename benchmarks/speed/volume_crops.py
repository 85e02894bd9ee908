"""96³ training crops of CTs: medvlp's loader against MONAI's pipelines, the same transforms, in turns in one run.

    python benchmarks/speed/volume_crops.py [--volumes 3] [--rounds 3] [--out benchmarks/results/volume_crops.json]

The CTs are made (300×512×512, the phantom with scanner noise). Everybody gives batches of 4 crops at random places, as
float32 after the lung window, each second one mirrored left to right. MONAI reads `.nii.gz` anew (Dataset), or keeps
what comes before the first random transform on disk (PersistentDataset, int16, filled before the clock starts); both in
2 processes. medvlp reads from its store in 2 threads. The page cache is warm for all. A ratio is the median over rounds
of the ratio within a round.
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
from pathlib import Path
from typing import Any

import made_ct
import numpy as np
import torch
from crops import make

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data import VolumeLoader, normalise
from medvlp.data.volume_augment import on_device
from medvlp.store.array_store import Store

SIDE, BATCH, WORKERS = 96, 4, 2
LOW, HIGH = -1350.0, 150.0
"""Of the lung window in HU."""
SAMPLES = {"medvlp": 240, "persistent": 12, "dataset": 8}
"""Crops of a round."""
TARGETS = {"dataset": 10, "persistent": 2}


def of_medvlp(store: Store) -> Iterator[torch.Tensor]:
    """Yield batches without end."""
    taken = VolumeInputConfig(
        size=(SIDE,) * 3, spacing_mm=made_ct.SPACING_MM, windows=("lung",), mean=(0.0,), std=(1.0,)
    )
    options: dict[str, Any] = {"augment": VolumeAugmentConfig(flip=("w",)), "seed": 0, "batch_size": BATCH}
    rows = np.resize(np.arange(len(store)), 400)
    loader = VolumeLoader(store, rows, config=taken, num_workers=WORKERS, **options)
    for batch in loader.stream():
        yield normalise(on_device(batch, "cpu").pixels, taken)


def of_monai(files: list[Path], cache: Path | None) -> Iterator[torch.Tensor]:
    """Yield batches without end."""
    from monai import transforms as t
    from monai.data import DataLoader, Dataset, PersistentDataset

    chain = t.Compose(
        [
            t.LoadImaged("image", dtype=np.int16, image_only=True),
            t.EnsureChannelFirstd("image"),
            t.Orientationd("image", axcodes="RAS", labels=None),
            t.RandSpatialCropd("image", (SIDE,) * 3, random_size=False),
            t.ScaleIntensityRanged("image", LOW, HIGH, 0.0, 1.0, clip=True),
            t.RandFlipd("image", prob=0.5, spatial_axis=0),
        ]
    )
    items = [{"image": str(file)} for file in files] * 40
    data = Dataset(items, chain) if cache is None else PersistentDataset(items, chain, cache_dir=cache)
    if cache is not None:
        for number in range(len(files)):
            data[number]
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True)
    while True:
        for batch in loader:
            yield batch["image"]


def seconds(batches: Iterator[torch.Tensor], samples: int) -> float:
    """Return the seconds that a sample takes."""
    began, seen = time.perf_counter(), 0
    while seen < samples:
        batch = next(batches)
        if batch.shape[1:] != (1, SIDE, SIDE, SIDE) or not 0 <= float(batch.min()) <= float(batch.max()) <= 1:
            raise SystemExit(f"a batch of {tuple(batch.shape)} is not what was asked for")
        seen += len(batch)
    return (time.perf_counter() - began) / seen


def check_same_voxels(store: Store, file: Path) -> None:
    """Stop unless the store and MONAI's reader give the same voxels in the same orientation."""
    from monai.transforms import Compose, EnsureChannelFirst, LoadImage, Orientation

    chain = Compose([LoadImage(dtype=np.int16, image_only=True), EnsureChannelFirst(), Orientation("RAS", labels=None)])
    whole = np.asarray(chain(str(file)))[0]
    crop = store.crop(0, (40, 200, 100), (SIDE,) * 3)
    if not np.array_equal(crop, whole[100 : 100 + SIDE, 200 : 200 + SIDE, 40 : 40 + SIDE].transpose(2, 1, 0)):
        raise SystemExit("the store and MONAI give other voxels")


def main() -> None:
    """Measure in turns, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "volume_crops.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        first, store = make(Path(folder), arguments.volumes)
        files = sorted(first.parent.glob("*.nii.gz"))
        check_same_voxels(store, first)
        ways: dict[str, Callable[[], Iterator[torch.Tensor]]] = {
            "medvlp": lambda: of_medvlp(store),
            "persistent": lambda: of_monai(files, Path(folder) / "cache"),
            "dataset": lambda: of_monai(files, None),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(arguments.rounds):
            for name, start in ways.items():
                batches = start()
                next(batches)  # workers have started
                taken[name].append(seconds(batches, SAMPLES[name]))
                del batches
    rates = {name: round(1 / statistics.median(values), 2) for name, values in taken.items()}
    ratios = {
        name: round(statistics.median(o / m for o, m in zip(taken[name], taken["medvlp"], strict=True)), 1)
        for name in TARGETS
    }
    result = {
        "what": f"batches of {BATCH} crops of {SIDE}³ of {arguments.volumes} volumes "
        f"{'×'.join(map(str, made_ct.SHAPE))}; random place, flip, lung window, float32",
        "crops_per_second": rates,
        "ratio_to": ratios,
        "targets": TARGETS,
        "reached": all(ratios[name] >= target for name, target in TARGETS.items()),
        "rounds_seconds_per_crop": {name: [round(value, 5) for value in values] for name, values in taken.items()},
        "workers": WORKERS,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in ("monai", "torch", "nibabel", "tensorstore")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
