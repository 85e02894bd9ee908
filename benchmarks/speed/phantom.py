"""How many phantom studies a second `write_phantom` makes: volume, masks, radiographs, report, PNG files.

Run `python benchmarks/speed/phantom.py [--studies 100] [--workers 2] [--out FILE]`; it writes
benchmarks/results/phantom.json unless told otherwise.
The wall clock counts other work on the machine, so CPU seconds of a study stand beside it: of the same studies, on one
thread, in memory (`cpu_seconds_per_study`), and with PNG files, hashes and the start of the workers
(`cpu_seconds_per_study_with_files_and_start`). The first is taken without other threads of the linear algebra, which
would spin and be counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import tempfile
import time
from pathlib import Path

import cv2
import threadpoolctl  # type: ignore[import-untyped]

from medvlp.sources.phantom import generate_study, write_phantom


def _children() -> float:
    """Return the CPU seconds of the processes that ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "phantom.json")
    arguments = parser.parse_args()
    load = os.getloadavg()

    cv2.setNumThreads(1)
    with threadpoolctl.threadpool_limits(1):
        generate_study(0, 0, arguments.size)
        started = time.process_time()
        for index in range(arguments.studies):
            generate_study(0, index, arguments.size)
        cpu = (time.process_time() - started) / arguments.studies

    with tempfile.TemporaryDirectory() as folder:
        before = _children()
        started = time.perf_counter()
        write_phantom(Path(folder) / "phantom", arguments.studies, 0, arguments.size, num_workers=arguments.workers)
        seconds = time.perf_counter() - started
        workers = _children() - before

    result = {
        "studies": arguments.studies,
        "size": arguments.size,
        "workers": arguments.workers,
        "seconds": round(seconds, 2),
        "studies_per_second": round(arguments.studies / seconds, 2),
        "cpu_seconds_per_study": round(cpu, 3),
        "cpu_seconds_per_study_with_files_and_start": round(workers / arguments.studies, 3),
        "load_average_before": [round(value, 1) for value in load],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "target_studies_per_second": 5,
    }
    print(json.dumps(result, indent=1))
    path: Path = arguments.out
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
