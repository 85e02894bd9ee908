"""Zero-shot AUROC of CT methods trained on the phantom: `python benchmarks/ct_zero_shot.py --store STORE --runs runs`.

STORE are 800 phantom CTs of 64 voxels a side, as `medvlp phantom write --layout phantom_ct --studies 800 --size 64` and
`medvlp data prepare phantom_ct` make them.

Guarantee: trains what `configs/pretrain/*-tiny.yaml` say and nothing else, on the CPU; finished runs are kept, with the
CPU time that they took. Scores are those of the test split by `phantom_ct_findings`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvlp.bench.runner import run_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.store.array_store import Store
from medvlp.track import run_record

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ct_zero_shot.json"
METHODS = ("ct_clip", "velvet_med")
SUITE = {
    "kind": "suite",
    "name": "ct_zero_shot",
    "version": 1,
    "baselines": [],
    "entries": [{"task": "phantom_ct_findings", "protocols": ["zero_shot"]}],
}
TARGET, MINUTES = 0.70, 60.0
"""Macro AUROC, and CPU minutes: half an hour of two cores."""


def train(name: str, store: Path, run: Path, changes: Sequence[str] = ()) -> float:
    """Pre-train by the small recipe, unless it is done; return the CPU minutes that it took."""
    spent = run / "cpu_minutes.json"
    if not spent.exists():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        file = ROOT / "configs" / "pretrain" / f"{name}-tiny.yaml"
        places = [f"data.store={store}", f"run.dir={run}", "train.device=cpu", "track.mlflow=false"]
        command = [sys.executable, "-m", "medvlp", "pretrain", str(file), *places, *changes]
        subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent.write_text(json.dumps(round(seconds / 60, 1)), encoding="utf-8")
    return float(json.loads(spent.read_text(encoding="utf-8")))


def scores(store: Path, runs: list[Path], out: Path) -> dict[str, dict[str, Any]]:
    """Return the macro AUROC of each run with its interval, and that of each finding."""
    suite, encoders = SuiteConfig.model_validate(SUITE), [str(run) for run in runs]
    run_suite(suite, stores=[store], encoders=encoders, out=out, track=TrackConfig(mlflow=False))
    found: dict[str, dict[str, Any]] = {run.name: {"findings": {}} for run in runs}
    for row in json.loads((out / "aggregate.json").read_text(encoding="utf-8")):
        if row["metric"] != "auroc" or row["encoder"] not in found:
            continue
        about = found[row["encoder"]]
        if row["label"] == "macro":
            about |= {key: round(row[key], 3) for key in ("value", "low", "high")} | {"test_images": row["n"]}
        else:
            about["findings"][row["label"]] = round(row["value"], 3)
    return found


def main() -> None:
    """Train, score, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs, one for each method")
    args = parser.parse_args()
    minutes = {name: train(name, args.store, args.runs / name) for name in METHODS}
    found = scores(args.store, [args.runs / name for name in METHODS], args.runs / "zero_shot")
    rows = [
        {
            "method": name,
            **found[name],
            "cpu_minutes": minutes[name],
            "meets": found[name]["value"] >= TARGET and minutes[name] <= MINUTES,
        }
        for name in METHODS
    ]
    target = {"auroc": TARGET, "cpu_minutes": MINUTES}
    record = {
        "target": target,
        "volumes": len(Store.open(args.store).images),
        "rows": rows,
        "versions": run_record()["versions"],
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
