"""Work that is not done twice: a training that was stopped goes on, and other statistics cost no training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import bench_store
import pandas as pd
import phantom_store
import pytest
import yaml

from medvlp.bench.results import failed_cells, finished_cells
from medvlp.bench.runner import run_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.metrics.scoring import SCORINGS
from medvlp.tasks import _fine_tune
from medvlp.tasks._fine_tune import FineTuning

OUTLINES = {
    "kind": "task",
    "name": "outlines",
    "version": 1,
    "type": "segmentation",
    "dataset": "phantom",
    "labels": [{"name": "Cardiomegaly", "positive": "cardiomegaly"}],
    "fine_tune": {"steps": 8, "validate_every": 4, "batch_size": 4, "lr": 0.01, "warmup_steps": 1},
    "segmentation": {"decoder": "unet", "channels": 16},
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("stores")
    (folder / "phantom").mkdir()
    return {
        "classification": bench_store.make_store(folder),
        "segmentation": phantom_store.make_store(folder / "phantom", 40),
    }


def suite_of(kind: str, folder: Path, **changes: Any) -> SuiteConfig:
    if kind == "classification":
        suite = bench_store.suite(folder, [{"protocols": ["fine_tune"]}])
    else:
        (folder / "outlines.yaml").write_text(yaml.safe_dump(OUTLINES))
        entries = [{"task": str(folder / "outlines.yaml"), "protocols": ["frozen"]}]
        suite = SuiteConfig.model_validate({"name": "s", "version": 1, "entries": entries, "bootstrap_resamples": 40})
    return suite.model_copy(update={"baselines": (), **changes})


def run(suite: SuiteConfig, store: Path, out: Path) -> Any:
    how: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    encoder = bench_store.RANDOM if suite.name == "tiny" else "random:resnet10t@32"
    return run_suite(suite, stores=[store], encoders=[encoder], out=out, **how)


def content(out: Path) -> list[Any]:
    """Return what the only cell holds, times and commit aside."""
    (cell,) = finished_cells(out)
    result = json.loads((cell.folder / "result.json").read_text()) | {"git": None}
    files = ("predictions.parquet", "validation.parquet", "bootstrap.npz")
    return [result, *((cell.folder / name).read_bytes() for name in files)]


def stopped_at(step: int, error: Exception, done: list[int]) -> Any:
    plain = FineTuning._one_step

    def one_step(self: FineTuning, batch: Any) -> None:
        plain(self, batch)
        done.append(self.step)
        if self.step + 1 == step:
            raise error

    return one_step


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_training_that_was_stopped_goes_on_and_leaves_the_same_bytes(
    kind: str, stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, whole, stopped = suite_of(kind, tmp_path), tmp_path / "whole", tmp_path / "stopped"
    run(suite, stores[kind], whole)
    assert not (whole / "checkpoints").exists(), "a short training writes none"
    monkeypatch.setattr(_fine_tune, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(_fine_tune, "EVERY", 2)
    done: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "_one_step", stopped_at(6, MemoryError("full"), done))
        assert run(suite, stores[kind], stopped).failed == 1
    assert failed_cells(stopped)[0]["failure"]["kind"] == "memory"
    assert list((stopped / "checkpoints").glob("*/step_*/state.json"))
    again: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "_one_step", stopped_at(0, MemoryError(), again))
        assert run(suite, stores[kind], stopped).done == 1
    assert again[0] == 4, "from the checkpoint of step 4, not from the beginning"
    assert content(stopped) == content(whole)
    assert not (stopped / "checkpoints").exists()


LONG = """
import sys
from pathlib import Path
import bench_store
from medvlp.bench.runner import run_suite
from medvlp.config.train import TrackConfig
from medvlp.tasks import _fine_tune

