"""Time of `medvlp --help`, the median of several runs, beside an empty Python process."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

OUT = Path(__file__).parents[1] / "results" / "help.json"


def median_seconds(command: list[str], runs: int) -> float:
    """Return the median wall time of a command in seconds."""
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    result = {
        "what": "seconds, median",
        "medvlp_help": round(median_seconds([sys.executable, "-m", "medvlp", "--help"], arguments.runs), 3),
        "empty_python": round(median_seconds([sys.executable, "-c", ""], arguments.runs), 3),
        "must_be_at_most_seconds": 0.5,
        "python": platform.python_version(),
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
