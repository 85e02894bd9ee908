"""Size of the benchmark's report for 500 cells with images, and the time to write it, on one core.

    python benchmarks/speed/report_page.py [--out benchmarks/results/report_page.json] [--page report.html]

Cells are made: ten encoders; three classifications of 14, 6 and 1 labels by two protocols at 1, 10 and 100 % of the
labels, the parts with three draws; two segmentations by two protocols; grounding; report generation by two protocols;
retrieval. Predictions are those of 300 test samples. Heat maps, outlines, reports and examples have images.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from medvlp.bench.cells import as_json
from medvlp.bench.report import write_report
from medvlp.config.base import json_sha256
from medvlp.metrics.classification import METRICS, metric_value
from medvlp.tasks._regions import runs_of
from medvlp.tasks.grounding import HeatMaps
from medvlp.tasks.report_generation import SCORED_WORDS, Reports
from medvlp.tasks.segmentation import Outlines
from medvlp.types import Predictions

MUST_BE_MB = 5
SAMPLES, SIDE = 300, 256
ENCODERS = [f"method_{i}_vit_base" for i in range(8)] + ["random:vit_base", "metadata"]
FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax"),
)
CLASSIFICATIONS = {"nih_14": FINDINGS, "vindr_6": FINDINGS[:6], "rsna": ("Pneumonia",)}
IDS = [f"{i:08d}_000" for i in range(SAMPLES)]
PATIENTS = [f"{i // 2:05d}" for i in range(SAMPLES)]


def made_cells() -> Iterator[dict[str, Any]]:
    """Yield what decides each of the 500 cells."""
    parts = [(0.01, 0), (0.01, 1), (0.01, 2), (0.1, 0), (0.1, 1), (0.1, 2), (1.0, 0)]
    for encoder in ENCODERS:
        for task, protocol, (fraction, draw) in itertools.product(
            CLASSIFICATIONS, ("linear_probe", "fine_tune"), parts
        ):
            yield {"task": task, "protocol": protocol, "fraction": fraction, "draw": draw, "encoder": encoder}
        others = [("masks_a", "frozen"), ("masks_a", "fine_tune"), ("masks_b", "frozen"), ("masks_b", "fine_tune")]
        others += [("places", "zero_shot"), ("reports", "frozen"), ("reports", "fine_tune"), ("retrieval", "zero_shot")]
        for task, protocol in others:
            yield {"task": task, "protocol": protocol, "fraction": 1.0, "draw": 0, "encoder": encoder}


def made_tasks() -> dict[str, dict[str, Any]]:
    """Return the tasks as a suite records them."""
    kinds = {"masks_a": "segmentation", "masks_b": "segmentation", "places": "grounding"}
    kinds |= {"reports": "report_generation", "retrieval": "retrieval"} | dict.fromkeys(
        CLASSIFICATIONS, "classification"
    )
    labels = CLASSIFICATIONS | dict.fromkeys(("masks_a", "masks_b", "places"), FINDINGS[:4])
    return {
        name: {
            "name": name,
            "version": 1,
            "type": kind,
            "dataset": f"data_{name}",
            "labels": [{"name": label, "positive": label} for label in labels.get(name, ())],
        }
        for name, kind in kinds.items()
    }


def made_answers(kind: str, labels: tuple[str, ...], rng: np.random.Generator) -> Any:
    """Return the predictions of a kind of task; None for one whose predictions are not on the page."""
    if kind == "classification":
        truth = (np.random.default_rng(0).random((SAMPLES, len(labels))) < 0.3).astype(float)
        logits = 2 * (truth - 0.5) + rng.normal(size=truth.shape)
        return Predictions(IDS, PATIENTS, list(labels), truth, 1 / (1 + np.exp(-logits)))
    if kind == "report_generation":
        texts = [
            f"There is {'no ' if i % 3 else ''}pleural effusion. The heart is {'not ' if i % 2 else ''}enlarged. "
            f"No pneumothorax. Possible {FINDINGS[i % 14].lower()} in the left lower lobe."
            for i in range(40)
        ]
        return Reports(IDS[:40], PATIENTS[:40], list(rng.permutation(texts)), texts, SCORED_WORDS)
    if kind not in ("segmentation", "grounding"):
        return None
    rows = len(labels)
    reference = [runs_of(_blob(np.random.default_rng(k))) for k in range(rows)]
    own = [runs_of(_blob(rng)) for _ in range(rows)]
    if kind == "grounding":
        return HeatMaps(IDS[:rows], PATIENTS[:rows], labels, labels, rng.random((rows, 14, 14)), reference, SIDE)
    spacing = np.ones((rows, 2))
    return Outlines(IDS[:rows], PATIENTS[:rows], labels, labels, reference, own, SIDE, spacing, (2.0, 2.0))


def _blob(rng: np.random.Generator) -> np.ndarray:
    """Return an uneven region like a consolidation."""
    noise = cv2.GaussianBlur(rng.random((SIDE, SIDE)).astype(np.float32), (0, 0), 20)
    y, x = np.mgrid[:SIDE, :SIDE] - rng.uniform(90, 160, 2)[:, None, None]
    return (x**2 + y**2 < (50 + 900 * (noise - 0.5)) ** 2).astype(bool)


def made_scores(answers: Any, labels: tuple[str, ...], rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return rows of scores: computed for a classification, drawn for the others, with intervals of one width."""
    found = []
    for metric in METRICS if isinstance(answers, Predictions) else ("dice", "iou", "hd95_mm", "nsd_mm"):
        values = [
            metric_value(metric, answers.labels[:, k], answers.scores[:, k], 0.5)
            if isinstance(answers, Predictions)
            else float(rng.random())
            for k in range(len(labels))
        ]
        rows = [*zip(labels, values, strict=True), ("macro", float(np.mean(values)))]
        found += [
            {
                "metric": metric,
                "label": label,
                "value": value,
                "low": value - 0.031,
                "high": value + 0.029,
                "n": SAMPLES,
            }
            for label, value in rows
        ]
    return found