_fine_tune.LEAST_SECONDS, _fine_tune.EVERY = 0.0, 5
_, folder, store, out = sys.argv
tuned = {"fine_tune": {"steps": 300, "validate_every": 100, "batch_size": 8, "warmup_steps": 1}}
suite = bench_store.suite(Path(folder), [{"protocols": ["fine_tune"], "set": tuned}])
suite = suite.model_copy(update={"baselines": ()})
how = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
assert run_suite(suite, stores=[Path(store)], encoders=[bench_store.RANDOM], out=Path(out), **how).failed == 0
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_training_that_is_killed_goes_on_from_its_checkpoint(stores: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL to the whole process, twice, far from the beginning: the same bytes as in one piece."""
    script, whole, killed = tmp_path / "long.py", tmp_path / "whole", tmp_path / "killed"
    script.write_text(LONG)
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "tests"), str(root / "tests" / "bench")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}

    def command(out: Path) -> list[str]:
        return [sys.executable, str(script), str(tmp_path), str(stores["classification"]), str(out)]

    def newest() -> int:
        steps = [int(path.parent.name.split("_")[-1]) for path in killed.glob("checkpoints/*/step_*/state.json")]
        return max(steps, default=0)

    subprocess.run(command(whole), env=environment, cwd=root, check=True)
    for least in (40, 120):
        process = subprocess.Popen(command(killed), env=environment, cwd=root, start_new_session=True)
        began = newest()
        while newest() < max(least, began + 5):
            assert process.poll() is None, "it ended before it was to be killed"
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not list(killed.glob("cells/*/result.json"))
    assert newest() >= 120
    subprocess.run(command(killed), env=environment, cwd=root, check=True)
    assert content(killed) == content(whole)
    assert not (killed / "checkpoints").exists()


def test_a_training_that_would_fail_again_begins_anew(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fine_tune, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(_fine_tune, "EVERY", 2)
    monkeypatch.setattr(FineTuning, "_one_step", stopped_at(5, RuntimeError("a mistake in the code"), []))
    assert run(suite_of("classification", tmp_path), stores["classification"], tmp_path / "out").failed == 1
    assert not (tmp_path / "out" / "checkpoints").exists()


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_other_statistics_cost_no_training_and_give_what_a_new_run_gives(
    kind: str, stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run(suite_of(kind, tmp_path), stores[kind], out)
    other = suite_of(kind, tmp_path, bootstrap_resamples=60, alpha=0.1)
    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "__init__", lambda *_: pytest.fail("it was trained again"))
        assert run(other, stores[kind], out).done == 1
    assert run(other, stores[kind], fresh).done == 1
    (cell,) = finished_cells(fresh)
    one, two = (root / "cells" / cell.folder.name for root in (out, fresh))
    left, right = (json.loads((folder / "result.json").read_text()) | {"git": None} for folder in (one, two))
    assert left == right
    for name in ("predictions.parquet", "validation.parquet"):
        frames = [pd.read_parquet(folder / name) for folder in (one, two)]
        pd.testing.assert_frame_equal(*frames)
        assert frames[0].attrs == frames[1].attrs
    times = json.loads((one / "run.json").read_text())
    assert times["predictions_of"] == next(c.folder.name for c in finished_cells(out) if c.folder.name != one.name)


def test_another_training_or_broken_predictions_are_no_shortcut(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, store = tmp_path / "out", stores["classification"]
    run(suite_of("classification", tmp_path), store, out)
    trained: list[int] = []
    monkeypatch.setattr(FineTuning, "_one_step", stopped_at(0, MemoryError(), trained))
    entries = [{"protocols": ["fine_tune"], "set": {"fine_tune.lr": 0.001}}]
    run(bench_store.suite(tmp_path, entries).model_copy(update={"baselines": ()}), store, out)
    assert trained, "another learning rate"
    trained.clear()
    for file in out.glob("cells/*/predictions.parquet"):
        file.write_bytes(file.read_bytes()[:-50])
    assert run(suite_of("classification", tmp_path, bootstrap_resamples=60), store, out).done == 1
    assert trained, "cut-off predictions"


def test_another_version_of_a_scoring_rule_makes_another_cell_without_training(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, store, out = suite_of("classification", tmp_path), stores["classification"], tmp_path / "out"
    run(suite, store, out)
    monkeypatch.setattr(SCORINGS.get("classification"), "code_version", 2)
    monkeypatch.setattr(FineTuning, "__init__", lambda *_: pytest.fail("it was trained again"))
    assert run(suite, store, out).done == 1
    assert len(finished_cells(out)) == 2
