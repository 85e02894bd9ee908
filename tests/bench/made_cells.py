"""Writes a results folder with cells of made encoders whose true order is known, scored as the runner scores them."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.bench import stats
from medvlp.bench.cells import (
    BOOTSTRAP,
    CELL,
    OK,
    PREDICTIONS,
    PREDICTIONS_FORMAT,
    RESULT,
    RUN,
    STAMP,
    VALIDATION,
    as_json,
    as_text,
    write_folder,
)
from medvlp.bench.comparisons import Rules, compare
from medvlp.bench.plan import Cell
from medvlp.bench.ranks import rank_table
from medvlp.bench.results import finished_cells
from medvlp.bench.scored import scored
from medvlp.config.suite import SuiteConfig
from medvlp.metrics.classification import ClassificationScoring
from medvlp.metrics.intervals import RULE
from medvlp.types import Predictions

LABELS = ("Effusion", "Pneumonia")
SCORING = ClassificationScoring()


def suite(**changes: Any) -> SuiteConfig:
    entries = [{"task": "chest", "protocols": ["linear_probe"]}]
    settings = {"bootstrap_resamples": 200, "permutations": 300}
    return SuiteConfig.model_validate({"name": "made", "version": 1, "entries": entries, **settings, **changes})


def predictions(
    strength: float, own: int, patients: int = 80, dataset: str = "nih", labels: Sequence[str] = LABELS
) -> Predictions:
    """Answers of one cell: truth and half of the noise belong to the data set, the rest to the cell."""
    data = np.random.default_rng([len(dataset), sum(map(ord, dataset))])
    owner = np.sort(data.integers(0, patients, 2 * patients))
    truth = (data.random((len(owner), len(labels))) < 0.4).astype(float)
    truth[data.random(truth.shape) < 0.05] = np.nan
    shared = data.standard_normal(truth.shape)
    noise = np.random.default_rng([own, len(dataset)]).standard_normal(truth.shape)
    scores = 1 / (1 + np.exp(-(strength * (np.nan_to_num(truth) - 0.5) + 0.7 * shared + 0.7 * noise)))
    ids = [f"{dataset}-{i:04d}" for i in range(len(owner))]
    return Predictions(ids, [f"p{i:04d}" for i in owner], list(labels), truth, scores)


def write_cell(
    root: Path,
    encoder: str,
    test: Predictions,
    *,
    task: str = "chest",
    dataset: str = "nih",
    protocol: str = "linear_probe",
    fraction: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    config: SuiteConfig | None = None,
) -> None:
    config = config or suite()
    hashes = {"store": "s" * 8, "split": f"{fraction}-{draw}", "encoder": encoder, "task": task, "config": "c" * 8}
    cell = Cell(task, 1, dataset, encoder, protocol, fraction, seed, draw, 0, hashes)
    validation = predictions(1.0, 1000 + seed, 40, dataset, test.label_names)
    thresholds = SCORING.thresholds(validation)
    found = scored(SCORING, test, thresholds, dataset, config)
    frames = {VALIDATION: validation.to_frame(), PREDICTIONS: test.to_frame()}
    for name, frame in frames.items():
        frame.attrs[STAMP] = {
            "format": PREDICTIONS_FORMAT,
            "kind": "classification",
            "cell": cell.hash,
            "file": name,
        }
    settings = {"bootstrap": {"resamples": config.bootstrap_resamples, "seed": 0, "alpha": 0.05, "rule": RULE}}
    result = cell.record() | {
        "status": OK,
        "n": len(test.sample_ids),
        "patients": found.patients,
        "train_n": 10,
        "val_n": 10,
        "config": {"task": {"type": "classification", "name": task}, "settings": settings},
        "scores": found.rows,
        "thresholds": thresholds,
        "best_params": {},
    }
    archive = io.BytesIO()
    np.savez_compressed(archive, **found.arrays)
    write_folder(
        root / "cells" / cell.hash,
        {
            CELL: as_text(cell.record()),
            RESULT: as_text(result),
            RUN: as_text({"started": 1795375800.0, "seconds": 1.0}),
            PREDICTIONS: lambda path: frames[PREDICTIONS].to_parquet(path, index=False),
            VALIDATION: lambda path: frames[VALIDATION].to_parquet(path, index=False),
            BOOTSTRAP: lambda path: path.write_bytes(archive.getvalue()),
        },
        root / ".tmp",
    )


def write_results(
    root: Path,
    strengths: Mapping[str, float],
    *,
    datasets: Sequence[str] = ("nih",),
    draws: int = 1,
    seeds: int = 1,
    config: SuiteConfig | None = None,
) -> Path:
    """Write cells at all labels, and at a tenth of them where there are draws, and sum them up."""
    config = config or suite()
    for (place, name), dataset in itertools.product(enumerate(strengths), datasets):
        task = f"chest_{dataset}"
        for seed in range(seeds):
            own = predictions(strengths[name], 100 * place + seed, dataset=dataset)
            write_cell(root, name, own, task=task, dataset=dataset, seed=seed, config=config)
        for draw, seed in itertools.product(range(draws) if draws > 1 else [], range(seeds)):
            jitter = np.random.default_rng([place, draw]).normal(0, 0.3)
            own = predictions(strengths[name] - 0.5 + jitter, 100 * place + 10 * draw + seed, dataset=dataset)
            where = {"task": task, "dataset": dataset, "fraction": 0.1, "seed": seed, "draw": draw}
            write_cell(root, name, own, config=config, **where)
    tasks = {f"chest_{name}": {"name": f"chest_{name}", "version": 1, "dataset": name} for name in datasets}
    entries = [
        {"task": name, "protocols": ["linear_probe"], "fractions": [0.1, 1.0] if draws > 1 else [1.0]} for name in tasks
    ]
    record = {
        "suite": config.resolved() | {"entries": entries},
        "tasks": tasks,
        "stores": {name: {"hash": "s" * 8} for name in datasets},
        "encoders": [{"name": name} for name in strengths],
    }
    (root / "suite.json").write_text(json.dumps(record))
    sum_up(root, list(strengths), config)
    return root


def sum_up(root: Path, order: Sequence[str], config: SuiteConfig) -> None:
    cells = finished_cells(root)
    rules = Rules.of(config)
    written = {
        "aggregate.json": stats.aggregate(cells, config.alpha),
        "comparisons.json": compare(cells, order, rules),
        "ranks.json": rank_table(cells, order, rules),
    }
    for name, content in written.items():
        (root / name).write_text(as_json(content))
