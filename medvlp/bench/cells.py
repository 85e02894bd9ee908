"""One cell of a benchmark: run it, write its folder, read it back.

Guarantee: a cell's folder appears whole or not at all (it is renamed into place), and without its times is the same to
the bit whenever and however often it is run. Every number in it follows from its predictions.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.metrics.bootstrap import Resamples, interval
from medvlp.metrics.scoring import SCORINGS, Score

if TYPE_CHECKING:
    from medvlp.bench.plan import Cell
    from medvlp.config.suite import SuiteConfig
    from medvlp.tasks.base import Samples, Subject, Task
    from medvlp.types import Predictions

CELL, RESULT, RUN = "cell.json", "result.json", "run.json"
SETTING = ("task", "protocol", "fraction", "shots", "encoder")
PREDICTIONS, VALIDATION, BOOTSTRAP = "predictions.parquet", "validation.parquet", "bootstrap.npz"


def as_json(value: Any) -> str:
    """Return indented JSON; NaN and infinity become null."""
    return json.dumps(_finite(value), indent=1, ensure_ascii=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


@dataclass(frozen=True)
class Finished:
    """A cell that has been run, read from its folder."""

    folder: Path
    record: dict[str, Any]
    result: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Read `cell.json` and `result.json`."""
        record, result = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CELL, RESULT))
        return cls(folder, record, result)

    @property
    def setting(self) -> tuple[str, str, float, int, str]:
        """Task, protocol, fraction, shots, encoder."""
        task, protocol, fraction, shots, encoder = (self.record[key] for key in SETTING)
        return task, protocol, fraction, shots, encoder

    @cached_property
    def bootstrap(self) -> dict[str, np.ndarray]:
        """Metric -> its values `[r k+1]`: resamples by labels, then the macro mean."""
        with np.load(self.folder / BOOTSTRAP) as file:
            return {name: file[name] for name in file.files}

    @property
    def leading(self) -> str:
        """The metric that leads its tables and is compared between encoders: the first one."""
        return str(self.result["scores"][0]["metric"])

    @cached_property
    def predictions(self) -> Predictions:
        """Test predictions of a classification."""
        import pandas as pd

        from medvlp.types import Predictions

        return Predictions.from_frame(pd.read_parquet(self.folder / PREDICTIONS))


def run_cell(
    cell: Cell,
    *,
    task: Task,
    subject: Subject,
    train: Samples,
    val: Samples,
    test: Samples,
    suite: SuiteConfig,
    settings: dict[str, Any],
    facts: dict[str, Any],
    out: Path,
    scratch: Path,
) -> Finished:
    """Fit, predict, score, and write `out/cells/<hash>`.

    Args:
        cell: What is run.
        task: Its task.
        subject: Its encoder or baseline.
        train: Training samples, already cut to the cell's fraction or shots.
        val: Validation samples.
        test: Test samples.
        suite: Bootstrap settings.
        settings: Settings of protocol and intervals, of which `cell` has the hash.
        facts: Versions and git hash, recorded as they are.
        out: Folder of the results.
        scratch: Folder on the same disk.

    Returns:
        The cell; the one of another run if that was faster.
    """
    started = time.time()
    head = task.fit(subject, cell.protocol, train, val, cell.seed)
    validation, predictions = head.predict(val), head.predict(test)
    scoring = SCORINGS.get(task.scoring)()
    thresholds = scoring.thresholds(validation)
    resamples = Resamples.draw(predictions.patient_ids, suite.bootstrap_resamples, suite.bootstrap_seed)
    values = scoring.resampled(predictions, resamples, thresholds)
    record = cell.record()
    result = {key: value for key, value in record.items() if key != "hashes"} | {
        "n": len(test),
        "patients": resamples.patients,
        "train_n": len(train),
        "val_n": len(val),
        "hashes": record["hashes"],
        "config": {"task": task.config.resolved(), "settings": settings},
        "scores": with_intervals(
            scoring.scores(predictions, thresholds), [*predictions.label_names, "macro"], values, suite.alpha
        ),
        "thresholds": thresholds,
        "best_params": head.best_params,
        "resamples": suite.bootstrap_resamples,
        **facts,
    }
    archive = io.BytesIO()
    np.savez_compressed(archive, **values)  # type: ignore[arg-type]
    ended = time.time()
    run = {"started": round(started, 3), "seconds": round(ended - started, 3), "device": subject.device}
    target = out / "cells" / cell.hash
    write_folder(
        target,
        {
            CELL: _text(as_json(record)),
            RESULT: _text(as_json(result)),
            RUN: _text(as_json(run)),
            PREDICTIONS: lambda path: predictions.to_frame().to_parquet(path, index=False),
            VALIDATION: lambda path: validation.to_frame().to_parquet(path, index=False),
            BOOTSTRAP: lambda path: path.write_bytes(archive.getvalue()),
        },
        scratch,
    )
    return Finished.read(target)


def with_intervals(
    scores: list[Score], columns: list[str], values: dict[str, np.ndarray], alpha: float
) -> list[dict[str, Any]]:
    """Return every score with its interval, as in `result.json`; `columns` are those of `values`."""
    rows = []
    for score in scores:
        bounds = interval(values[score.metric][:, columns.index(score.label)], alpha)
        rows.append(
            {
                "metric": score.metric,
                "label": score.label,
                "value": score.value,
                "low": bounds.low if not math.isnan(score.value) else float("nan"),
                "high": bounds.high if not math.isnan(score.value) else float("nan"),
                "n": score.n,
                "positives": score.positives,
                "left_out": bounds.left_out,
                "chance": score.chance,
            }
        )
    return rows


def _text(content: str) -> Callable[[Path], Any]:
    return lambda path: path.write_text(content, encoding="utf-8")


def write_folder(target: Path, files: dict[str, Callable[[Path], Any]], scratch: Path) -> None:
    """Write a folder of files and rename it into place; a folder that is there already is kept."""
    temporary = scratch / target.name
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name, write in files.items():
            write(temporary / name)
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        temporary.rename(target)
    except OSError:
        if not (target / RESULT).exists():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
