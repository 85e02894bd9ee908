"""New metrics from kept predictions, without a new run.

Guarantee: a score that is computed later is what a run would have given: from the same predictions, thresholds and
resamples. Predictions of another format, kind or cell are refused, and so are cells whose intervals follow another
rule. Nothing that a cell has is overwritten: a metric is a file of its own beside it, whole or absent.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medvlp.bench import stats
from medvlp.bench.cells import PREDICTIONS, RESCORED, VALIDATION, Finished, as_json
from medvlp.bench.kept import read_predictions, task_type
from medvlp.bench.locks import Locks
from medvlp.bench.results import finished_cells
from medvlp.bench.scored import JACKKNIFE, scored
from medvlp.bench.work import LOCKS, own_scratch, remove_scratch
from medvlp.config.suite import SuiteConfig
from medvlp.errors import UserError, nearest
from medvlp.metrics.clinical.models import MODEL_METRICS, ModelScoring
from medvlp.metrics.intervals import RULE
from medvlp.metrics.scoring import SCORINGS, Scoring
from medvlp.progress import progress_bar
from medvlp.store.files import write_atomic
from medvlp.tasks import TASKS
from medvlp.track import run_record

GENERATED = "report_generation"
"""Scoring rule of the cells that the metrics of published models judge."""


@dataclass
class Rescored:
    """What was done. `others` counts cells by why they do not have the metric."""

    done: int = 0
    kept: int = 0
    others: Counter[str] = field(default_factory=Counter)


def rescore(results: Path, metric: str, weights: Path | None = None, device: str = "cpu") -> Rescored:
    """Compute a metric for all cells whose kind of task has it, and sum the results up again.

    Args:
        results: Folder of results.
        metric: Name of a metric of a scoring rule, or of `MODEL_METRICS`.
        weights: Folder of the published model that a metric of `MODEL_METRICS` needs.
        device: Torch device of that model.

    Raises:
        UserError: No kind of task here has such a metric, a cell's predictions are of another version, or weights are
            missing, of another model, or given to a metric that needs none.
    """
    results = Path(results)
    cells = finished_cells(results)
    if (weights is None) == (metric in MODEL_METRICS):
        lack = f"{metric} needs the weights of a published model." if weights is None else f"{metric} needs no weights."
        fix = "Give their folder with --weights." if weights is None else "Leave --weights out."
        raise UserError(lack, "--weights", f"{fix} Metrics with weights: {', '.join(MODEL_METRICS)}.")
    judge = None if weights is None else ModelScoring(metric, weights, device)
    rules = {cell.folder.name: _scoring(cell, judge) for cell in cells}
    known = list(dict.fromkeys(name for rule in rules.values() for name in rule.metrics))
    if metric not in known:
        raise UserError(
            f"No task of these results has a metric '{metric}'.{nearest(metric, known)}",
            results,
            f"There are: {', '.join(known) or 'none'}.",
        )
    wanted = [cell for cell in cells if metric in rules[cell.folder.name].metrics]
    for cell in wanted:  # all are looked at before any is changed
        _check(cell, rules[cell.folder.name])
    found = Rescored()
    found.others.update(f"{task_type(cell)} has no {metric}" for cell in cells if cell not in wanted)
    locks = Locks(results / LOCKS)
    scratch = own_scratch(results, locks)
    try:
        with progress_bar(f"{metric} of kept predictions", len(wanted), "cells") as advance:
            for cell in wanted:
                if _one(cell, rules[cell.folder.name], metric, scratch):
                    found.done += 1
                else:
                    found.kept += 1
                advance(1)
        _sum_up_again(results, scratch)
    finally:
        remove_scratch(results, scratch, locks)
        locks.close()
    return found


def _rule(cell: Finished) -> str:
    """Return the scoring rule of a cell; one that older versions wrote has that of its kind of task."""
    return str(cell.result.get("scoring") or TASKS.get(task_type(cell)).scoring)


def _scoring(cell: Finished, judge: ModelScoring | None) -> Scoring[Any]:
    rule = _rule(cell)
    return judge if judge is not None and rule == GENERATED else SCORINGS.get(rule)()


def _check(cell: Finished, rule: Scoring[Any]) -> None:
    for name in (PREDICTIONS, VALIDATION):
        read_predictions(cell, name)
    bootstrap = cell.result["config"]["settings"]["bootstrap"]
    if bootstrap.get("rule") != RULE:
        raise UserError(
            f"The intervals of the cell follow another rule ({bootstrap.get('rule')}) than those of this medvlp "
            f"({RULE}): side by side they would not compare.",
            cell.folder,
            "Run the suite again with this version of medvlp; its cells get new hashes.",
        )


def _one(cell: Finished, rule: Scoring[Any], metric: str, scratch: Path) -> bool:
    """Compute a metric of one cell and keep it; return whether anything is new."""
    validation, predictions = (rule.read(read_predictions(cell, name)) for name in (VALIDATION, PREDICTIONS))
    found = scored(rule, predictions, rule.thresholds(validation), cell.record["dataset"], _suite_of(cell))
    rows = [row for row in found.rows if row["metric"] == metric]
    old = [row for row in cell.result["scores"] if row["metric"] == metric]
    if json.loads(as_json(rows)) == old:
        return False
    arrays = {name: values for name, values in found.arrays.items() if name in (metric, JACKKNIFE + metric)}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(cell.folder / RESCORED / f"{metric}.npz", buffer.getvalue(), scratch)
    facts = {key: value for key, value in run_record().items() if key in ("versions", "git")}
    record = {"metric": metric, "scores": rows, **facts}
    write_atomic(cell.folder / RESCORED / f"{metric}.json", as_json(record).encode(), scratch)
    return True


def _suite_of(cell: Finished) -> SuiteConfig:
    """Return the bootstrap settings that the cell was scored with."""
    settings = cell.result["config"]["settings"]["bootstrap"]
    given = {"bootstrap_resamples": "resamples", "bootstrap_seed": "seed", "alpha": "alpha"}
    entry = {"task": cell.record["task"], "protocols": ["zero_shot"]}
    values = {ours: settings[theirs] for ours, theirs in given.items()}
    return SuiteConfig.model_validate({"name": "rescore", "version": 1, "entries": [entry], **values})


def _sum_up_again(results: Path, scratch: Path) -> None:
    """Write `aggregate.json` anew for the cells that it names; the settings without a value stay as they are."""
    path = results / "aggregate.json"
    try:
        before: Sequence[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    named = {cell for row in before for cell in row.get("cells", ())}
    leaks = {tuple(row["cells"]): row.get("leaks", []) for row in before if row.get("cells")}
    cells = [cell for cell in finished_cells(results) if cell.folder.name in named]
    alpha = cells[0].result["config"]["settings"]["bootstrap"]["alpha"] if cells else 0.05
    rows = stats.aggregate(cells, alpha)
    for row in rows:
        row["leaks"] = leaks.get(tuple(row["cells"]), [])
    rows += [row for row in before if not row.get("cells")]
    write_atomic(path, as_json(rows).encode(), scratch)