def write_cell(root: Path, about: dict[str, Any], task: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a cell's folder and return its scores."""
    labels = tuple(label["name"] for label in task["labels"]) or ("all",)
    rng = np.random.default_rng(list(json_sha256(about).encode()[:8]))
    answers = made_answers(task["type"], labels, rng)
    hashes = {name: json_sha256([name, about["task"]]) for name in ("store", "split", "encoder", "task", "config")}
    info = about | {"task_version": 1, "dataset": task["dataset"], "seed": 0, "shots": 0, "hashes": hashes}
    folder = root / "cells" / json_sha256(info)[:24]
    folder.mkdir(parents=True)
    scores = made_scores(answers, labels, rng)
    result = info | {"status": "ok", "n": SAMPLES, "patients": SAMPLES // 2, "train_n": 1000, "val_n": 100}
    result |= {"scores": scores, "thresholds": dict.fromkeys(labels, 0.5), "best_params": {"c": 0.1}}
    result |= {"config": {"task": task, "settings": {"protocol": about["protocol"], "code_version": 1}}}
    (folder / "cell.json").write_text(as_json(info))
    (folder / "result.json").write_text(as_json(result))
    (folder / "run.json").write_text(json.dumps({"started": 1795375800.0, "seconds": 12.5, "device": "cpu"}))
    if answers is not None:
        answers.to_frame().to_parquet(folder / "predictions.parquet")
    return scores


def write_pictures(root: Path, tasks: dict[str, dict[str, Any]]) -> None:
    """Write 24 example images, one for each place and outline, and six studies."""
    folder = root / "examples"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    for i in range(24):
        rng = np.random.default_rng(i)
        lungs = sum(np.exp(-(((x - c) ** 2) / 0.012 + (y - 0.5) ** 2 / 0.05)) for c in (0.3, 0.7))
        noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 1.2)
        picture = np.clip(170 - 110 * lungs + 25 * noise, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{IDS[i]}.png"), picture)
    files = {name: f"{name}.png" for name in IDS[:24]}
    index = [
        {"sample_id": name, "file": file, "dataset": "data_nih_14", "labels": {FINDINGS[i % 14]: 1.0, FINDINGS[0]: 0.0}}
        for i, (name, file) in enumerate(files.items())
    ]
    places = [
        {"task": task, "finding": label["name"], "sample_id": IDS[k], "file": files[IDS[k]]}
        for task in ("masks_a", "masks_b", "places")
        for k, label in enumerate(tasks[task]["labels"])
    ]
    studies = [{"task": "reports", "sample_id": name, "files": [files[name]]} for name in IDS[:6]]
    for name, content in (("index", index), ("places", places), ("studies", studies)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def write_results(root: Path) -> int:
    """Write a folder of results, and return the number of its cells."""
    tasks = made_tasks()
    cells = list(made_cells())
    aggregate: dict[str, list[dict[str, Any]]] = {}
    for about in cells:
        setting = {key: about[key] for key in ("task", "protocol", "fraction", "encoder")} | {
            "shots": 0,
            "status": "ok",
        }
        rows = write_cell(root, about, tasks[about["task"]])
        aggregate[json.dumps(setting)] = [setting | row for row in rows]
    entries = [
        {"task": task, "protocols": list(dict.fromkeys(c["protocol"] for c in cells if c["task"] == task)),
         "fractions": sorted({c["fraction"] for c in cells if c["task"] == task})} for task in tasks
    ]  # fmt: skip
    record = {
        "suite": {"name": "made", "version": 1, "bootstrap_resamples": 200, "bootstrap_seed": 0, "entries": entries},
        "tasks": tasks,
        "stores": {task["dataset"]: {"hash": json_sha256(["store", name])} for name, task in tasks.items()},
        "encoders": [{"name": name, "hash": json_sha256(name), "has_text": True} for name in ENCODERS[:-1]],
    }
    (root / "suite.json").write_text(json.dumps(record))
    (root / "aggregate.json").write_text(as_json([row for rows in aggregate.values() for row in rows]))
    write_pictures(root, tasks)
    return len(cells)


def main() -> None:
    """Write a page of made cells, and say how large it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="Write the figures there, too.")
    parser.add_argument("--page", type=Path, help="Keep the page there.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "results"
        cells = write_results(root)
        page = arguments.page or Path(folder) / "report.html"
        start = time.process_time()
        write_report(root, page)
        seconds = time.process_time() - start
        size = page.stat().st_size
    record = {
        "what": "the benchmark's report, one page with its images",
        "cells": cells,
        "megabytes": round(size / 1e6, 2),
        "must_be_at_most_megabytes": MUST_BE_MB,
        "cpu_seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }
    text = json.dumps(record, indent=1) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
