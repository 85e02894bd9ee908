"""Training batches from the prepared store against PNG files + PIL + torchvision transforms + torch DataLoader.

Both make augmented 224² samples (random resized crop, brightness, contrast) on two workers, one after the other in one
run on one machine; rounds alternate and the median counts. The store's batches are uint8, for they are normalised on
the device; the reference's are float in [0, 1]. Writes `benchmarks/results/loader.json`.

    python benchmarks/speed/loader.py --images DIR [--rounds 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

WORKERS, BATCH, SIZE = 2, 64, 224
SCALE, RATIO, STRENGTH = (0.6, 1.0), (0.85, 1.18), 0.2


def reference(files: list[Path]):
    """The pipeline that is common today; its transforms run on PIL images, its batch is float in [0, 1]."""
    import torch
    from PIL import Image
    from torchvision import transforms

    class Files(torch.utils.data.Dataset):
        change = transforms.Compose(
            [
                transforms.RandomResizedCrop(SIZE, scale=SCALE, ratio=RATIO),
                transforms.ColorJitter(brightness=STRENGTH, contrast=STRENGTH),
                transforms.ToTensor(),
            ]
        )

        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, i: int) -> torch.Tensor:
            with Image.open(files[i]) as image:
                return self.change(image.convert("L"))

    options = {"batch_size": BATCH, "shuffle": True, "drop_last": True, "num_workers": WORKERS}
    loader = torch.utils.data.DataLoader(Files(), persistent_workers=True, **options)
    return (pixels for _ in itertools.count() for pixels in loader)


def ours(store_path: Path):
    """Batches of `ImageLoader`, epoch after epoch, uint8."""
    from medvlp.config.data import AugmentConfig
    from medvlp.data import ImageLoader
    from medvlp.store.array_store import Store

    store = Store.open(store_path)
    augment = AugmentConfig(crop_scale=SCALE, crop_ratio=RATIO, brightness=STRENGTH, contrast=STRENGTH)
    rows = np.arange(len(store.images))
    options = {"batch_size": BATCH, "input_size": SIZE, "seed": 0, "num_workers": WORKERS}
    loader = ImageLoader(store, rows, augment=augment, **options)
    return (batch.pixels for epoch in itertools.count() for batch in loader.epoch(epoch))


def speed(batches, seconds: float) -> float:
    """Samples a second over at least `seconds`, after two batches that warm up."""
    next(batches), next(batches)
    started, samples = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        samples += len(next(batches))
    return samples / (time.perf_counter() - started)


def prepare_store(root: Path, out: Path) -> Path:
    """Prepare a 256² store of the data set."""
    from medvlp.config.prepare import PrepareConfig
    from medvlp.store.prepare import prepare

    prepare(PrepareConfig(source="nih_chestxray14", root=root, out=out))
    return out


def machine() -> dict[str, object]:
    """What the figures were measured on, without names."""
    packages = ("medvlp", "numpy", "opencv-python-headless", "tensorstore", "torch", "torchvision", "pillow")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="raw data set in the layout of NIH ChestX-ray14")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time per round and pipeline")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "loader.json")
    arguments = parser.parse_args()
    files = sorted(arguments.images.rglob("*.png"))
    with tempfile.TemporaryDirectory() as folder:
        store = prepare_store(arguments.images, Path(folder) / "store")
        makers = {"reference": lambda: reference(files), "store": lambda: ours(store)}
        rounds: dict[str, list[float]] = {name: [] for name in makers}
        for _ in range(arguments.rounds):
            for name, make in makers.items():
                batches = make()
                rounds[name].append(round(speed(batches, arguments.seconds), 1))
                batches.close()  # ends the workers, so that they take nothing from the other pipeline
    median = {name: statistics.median(values) for name, values in rounds.items()}
    result = {
        "what": f"augmented {SIZE}² samples a second, {WORKERS} workers, batches of {BATCH}, {len(files)} images",
        "samples_per_second": median,
        "rounds": rounds,
        "ratio": round(median["store"] / median["reference"], 2),
        "targets": {"ratio": 20, "store": 9400},
        "machine": machine(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
