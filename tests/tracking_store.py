"""An empty MLflow store in SQLite, made once per test session: making one takes seconds, copying one does not."""

from __future__ import annotations

import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@cache
def _template() -> Path:
    from mlflow import MlflowClient

    file = Path(tempfile.mkdtemp(prefix="medvlp-test-mlflow-")) / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def copy_to(folder: Path) -> Path:
    """Put an empty `mlflow.db` into a folder; return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(_template(), folder / "mlflow.db"))
