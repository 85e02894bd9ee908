"""Curves: what MLflow itself reads back, what a resumed run leaves in the file, and a server that is down."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import tracking_store

from medvlp.config.train import TrackConfig
from medvlp.track import git_hash, open_tracker, run_record
from medvlp.track.jsonl import read_lines
from medvlp.track.mlflow import flatten

LOCAL = TrackConfig(mlflow=False)


def tracker(folder: Path, config: TrackConfig = LOCAL, **options):
    given = {"name": "run", "params": {"train": {"steps": 3}}, "tags": {"store": "abc"}} | options
    return open_tracker(config, folder, **given)


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> Path:
    """One SQLite store for all tests here."""
    return tracking_store.copy_to(tmp_path_factory.mktemp("tracking")).parent


def client(folder: Path):
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def test_lines_hold_step_time_and_metrics_and_stay_json(tmp_path):
    log = tracker(tmp_path)
    log.log({"loss": 1.5, "bad": float("nan")}, 1)
    log.finish("FINISHED")
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "time": line["time"], "loss": 1.5, "bad": None}


def test_resume_removes_later_steps_and_a_torn_line(tmp_path):
    log = tracker(tmp_path)
    for step in (1, 2, 3):
        log.log({"loss": step}, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log = tracker(tmp_path, resume_step=2)
    log.log({"loss": 9}, 3)
    log.finish("FINISHED")
    assert [(line["step"], line["loss"]) for line in read_lines(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 9)]


def test_mlflow_run_is_live_continued_and_ends_with_its_true_status(database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = database / "run"
    secret = str(database / "patients" / "store_a")
    first = tracker(folder, TrackConfig(), params={"data": {"store": secret}, "train": {"steps": 3, "lr": 0.1}})
    first.log({"train/loss": 2.0, "train/gap": float("nan")}, 1)
    first.log({"train/loss": 1.0}, 2)
    live = client(database).get_run(first.run_id)
    assert live.info.status == "RUNNING"
    assert live.data.metrics["train/loss"] == 1.0
    assert live.data.metrics["system/system_memory_usage_percentage"] > 0
    assert live.data.params == {"data.store": "store_a", "train.steps": "3", "train.lr": "0.1"}
    assert live.data.tags["store"] == "abc"
    first.finish("KILLED")
    assert client(database).get_run(first.run_id).info.status == "KILLED"

    second = tracker(folder, TrackConfig(), params={"train": {"steps": 5, "lr": 0.1}}, resume_step=1)
    assert second.run_id == first.run_id
    assert client(database).get_run(first.run_id).info.status == "RUNNING"
    for step in (2, 3):
        second.log({"train/loss": 1.0 / step}, step)
    second.finish("FINISHED")
    done = client(database).get_run(first.run_id)
    assert done.info.status == "FINISHED"
    assert done.data.params["train.steps"] == "3"
    assert done.data.tags["resumed.train.steps"] == "5"
    history = client(database).get_metric_history(first.run_id, "train/loss")
    assert sorted(point.step for point in history) == [1, 2, 3]
    assert not any(str(database) in value for value in (done.data.params | done.data.tags).values())


def test_child_runs_and_artifacts(database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    parent = tracker(database / "suite", TrackConfig(system_metrics=False))
    child = tracker(database / "cell", TrackConfig(system_metrics=False), parent_id=parent.run_id)
    file = database / "result.json"
    file.write_text("{}")
    child.artifact(file)
    child.finish("FAILED")
    run = client(database).get_run(child.run_id)
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id
    assert run.info.status == "FAILED"
    assert [item.path for item in client(database).list_artifacts(child.run_id)] == ["result.json"]
    assert (database / "mlartifacts").is_dir()


def test_a_run_that_the_server_lost_is_replaced(database, monkeypatch, caplog):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log = tracker(database / "lost", TrackConfig(system_metrics=False), run_id="0" * 32)
    assert log.run_id != "0" * 32
    assert client(database).get_run(log.run_id)
    assert "a new one is started" in caplog.text


def test_a_server_that_is_down_warns_once_and_the_file_goes_on(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        log = tracker(tmp_path, TrackConfig(uri="http://127.0.0.1:9"))
        for step in (1, 2, 3):
            log.log({"loss": 1.0}, step)
        log.finish("FINISHED")
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3
    assert log.run_id is None
    assert [record.getMessage().split(";")[0] for record in caplog.records if record.name.startswith("medvlp")] == [
        "MLflow cannot be reached"
    ]


def test_what_a_server_missed_is_sent_when_it_is_back(database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log = tracker(database / "flaky", TrackConfig(system_metrics=False))
    run, real = log._run, log._run._client

    class Down:
        def log_batch(self, *_, **__):
            raise ConnectionError("down")

    run._client = Down()
    log.log({"loss": 3.0}, 1)
    run._client, run._retry_at = real, 0.0
    log.log({"loss": 2.0}, 2)
    assert [point.step for point in client(database).get_metric_history(log.run_id, "loss")] == [1, 2]


def test_telemetry_is_off_before_mlflow_is_imported(tmp_path):
    code = (
        "import os, sys; from pathlib import Path\n"
        "from medvlp.track import open_tracker; from medvlp.config.train import TrackConfig\n"
        "assert 'mlflow' not in sys.modules and 'torch' not in sys.modules\n"
        f"folder = Path({str(tmp_path)!r})\n"
        "open_tracker(TrackConfig(uri='http://127.0.0.1:9'), folder, name='a', params={}, tags={})\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "assert 'mlflow' in sys.modules and is_telemetry_disabled()\n"
    )
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_params_keep_names_but_no_folders(tmp_path):
    config = {"a": {"unix": "/home/alice/x.zarr", "windows": "C:\\Users\\alice\\run", "home": "~/x", "up": "../data/y"}}
    assert flatten(config) == {"a.unix": "x.zarr", "a.windows": "run", "a.home": "x", "a.up": "y"}
    assert flatten({"entries": [{"task": "/home/alice/t.yaml"}]}) == {"entries": '[{"task": "t.yaml"}]'}
    assert flatten({"uri": "https://alice:secret@host:5000/x"}) == {"uri": "https://host:5000/x"}
    assert flatten({"labels": ["Mass/Nodule"], "name": "Mass/Nodule", "none": None, "rate": 1e-4}) == {
        "labels": '["Mass/Nodule"]',
        "name": "Mass/Nodule",
        "none": "null",
        "rate": "0.0001",
    }


def test_the_record_names_versions_and_no_machine():
    import getpass
    import platform

    record = run_record()
    assert set(record) == {"git", "versions", "platform"}
    assert {"medvlp", "torch", "numpy", "python"} <= set(record["versions"])
    assert platform.node() not in record["platform"].split()
    assert getpass.getuser() not in record["platform"]
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        head = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        assert git_hash().removesuffix("+changes") == head.stdout.strip()
