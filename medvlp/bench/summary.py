"""What a run leaves beside its cells: aggregate, comparisons, examples, failures, and the table for the terminal.

Guarantee: all of it is made from the cells in the folder that belong to the suite as it is now, those of earlier runs
included; nothing planned is left out silently: it has a row with its reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvlp.bench import stats
from medvlp.bench.analysis import calibration_rows, subgroup_rows
from medvlp.bench.cells import as_json
from medvlp.bench.comparisons import Rules, compare
from medvlp.bench.examples import write_examples, write_places, write_studies
from medvlp.bench.plan import Judged, left_out
from medvlp.bench.ranks import rank_table
from medvlp.bench.report_data import read_lines
from medvlp.bench.report_scores import LOWER_IS_BETTER
from medvlp.bench.results import failed_cells, finished_cells
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.volume_examples import write_volumes
from medvlp.config.base import json_sha256
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.files import write_atomic
from medvlp.tasks._study_images import StudyImages
from medvlp.tasks.base import Samples

COLUMNS = ("task", "protocol", "labels", "encoder", "metric", "value", "interval", "n", "cells")
FAILURES = "failures.jsonl"
ABOUT = ("task", "task_version", "dataset", "encoder", "protocol", "fraction", "seed", "draw", "shots")
"""What tells a cell from the others of its suite, as in `cell.json`."""


def sum_up(
    out: Path,
    scratch: Path,
    schedule: Schedule,
    plan: Sequence[Planned],
    judged: Sequence[Judged],
    encoders: Sequence[dict[str, Any]],
    failures: Sequence[dict[str, Any]],
    leaks: Mapping[str, Sequence[str]],
) -> list[tuple[Any, ...]]:
    """Write the files and return the rows of the terminal's table, under `COLUMNS`.

    Args:
        out: Folder of the results.
        scratch: Folder on the same disk.
        schedule: Tasks and samples.
        plan: All cells of the suite for the encoders of this run.
        judged: What this run judges.
        encoders: Encoders of `suite.json`, those of earlier runs included; their order decides `a` and `b` of a pair.
        failures: Failures of this run.
        leaks: Hash of a cell -> sentences about the leaks that touch it.
    """
    suite = schedule.suite
    found = finished_cells(out) if (out / "cells").is_dir() else []
    cells = [cell for cell in found if schedule.is_current(cell.record["hashes"])]
    rows = stats.aggregate(cells, suite.config.alpha)
    for row in rows:
        row["leaks"] = list(dict.fromkeys(text for cell in row["cells"] for text in leaks.get(cell, ())))
    missing = schedule.suite.missing
    planned = [(one.setting, one.about["task_version"], _reason(one, failures, missing)) for one in plan]
    versions = {task.name: task.version for task in suite.tasks.values()}
    planned += [
        ((task, protocol, amount.fraction, amount.shots, encoder), versions[task], f"not applicable: {why}")
        for task, protocol, amount, encoder, why in left_out(suite.config, schedule.tasks, judged)
    ]
    leading = {task.config.name: SCORINGS.get(task.rule).metrics[0] for task in schedule.tasks.values()}
    rows += stats.missing_rows(planned, {cell.setting for cell in cells}, leading)
    write_atomic(out / "aggregate.json", as_json(rows).encode(), scratch)
    order = list(dict.fromkeys([entry["name"] for entry in encoders] + [one.name for one in judged]))
    rules = Rules.of(suite.config)
    beside = {
        "comparisons.json": compare(cells, order, rules),
        "ranks.json": rank_table(cells, order, rules),
        "subgroups.json": subgroup_rows(cells, dict(suite.stores), suite.config),
        "calibration.json": calibration_rows(cells, suite.config),
    }
    for name, content in beside.items():
        write_atomic(out / name, as_json(content).encode(), scratch)
    _write_examples(out, scratch, schedule)
    _write_failures(out, scratch, failures, {cell.folder.name for cell in found}, schedule)
    return _table(rows, order, leading)


def append_failure(out: Path, failure: dict[str, Any]) -> None:
    """Write a failure down at once, so that a kill does not lose it."""
    with (out / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(failure, ensure_ascii=False) + "\n")


def _write_failures(
    out: Path, scratch: Path, failures: Sequence[dict[str, Any]], finished: set[str], schedule: Schedule
) -> None:
    """Write the failures of now, and those of other runs that are neither mended nor tried again."""
    path = out / FAILURES
    records = list(failures)
    for cell in failed_cells(out) if (out / "cells").is_dir() else []:
        if schedule.is_current(cell["hashes"]):
            about = {key: cell[key] for key in ABOUT}
            records.append({"cell": about, **cell["failure"], "hash": cell["hash"]})
    records += read_lines(path)
    kept: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.get("hash") not in finished:
            kept.setdefault(json_sha256([record.get("cell"), record.get("encoder")]), record)
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept.values())
    write_atomic(path, text.encode(), scratch)


def _write_examples(out: Path, scratch: Path, schedule: Schedule) -> None:
    tests: dict[str, dict[str, list[Samples]]] = {}
    places, studies = [], []
    for key, task in schedule.tasks.items():
        try:
            samples = schedule.samples(key)["test"]
        except UserError:
            continue
        tests.setdefault(task.scoring, {}).setdefault(task.config.dataset, []).append(samples)
        if task.scoring in ("grounding", "segmentation"):
            places.append((task.config.name, schedule.suite.store_of(task.config), samples))
        store = schedule.suite.store_of(task.config)
        if task.scoring == "report_generation" and store.kind in ("image", "volume"):
            most = task.config.reports.max_images
            studies.append((task.config.name, store, samples, StudyImages(store, task.config.views, most)))
    stores = schedule.suite.stores
    asked = tests.get("classification", {})
    images = [(stores[name], asked[name]) for name in stores if name in asked and stores[name].kind == "image"]
    shown = asked | tests.get("volume_segmentation", {})
    volumes = [(stores[name], shown[name]) for name in stores if name in shown and stores[name].kind == "volume"]
    write_examples(images, out / "examples", scratch)
    write_volumes(volumes, out / "examples", scratch)
    write_places(places, out / "examples", scratch)
    write_studies(studies, out / "examples", scratch)


def _reason(planned: Planned, failures: Sequence[dict[str, Any]], missing_stores: Sequence[str]) -> str:
    if planned.about["dataset"] in missing_stores:
        return f"no store of {planned.about['dataset']}"
    keys = ("task", "protocol", "fraction", "shots", "encoder")
    for failure in failures:
        about = failure.get("cell", {})
        if all(about.get(key) == planned.about[key] for key in keys):
            return f"failed: {failure['reason']}"
    return "not run"


def _table(rows: Sequence[dict[str, Any]], order: Sequence[str], leading: Mapping[str, str]) -> list[tuple[Any, ...]]:
    """Return the macro mean of the leading metric of every setting, the best encoder of a setting first."""
    rank = {name: i for i, name in enumerate(order)}

    def has_value(row: dict[str, Any]) -> bool:
        return row["value"] is not None and not math.isnan(row["value"])

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        sign = 1 if row["metric"] in LOWER_IS_BETTER else -1
        value = sign * row["value"] if has_value(row) else math.inf
        return row["task"], row["protocol"], row["fraction"], row["shots"], value, rank.get(row["encoder"], 0)

    shown = []
    chosen = [row for row in rows if row["metric"] == leading[row["task"]] and row["label"] == "macro"]
    for row in sorted(chosen, key=key):
        labels = f"{row['shots']} per class" if row["shots"] else f"{100 * row['fraction']:g} %"
        shown.append(
            (
                row["task"],
                row["protocol"],
                "none" if row["protocol"] == "zero_shot" else labels,
                row["encoder"],
                row["metric"],
                row["value"] if has_value(row) else row["status"],
                f"{row['low']:.3f} to {row['high']:.3f}" if has_value(row) else "",
                row["n"] if has_value(row) else "",
                len(row.get("cells", ())),
            )
        )
    return shown
