"""Images a second from a prepared store, in random batches, beside decoding PNG files of the full size.

    python benchmarks/speed/store_read.py PNG_FOLDER [--images 30000] [--out benchmarks/results/store_read.json]

The store is made in a temporary folder from the PNG files, by the code that `medvlp data prepare` uses, and filled up
to `--images` rows with shifted copies, more than the reader's cache holds. The page cache is warm for both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.io import read_radiograph
from medvlp.io.stored import to_stored
from medvlp.store.array_store import Store
from medvlp.store.files import atomic_file, write_atomic, write_json
from medvlp.store.manifest import FORMAT_VERSION, IMAGE_COLUMNS, META, parquet_bytes, table
from medvlp.store.shards import IMAGES_ARRAY, create_arrays, image_layout, shard_file
from medvlp.store.zarr_files import encoded_chunks, write_shard_file

SHARD_IMAGES = 512


def make_store(folder: Path, pixels: np.ndarray, images: int, config: StoredImageConfig) -> Store:
    """Write a store of `images` rows from a few images."""
    create_arrays(folder, "image", images, SHARD_IMAGES, 0, config)
    layout = image_layout(images, SHARD_IMAGES, config)
    for number, first in enumerate(range(0, images, SHARD_IMAGES)):
        rows = np.arange(first, min(first + SHARD_IMAGES, images))
        block = np.stack([np.roll(pixels[row % len(pixels)], row // len(pixels), axis=1) for row in rows])
        with atomic_file(shard_file(folder / IMAGES_ARRAY, number, 3), folder / "tmp") as file:
            write_shard_file(file, encoded_chunks(block, layout, 1), layout.cells)
    filler = dict.fromkeys(IMAGE_COLUMNS)
    write_atomic(
        folder / "images.parquet", parquet_bytes(table([filler | {"index": 0, "mean": 0.5}], IMAGE_COLUMNS)), folder
    )
    meta = {
        "format_version": FORMAT_VERSION,
        "kind": "image",
        "hash": "",
        "dataset": "speed",
        "labels": [],
        "preprocessing": config.resolved(),
        "counts": {"images": images, "array_rows": images},
        "made_from": {"settings": {"shard_images": SHARD_IMAGES}},
    }
    write_json(folder / META, meta, folder)
    return Store.open(folder)


def best(function: object, repeats: int = 5) -> float:
    """Return the images a second of the quickest repeat: the one that other programs disturbed least."""
    speeds = []
    for _ in range(repeats):
        started = time.perf_counter()
        images = function()  # type: ignore[operator]
        speeds.append(images / (time.perf_counter() - started))
    return max(speeds)


def main() -> None:
    """Measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("png_folder", type=Path)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/store_read.json"))
    arguments = parser.parse_args()
    config = StoredImageConfig()
    files = sorted(arguments.png_folder.rglob("*.png"))
    radiographs = [read_radiograph(file, config) for file in files]
    pixels = np.stack([to_stored(radiograph, config) for radiograph in radiographs])

    def decode_only() -> int:
        return len([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) for file in files])

    def decode_and_shrink() -> int:
        return len([to_stored(read_radiograph(file, config), config) for file in files])

    with tempfile.TemporaryDirectory() as folder:
        store = make_store(Path(folder), pixels, arguments.images, config)
        rng = np.random.default_rng(0)
        batches = [rng.integers(0, arguments.images, arguments.batch) for _ in range(300)]

        def read_batches() -> int:
            return sum(len(store.read(batch)) for batch in batches)

        read_batches()
        result = {
            "store_images_per_second": round(best(read_batches)),
            "png_decode_images_per_second": round(best(decode_only), 1),
            "png_to_stored_images_per_second": round(best(decode_and_shrink), 1),
            "bytes_per_image": round(sum(f.stat().st_size for f in Path(folder).rglob("0")) / arguments.images),
        }
    result |= {
        "ratio": round(result["store_images_per_second"] / result["png_to_stored_images_per_second"], 1),
        "stored": config.resolved(),
        "png": {"files": len(files), "height_width": list(radiographs[0].array.shape)},
        "rows": arguments.images,
        "batch": arguments.batch,
        "cores": len(os.sched_getaffinity(0)),
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
