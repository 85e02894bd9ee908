"""Kept predictions of a cell, read back.

Guarantee: a file of another format, kind or cell is refused, and so is one that is missing or broken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.bench.cells import AGAIN, PREDICTIONS_FORMAT, STAMP, Finished
from medvlp.errors import UserError
from medvlp.tasks import TASKS

if TYPE_CHECKING:
    import pandas as pd


def task_type(cell: Finished) -> str:
    """Return the type of a cell's task."""
    return str(cell.result["config"]["task"]["type"])


def read_predictions(cell: Finished, name: str, *, unstamped: bool = False) -> pd.DataFrame:
    """Return kept predictions of a cell.

    Args:
        cell: The cell.
        name: `predictions.parquet` or `validation.parquet`.
        unstamped: Take a file that does not say what it is, too.

    Raises:
        UserError: The file is missing or broken, or of another version, kind or cell.
    """
    import pandas as pd

    path = cell.folder / name
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"The predictions cannot be read: {error}", path, AGAIN) from error
    stamp = frame.attrs.get(STAMP)
    if stamp is None and unstamped:
        return frame
    expected = {
        "format": PREDICTIONS_FORMAT,
        "kind": TASKS.get(task_type(cell)).scoring,
        "cell": cell.folder.name,
        "file": name,
    }
    if stamp is None:
        raise UserError("The predictions do not say which version they are.", path, AGAIN)
    wrong = [f"{key} {stamp.get(key)} instead of {value}" for key, value in expected.items() if stamp.get(key) != value]
    if wrong:
        raise UserError(f"The predictions are of another version: {'; '.join(wrong)}.", path, AGAIN)
    return frame
