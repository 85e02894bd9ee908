"""Results of a benchmark as a table."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.cells import FAILED, OK, RESULT, RUN, Finished, status_of
from medvlp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def finished_cells(results: Path) -> list[Finished]:
    """Return all cells with numbers of a folder of results, ordered by hash; of broken ones it is told.

    Raises:
        UserError: There is no such folder.
    """
    for folder in _folders(results, None):
        logger.warning("%s cannot be read and is left out; run the suite again", folder)
    return [Finished.read(folder) for folder in _folders(results, OK)]


def failed_cells(results: Path) -> list[dict[str, Any]]:
    """Return `result.json` of all cells that failed, ordered by hash, each with its folder's name as `hash`.

    Raises:
        UserError: There is no such folder.
    """
    found = _folders(results, FAILED)
    return [json.loads((one / RESULT).read_text(encoding="utf-8")) | {"hash": one.name} for one in found]


def _folders(results: Path, status: str | None) -> list[Path]:
    if not (results / "cells").is_dir():
        raise UserError("There are no results.", results, "Run `medvlp bench run SUITE --out RESULTS` first.")
    folders = sorted(path.parent for path in (results / "cells").glob(f"*/{RESULT}"))
    return [one for one in folders if status_of(one) == status]


def load_results(results: Path | str) -> pd.DataFrame:
    """Return one row per cell and score.

    Columns: `cell` (its hash), `task`, `task_version`, `dataset`, `encoder`, `protocol`, `fraction`, `seed`, `draw`,
    `shots`, `metric`, `label`, `value`, `low`, `high`, `n`, `positives`, `left_out`, `train_n`, `seconds`, and one
    `hash:<name>` per hash. A score without a value is NaN.

    Raises:
        UserError: There is no such folder.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for cell in finished_cells(Path(results)):
        record = {key: value for key, value in cell.record.items() if key != "hashes"}
        hashes = {f"hash:{name}": value for name, value in cell.record["hashes"].items()}
        run = cell.folder / RUN
        seconds = json.loads(run.read_text(encoding="utf-8"))["seconds"] if run.exists() else None
        for score in cell.result["scores"]:
            facts = {"train_n": cell.result["train_n"], "seconds": seconds}
            rows.append({"cell": cell.folder.name, **record, **score, **facts, **hashes})
    frame = pd.DataFrame(rows)
    for column in frame.columns.intersection(["value", "low", "high", "seconds"]):
        frame[column] = frame[column].astype("float64")
    return frame
