"""Whether VoCo learns where crops lie: `python benchmarks/context_position.py --store STORE --runs RUNS`.

STORE are phantom CTs, as those of `benchmarks/ct_zero_shot.py`. Trains what `configs/pretrain/voco-tiny.yaml` says, and
for comparison one step of it. The accuracy is the share of random crops of validation volumes whose most similar base
crop is one of those that cover most of it; chance is 1 over the number of base crops.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ct_zero_shot import ROOT, train
from scipy.stats import binomtest

from medvlp.config.load import load_config
from medvlp.config.train import PretrainConfig
from medvlp.data.studies import split_of_images
from medvlp.methods.base import complete
from medvlp.store.array_store import Store
from medvlp.track import run_record

RESULT = ROOT / "benchmarks" / "results" / "context_position.json"
RECIPE = ROOT / "configs" / "pretrain" / "voco-tiny.yaml"


def accuracy(run: Path, crops: int) -> dict[str, Any]:
    """Return the last accuracy on the crops of validation volumes, with Wilson's 95 % interval."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    row = [row for row in map(json.loads, lines) if "val/position_accuracy" in row][-1]
    value = row["val/position_accuracy"]
    interval = binomtest(round(value * crops), crops).proportion_ci(method="wilson")
    figures = {"accuracy": value, "low": interval.low, "high": interval.high}
    return {"steps": row["step"]} | {name: round(float(figure), 3) for name, figure in figures.items()}


def main() -> None:
    """Train, read the accuracies, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the two runs")
    args = parser.parse_args()
    one_step = ("train.steps=1", "train.validate_every=1")
    minutes = train("voco", args.store, args.runs / "voco")
    train("voco", args.store, args.runs / "voco_one_step", one_step)
    config = load_config(RECIPE, [f"data.store={args.store}", f"run.dir={args.runs}"], PretrainConfig)
    options, store = complete(config.method).options, Store.open(args.store)
    rows, columns = options["grid"]
    crops = options["crops"] * int((split_of_images(store) == "val").sum())
    runs = {"trained": "voco", "one_step": "voco_one_step"}
    found = {name: accuracy(args.runs / run, crops) for name, run in runs.items()}
    record = {
        "volumes": len(store.images),
        "crops": crops,
        "chance": 1 / (rows * columns),
        **found,
        "above_chance": bool(found["trained"]["low"] > 1 / (rows * columns)),
        "cpu_minutes": minutes,
        "versions": run_record()["versions"],
    }
    RESULT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
