"""Peak memory of `prepare` for each process, and its time, on series of 300 DICOM slices of 512².

    python benchmarks/speed/prepare_memory.py [--out benchmarks/results/prepare_memory.json]

`prepare` runs as a program of its own, once with one process and once with two workers and four series. The peak is the
high-water mark of resident memory of each process (Linux), interpreter and libraries included; a volume is 157 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import made_ct
import numpy as np
import psutil

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.base import Source
from medvlp.store import prepare as preparing
from medvlp.types import ImageRef, Study

TARGET_VOLUMES = 2.5


class Series(Source):
    """The folders of a folder, each a series."""

    name = "phantom"
    kind = "volume"

    def studies(self) -> Iterator[Study]:
        """Yield a study for each folder."""
        for folder in sorted(self.root.iterdir()):
            files = tuple(f"{folder.name}/{file.name}" for file in sorted(folder.iterdir()))
            yield Study(folder.name, folder.name, (ImageRef(folder.name, folder.name, "CT", files=files),))


def prepare(root: Path, out: Path, workers: int) -> None:
    """Prepare all series below `root`."""
    preparing.SOURCES = SimpleNamespace(get=lambda _: Series)
    preparing.prepare(PrepareConfig(source="phantom", root=root, out=out, num_workers=workers))


def high_water(process: psutil.Process) -> int:
    """Return the most memory that a process has had resident, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM")), 0)


def measure(root: Path, out: Path, workers: int) -> dict[str, object]:
    """Run `prepare` as a program and return the peak of its processes."""
    command = [sys.executable, __file__, "--prepare", str(root), str(out), str(workers)]
    started = time.perf_counter()
    program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peaks: dict[int, int] = {}
    own = psutil.Process(program.pid)
    while program.poll() is None:
        for process in [own, *own.children(recursive=True)]:
            peaks[process.pid] = max(peaks.get(process.pid, 0), high_water(process))
        time.sleep(0.01)
    if program.returncode:
        raise SystemExit(f"prepare failed with {program.returncode}")
    volume = int(np.prod(made_ct.SHAPE)) * 2
    highest = sorted(peaks.values(), reverse=True)
    return {
        "workers": workers,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mb": [round(peak / 1e6) for peak in highest],
        "peak_in_volumes": round(highest[0] / volume, 2),
    }


def main() -> None:
    """Write series, measure, print and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "prepare_memory.json")
    parser.add_argument("--prepare", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(Path(arguments.prepare[0]), Path(arguments.prepare[1]), int(arguments.prepare[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made_ct.write_series(made_ct.ct_volume(), folder / "one" / "0")
        for number in range(4):
            shutil.copytree(folder / "one" / "0", folder / "four" / str(number), copy_function=os.link)
        runs = [
            measure(folder / "one", folder / "store_one", workers=1),
            measure(folder / "four", folder / "store_four", workers=2),
        ]
    result = {
        "what": f"peak memory of each process of prepare, series {'×'.join(map(str, made_ct.SHAPE))}",
        "volume_mb": round(int(np.prod(made_ct.SHAPE)) * 2 / 1e6),
        "peak_in_volumes": max(run["peak_in_volumes"] for run in runs),
        "runs": runs,
        "target": TARGET_VOLUMES,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.system(),
            "processor": platform.machine(),
        },
        "load_average": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
