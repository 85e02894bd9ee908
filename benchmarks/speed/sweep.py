"""Time of a sweep of linear probes against its cells run one by one, each into results of its own.

    python benchmarks/speed/sweep.py --store phantom-store [--encoder RUN ...] [--out benchmarks/results/sweep.json]

Ten encoders, three label fractions, three seeds, five draws. Run alone, a cell computes its features itself; a few
cells, spread over the sweep, are run and extrapolated, and must give the same scores. Without `--encoder` they are
untrained ones, which every seed makes anew: then a third as many cells share their features. A linear probe on an
encoder with weights of its own is the same for every seed, and run once: `asked` counts it for each.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from medvlp.bench.results import finished_cells
from medvlp.bench.runner import Selection, run_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.store.array_store import Store

ENCODERS = tuple(f"random:{name}@{side}" for name in ("resnet10t", "resnet18") for side in (64, 80, 96, 112, 128))
FRACTIONS, SEEDS, DRAWS = (0.01, 0.1, 1.0), (0, 1, 2), 5


def suite_of(task: str) -> SuiteConfig:
    """Return the sweep as a suite."""
    entry = {"task": task, "protocols": ["linear_probe"], "fractions": FRACTIONS, "seeds": SEEDS, "draws": DRAWS}
    return SuiteConfig.model_validate({"name": "sweep", "version": 1, "entries": [entry], "baselines": []})


def seconds_of(suite: SuiteConfig, store: Path, out: Path, encoders: list[str], only: Selection, device: str) -> float:
    """Run a part of the suite and return the seconds it takes."""
    started = time.perf_counter()
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "audit": False, "device": device}
    summary = run_suite(suite, stores=[store], encoders=encoders, out=out, only=only, **options)
    if summary.failed:
        raise SystemExit(f"{summary.failed} cells failed, see {out / 'failures.jsonl'}")
    return time.perf_counter() - started


def main() -> None:
    """Measure, check, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--task", default="phantom_findings")
    parser.add_argument("--encoder", nargs="*", default=list(ENCODERS), help="runs, or other encoders of `bench run`")
    parser.add_argument("--alone", type=int, default=10, help="cells that are run alone")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "sweep.json")
    given = parser.parse_args()
    suite = suite_of(given.task)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sweep = seconds_of(suite, given.store, folder / "sweep", given.encoder, Selection(), given.device)
        cells = finished_cells(folder / "sweep")
        spec_of = {name: spec for spec in given.encoder for name in (spec, Path(spec).name)}
        alone = []
        for number, cell in enumerate(cells[:: len(cells) // given.alone][: given.alone]):
            about, own = cell.record, folder / str(number)
            only = Selection(fractions=[about["fraction"]], seeds=[about["seed"]], draws=[about["draw"]])
            alone.append(seconds_of(suite, given.store, own, [spec_of[about["encoder"]]], only, given.device))
            (found,) = finished_cells(own)
            if found.result["scores"] != cell.result["scores"]:
                raise SystemExit(f"cell {cell.folder.name} has other scores alone")
    one_by_one = sum(alone) / len(alone) * len(cells)
    asked = len(given.encoder) * len(SEEDS) * sum(DRAWS if fraction < 1 else 1 for fraction in FRACTIONS)
    result = {
        "what": "sweep of linear probes, against its cells run alone",
        "task": given.task,
        "images": len(Store.open(given.store)),
        "encoders": len(given.encoder),
        "cells": len(cells),
        "device": given.device,
        "seconds": round(sweep, 1),
        "alone_seconds_extrapolated": round(one_by_one, 1),
        "alone_cells_run": len(alone),
        "ratio": round(one_by_one / sweep, 1),
        "asked": asked,
        "ratio_of_asked": round(one_by_one / len(cells) * asked / sweep, 1),
        "must_be_at_least": 10,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    print(json.dumps(result, indent=1))
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
