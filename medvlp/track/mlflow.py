"""The curve in MLflow, live.

Guarantee: nothing that happens to the tracking server stops or delays the work for long: a failure is reported once,
what could not be sent is kept and tried again at most once a minute and at the end. Telemetry of MLflow is switched off
before it is imported. Parameters hold no folders: of a path only its last part is sent.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from medvlp.config.train import TrackConfig

logger = logging.getLogger(__name__)

RETRY_SECONDS = 60.0
_MAX_VALUE = 6000  # characters, MLflow's limit of a parameter
_MAX_BATCH = 1000  # metrics, MLflow's limit of one call
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


def tracking_uri(config: TrackConfig, folder: Path) -> str:
    """Return the tracking server: `track.uri`, else MLFLOW_TRACKING_URI, else a SQLite file beside the run."""
    return config.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve().parent / 'mlflow.db'}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return dotted keys and text values of a nested configuration; a path is cut to its last part."""
    flat: dict[str, str] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{key}.")
        else:
            value = _without_folder(value)
            flat[key] = (value if isinstance(value, str) else json.dumps(value))[:_MAX_VALUE]
    return flat


def _without_folder(value: Any) -> Any:
    """Return a value with every path in it cut to its last part, and without the password of an address."""
    if isinstance(value, Mapping):
        return {key: _without_folder(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folder(item) for item in value]
    if not isinstance(value, str):
        return value
    address = urlsplit(value) if "://" in value else None
    if address is not None and "@" in address.netloc:
        return urlunsplit(address._replace(netloc=address.netloc.rpartition("@")[2]))
    for kind in (PurePosixPath, PureWindowsPath):
        if kind(value).is_absolute() or (kind is PurePosixPath and (value[:1] in "~." or Path(value).exists())):
            return kind(value).name
    return value


class MlflowRun:
    """One MLflow run, started or continued.

    Args:
        config: Server and experiment.
        folder: Folder of the run.
        name: Name of a new run.
        params: Parameters; of a continued run only new ones are added, for MLflow never changes a parameter.
        tags: Tags, replaced if they exist.
        run_id: Run to continue.
        parent_id: Run that this one is part of.
    """

    def __init__(
        self,
        config: TrackConfig,
        folder: Path,
        *,
        name: str,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        run_id: str | None,
        parent_id: str | None,
    ) -> None:
        self.config, self.folder, self.name = config, folder, name
        self.params, self.tags = flatten(params), {key: str(value)[:_MAX_VALUE] for key, value in tags.items()}
        self.run_id, self.parent_id = run_id, parent_id
        self._client: Any = None
        self._waiting: list[Any] = []
        self._last_step = -1
        self._retry_at, self._warned = 0.0, False
        self._attempt(self._connect)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Send finite metrics of one step, with what could not be sent before."""
        if step > self._last_step:
            now = int(time.time() * 1000)
            self._waiting += [(key, value, now, step) for key, value in metrics.items() if math.isfinite(value)]
            self._attempt(self._send)

    def artifact(self, path: Path) -> None:
        """Send a file."""
        self._attempt(lambda: self._connected().log_artifact(self.run_id, str(path)))

    def finish(self, status: str) -> None:
        """Send what is left and set the final status: FINISHED, FAILED or KILLED."""
        self._retry_at = 0.0
        self._attempt(self._send)
        self._attempt(lambda: self._connected().set_terminated(self.run_id, status))

    def _attempt(self, action: Any) -> None:
        if time.monotonic() < self._retry_at:
            return
        try:
            action()
        except Exception as error:  # any failure of a tracking server is survivable
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if not self._warned:
                self._warned = True
                reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
                logger.warning("MLflow cannot be reached; the run goes on and metrics.jsonl has its curve. %s", reason)

    def _connected(self) -> Any:
        if self._client is None:
            self._connect()
        return self._client

    def _connect(self) -> None:
        for variable, value in _ENVIRONMENT.items():
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        for noisy in ("mlflow", "alembic"):  # after the import, which sets its own levels
            logging.getLogger(noisy).setLevel(logging.WARNING)
        uri = tracking_uri(self.config, self.folder)
        client = MlflowClient(uri)
        params = self.params
        if self.run_id is not None:
            params = self._continue(client, params)
        if self.run_id is None:
            tags = {"mlflow.parentRunId": self.parent_id} if self.parent_id else {}
            run = client.create_run(self._experiment(client, uri), tags=tags, run_name=self.name)
            self.run_id = run.info.run_id
        items = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(items), 100):
            client.log_batch(self.run_id, params=items[start : start + 100])
        client.log_batch(self.run_id, tags=[RunTag(key, value) for key, value in self.tags.items()])
        self._client = client

    def _continue(self, client: Any, params: dict[str, str]) -> dict[str, str]:
        """Reopen the run and return the parameters it lacks; a run that the server lost is replaced by a new one."""
        from mlflow.exceptions import MlflowException

        try:
            run = client.get_run(self.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow does not know the run %s any more; a new one is started.", self.run_id)
            self.run_id = None
            return params
        client.update_run(self.run_id, status="RUNNING")
        keys = [key for key in run.data.metrics if not key.startswith("system/")]
        histories = [client.get_metric_history(self.run_id, key) for key in keys]
        self._last_step = max((point.step for history in histories for point in history), default=-1)
        known = run.data.params
        self.tags |= {f"resumed.{key}": value for key, value in params.items() if known.get(key, value) != value}
        return {key: value for key, value in params.items() if key not in known}

    def _experiment(self, client: Any, uri: str) -> str:
        found = client.get_experiment_by_name(self.config.experiment)
        if found is not None:
            return found.experiment_id
        beside = (self.folder.resolve().parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
        return client.create_experiment(self.config.experiment, artifact_location=beside)

    def _send(self) -> None:
        from mlflow.entities import Metric

        client = self._connected()
        while self._waiting:
            part = self._waiting[:_MAX_BATCH]
            client.log_batch(self.run_id, metrics=[Metric(*point) for point in part])
            del self._waiting[: len(part)]
