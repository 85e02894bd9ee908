"""A tracker: the curve of one piece of work, always as JSON lines, and live in MLflow if wanted.

Guarantee: the MLflow run's id is kept in the folder, so that work which is resumed there continues the same run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medvlp.config.train import TrackConfig
from medvlp.track.jsonl import JsonLines
from medvlp.track.mlflow import MlflowRun

Status = Literal["FINISHED", "FAILED", "KILLED"]
RUN_ID_FILE = "mlflow_run_id"


class Tracker:
    """Where metrics go; made by `open_tracker`."""

    def __init__(self, lines: JsonLines, run: MlflowRun | None, system_metrics: bool) -> None:
        self._lines, self._run, self._system_metrics = lines, run, system_metrics

    @property
    def run_id(self) -> str | None:
        """Id of the MLflow run; None without MLflow or while its server cannot be reached."""
        return None if self._run is None else self._run.run_id

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Record metrics of a step; not-finite values become null in the file and are left out in MLflow."""
        self._lines.log(metrics, step)
        if self._run is not None:
            self._run.log(metrics | (system_metrics() if self._system_metrics else {}), step)
            self._keep_id()

    def artifact(self, path: Path) -> None:
        """Attach a file to the MLflow run."""
        if self._run is not None:
            self._run.artifact(path)

    def finish(self, status: Status) -> None:
        """Close the curve with the true status: FINISHED, FAILED, or KILLED after an interrupt."""
        self._lines.close()
        if self._run is not None:
            self._run.finish(status)
            self._keep_id()

    def _keep_id(self) -> None:
        path = self._lines.path.with_name(RUN_ID_FILE)
        if self.run_id is not None and (not path.exists() or path.read_text(encoding="utf-8") != self.run_id):
            path.write_text(self.run_id, encoding="utf-8")


def open_tracker(
    config: TrackConfig,
    folder: Path,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    run_id: str | None = None,
    parent_id: str | None = None,
    resume_step: int | None = None,
) -> Tracker:
    """Open the curve of work that lives in `folder`.

    Args:
        config: MLflow or not, its server and experiment.
        folder: Holds `metrics.jsonl` and the id of the MLflow run.
        name: Name of the MLflow run.
        params: The resolved configuration, nested as it is.
        tags: Hashes and versions.
        run_id: MLflow run to continue; default the one whose id is in the folder.
        parent_id: MLflow run that this one is part of.
        resume_step: Step at which the work continues: later lines of `metrics.jsonl` are removed. None keeps all.
    """
    kept = folder / RUN_ID_FILE
    if run_id is None and kept.exists():
        run_id = kept.read_text(encoding="utf-8").strip() or None
    lines = JsonLines(folder / "metrics.jsonl", resume_step)
    run = None
    if config.mlflow:
        run = MlflowRun(config, folder, name=name, params=params, tags=tags, run_id=run_id, parent_id=parent_id)
    tracker = Tracker(lines, run, config.system_metrics)
    tracker._keep_id()
    return tracker


def system_metrics() -> dict[str, float]:
    """Return the load of the machine under the names of MLflow's system-metrics page."""
    import psutil

    memory = psutil.virtual_memory()
    found = {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.percent,
        "system/process_memory_usage_megabytes": psutil.Process().memory_info().rss / 1e6,
    }
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info()
        found["system/gpu_0_memory_usage_megabytes"] = (total - free) / 1e6
        found["system/gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
    return found
