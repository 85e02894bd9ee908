"""One cell of a benchmark: run it, write its folder, read it back.

Guarantee: a cell's folder appears whole or not at all (it is renamed into place), and without its times is the same to
the bit whenever and however often it is run. Every number in it follows from its predictions, which say of which cell,
kind and format they are. The folder of a cell that failed holds the reason in place of numbers, until it succeeds.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from medvlp.bench.finite import check_predictions
from medvlp.bench.heat import MAPS, heat_maps
from medvlp.bench.scored import JACKKNIFE, scored
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.bench.plan import Cell
    from medvlp.bench.reuse import KeptPredictions
    from medvlp.config.suite import SuiteConfig
    from medvlp.tasks.base import Samples, Subject, Task
    from medvlp.types import Predictions

CELL, RESULT, RUN = "cell.json", "result.json", "run.json"
SETTING = ("task", "protocol", "fraction", "shots", "encoder")
PREDICTIONS, VALIDATION, BOOTSTRAP = "predictions.parquet", "validation.parquet", "bootstrap.npz"
RESCORED = "rescored"
"""Folder of metrics that were computed later: `<metric>.json` with its scores, `<metric>.npz` with its resamples."""
OK, FAILED = "ok", "failed"
PREDICTIONS_FORMAT = 1
"""Rises with every change of what the columns of kept predictions mean; stands in each file."""
STAMP = "medvlp"
"""Where a file of predictions says what it is: key of the table's metadata."""
AGAIN = "Remove the cell's folder and run the suite again, or use the medvlp that wrote it."
"""What to do about a cell that cannot be read."""


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
    """A cell that has numbers, read from its folder."""

    folder: Path
    record: dict[str, Any]
    result: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Finished:
        """Read `cell.json`, `result.json`, and the scores of metrics that were computed later.

        Raises:
            UserError: One of them is missing or broken.
        """
        try:
            return cls(folder, json.loads((folder / CELL).read_text(encoding="utf-8")), read_result(folder))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"The cell cannot be read: {error!r}.", folder, AGAIN) from error

    @property
    def setting(self) -> tuple[str, str, float, int, str]:
        """Task, protocol, fraction, shots, encoder."""
        task, protocol, fraction, shots, encoder = (self.record[key] for key in SETTING)
        return task, protocol, fraction, shots, encoder

    @cached_property
    def bootstrap(self) -> dict[str, np.ndarray]:
        """Metric -> its values `[r k+1]`: resamples by labels, then the macro mean.

        Raises:
            UserError: A file of them is missing or broken.
        """
        found: dict[str, np.ndarray] = {}
        for path in (self.folder / BOOTSTRAP, *sorted((self.folder / RESCORED).glob("*.npz"))):
            try:
                with np.load(path) as file:
                    found |= {name: file[name] for name in file.files}
            except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
                raise UserError(f"The resamples cannot be read: {error}", path, AGAIN) from error
        return found

    @cached_property
    def jackknife(self) -> dict[str, np.ndarray]:
        """Metric -> its values `[g k+1]` without each patient, or group of patients, in turn."""
        own = [name for name in self.bootstrap if name.startswith(JACKKNIFE)]
        return {name.removeprefix(JACKKNIFE): self.bootstrap[name] for name in own}

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


