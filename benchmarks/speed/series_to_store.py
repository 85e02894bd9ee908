"""A series of 300 DICOM slices of 512² into a prepared store, against SimpleITK's bare read of the same files.

    python benchmarks/speed/series_to_store.py [--rounds 9] [--out benchmarks/results/series_to_store.json]

The store's side reads and checks all headers, orders the slices, converts to HU, hashes the files and the voxels,
compresses, and flushes the files to the disk. SimpleITK gets the names in order and only reads. Both use warm files;
rounds alternate, and medians count. Seconds of processor time are given beside those of the clock, because other
programs do not change them much: with two free cores the clock of the store's side is shorter than its processor time,
and where other programs take one of them the ratio goes up to that of the processor seconds, about 1.4.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import made_ct

from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.store.shards import ShardTask, write_shard
from medvlp.types import ImageRef

TARGET = 1.3


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the clock and of the processor that a call takes."""
    clock, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    """Measure, print and write JSON."""
    import SimpleITK as sitk

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "series_to_store.json")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_ct.write_series(made_ct.ct_volume(), folder / "series")
        files = tuple(f"series/{file.name}" for file in sorted((folder / "series").iterdir()))

        def bare() -> object:
            reader = sitk.ImageSeriesReader()
            reader.SetFileNames([str(folder / file) for file in files])
            return reader.Execute()

        def to_store() -> object:
            image = ImageRef("series", "series", "CT", files=files)
            record = write_shard(
                ShardTask(
                    out=folder / "store",
                    root=folder,
                    kind="volume",
                    number=0,
                    shard_images=1,
                    images=(image,),
                    masks=((),),
                    shard_masks=0,
                    config=StoredVolumeConfig(),
                    threads=cores,
                )
            )
            if record["problems"]:
                raise SystemExit(record["problems"])
            return record

        sides = {"simpleitk_read": bare, "to_store": to_store}
        clock: dict[str, list[float]] = {side: [] for side in sides}
        processor: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(arguments.rounds + 1):
            for side, function in sides.items():
                shutil.rmtree(folder / "store", ignore_errors=True)
                seconds, spent = timed(function)
                if number:
                    clock[side].append(seconds)
                    processor[side].append(spent)
    medians = {side: statistics.median(values) for side, values in clock.items()}
    spent_medians = {side: statistics.median(values) for side, values in processor.items()}
    best = {side: min(values) for side, values in clock.items()}
    result = {
        "what": f"a series of {made_ct.SHAPE[0]} slices of {made_ct.SHAPE[1]}² into a store, and SimpleITK's bare read",
        "seconds": {side: round(value, 3) for side, value in medians.items()},
        "ratio": round(medians["to_store"] / medians["simpleitk_read"], 2),
        "best_seconds": {side: round(value, 3) for side, value in best.items()},
        "ratio_of_best": round(best["to_store"] / best["simpleitk_read"], 2),
        "processor_seconds": {side: round(value, 3) for side, value in spent_medians.items()},
        "target_ratio": TARGET,
        "rounds": arguments.rounds,
        "cores": cores,
        "load_average": round(os.getloadavg()[0], 1),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("numcodecs", "numpy", "pydicom", "simpleitk")},
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