def read_result(folder: Path) -> dict[str, Any]:
    """Return `result.json` of a cell, with the scores of metrics that were computed later in their place or behind."""
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    for path in sorted((folder / RESCORED).glob("*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))["scores"]
        own = [row["metric"] for row in result["scores"]]
        at = own.index(path.stem) if path.stem in own else len(own)
        others = [row for row in result["scores"] if row["metric"] != path.stem]
        result["scores"] = others[:at] + rows + others[at:]
    return result


def status_of(folder: Path) -> str | None:
    """Return the status of a cell's folder, `ok` or `failed`; None where there is no whole one."""
    try:
        record, result = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (CELL, RESULT))
    except (OSError, ValueError):
        return None
    whole = isinstance(record, dict) and isinstance(result, dict) and isinstance(result.get("scores"), list)
    return str(result.get("status", OK)) if whole else None


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
    kept: KeptPredictions,
    out: Path,
    scratch: Path,
) -> Finished:
    """Fit and predict, or take over kept predictions; score, and write `out/cells/<hash>`.

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
        kept: Predictions of cells with other statistics.
        out: Folder of the results.
        scratch: Folder on the same disk.

    Returns:
        The cell; the one of another run if that was faster.
    """
    started = time.time()
    scoring = SCORINGS.get(task.rule)()
    donor, head = kept.of(cell, settings), None
    if donor is None:
        head = task.fit(subject, cell.protocol, train, val, cell.seed)
        validation, predictions, chosen = head.predict(val), head.predict(test), head.best_params
        frames = {VALIDATION: validation.to_frame(), PREDICTIONS: predictions.to_frame()}
    else:
        chosen, frames = donor[0].result["best_params"], donor[1]
        validation, predictions = (scoring.read(frames[name]) for name in (VALIDATION, PREDICTIONS))
    for name, frame in frames.items():
        check_predictions(frame, f"{cell.encoder}, {cell.task}, {cell.protocol}")
        frame.attrs[STAMP] = {"format": PREDICTIONS_FORMAT, "kind": task.scoring, "cell": cell.hash, "file": name}
    thresholds = scoring.thresholds(validation)
    found = scored(scoring, predictions, thresholds, cell.dataset, suite)
    record = cell.record()
    result = {key: value for key, value in record.items() if key != "hashes"} | {
        "status": OK,
        "scoring": task.rule,
        "n": len(test),
        "patients": found.patients,
        "train_n": len(train),
        "val_n": len(val),
        "hashes": record["hashes"],
        "config": {"task": task.config.resolved(), "settings": settings},
        "scores": found.rows,
        "thresholds": thresholds,
        "best_params": chosen,
        "resamples": suite.bootstrap_resamples,
        **facts,
    }
    maps = _maps_of_donor(donor[0]) if head is None and donor else None
    if head is not None:
        maps = heat_maps(cell, head, test, predictions, thresholds)
    archive = io.BytesIO()
    np.savez_compressed(archive, **found.arrays)  # type: ignore[arg-type]
    ended = time.time()
    run = {"started": round(started, 3), "seconds": round(ended - started, 3), "device": subject.device}
    if donor is not None:
        run["predictions_of"] = donor[0].folder.name
    target = out / "cells" / cell.hash
    write_folder(
        target,
        {
            CELL: as_text(record),
            RESULT: as_text(result),
            RUN: as_text(run),
            PREDICTIONS: lambda path: frames[PREDICTIONS].to_parquet(path, index=False),
            VALIDATION: lambda path: frames[VALIDATION].to_parquet(path, index=False),
            BOOTSTRAP: lambda path: path.write_bytes(archive.getvalue()),
        }
        | ({} if maps is None else {MAPS: lambda path: maps.to_parquet(path, index=False)}),
        scratch,
    )
    return Finished.read(target)


def _maps_of_donor(donor: Finished) -> pd.DataFrame | None:
    """Return the heat maps beside predictions that are taken over."""
    import pandas as pd

    path = donor.folder / MAPS
    return pd.read_parquet(path) if path.is_file() else None


def as_text(record: Any) -> Callable[[Path], Any]:
    """Return what writes a record to a file as JSON."""
    return lambda path: path.write_text(as_json(record), encoding="utf-8")


def write_folder(target: Path, files: dict[str, Callable[[Path], Any]], scratch: Path) -> None:
    """Write a folder of files and rename it into place; one with numbers that is there already is kept.

    A folder that holds a failure, or that cannot be read, is replaced.
    """
    temporary, old = scratch / target.name, scratch / f"{target.name}.old"
    for folder in (temporary, old):
        shutil.rmtree(folder, ignore_errors=True)
    temporary.mkdir(parents=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        for name, write in files.items():
            write(temporary / name)
            with (temporary / name).open("rb") as file:
                os.fsync(file.fileno())
        if target.exists() and status_of(target) != OK:
            with contextlib.suppress(FileNotFoundError):  # another run has just taken it away
                target.rename(old)
        temporary.rename(target)
    except OSError:
        if status_of(target) is None:
            raise
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
