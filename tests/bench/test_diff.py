"""Which cells differ between results, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_store
import pytest

from medvlp.bench.diff import (
    KEY,
    cells_of_plan,
    cells_of_results,
    compare_cells,
    differences,
    reasons,
    recorded_encoders,
    summary,
)
from medvlp.bench.runner import run_suite
from medvlp.bench.schedule import Schedule
from medvlp.bench.suite import resolve_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.tasks.classification import Classification


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("bench"))


def suite_of(folder: Path, entries: list[dict[str, Any]], **changes: Any) -> SuiteConfig:
    return bench_store.suite(folder, entries, **changes).model_copy(update={"baselines": ("majority",)})


@pytest.fixture(scope="module")
def results(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    suite = suite_of(folder, [{"protocols": ["linear_probe", "knn"]}])
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], out=folder / "out", **options)
    return folder / "out"


def against(results: Path, store: Path, suite: SuiteConfig) -> list[tuple[str, int, str, str]]:
    resolved = resolve_suite(suite, [store])
    schedule = Schedule(resolved)
    plan = schedule.plan(recorded_encoders(results, resolved))
    return summary(compare_cells(cells_of_results(results), cells_of_plan(schedule, plan)))


def test_the_same_suite_and_the_same_results_have_no_differences(results: Path, store: Path, tmp_path: Path) -> None:
    assert compare_cells(cells_of_results(results), cells_of_results(results)) == []
    assert against(results, store, suite_of(tmp_path, [{"protocols": ["linear_probe", "knn"]}])) == []


def test_a_changed_setting_is_named_with_both_values(results: Path, store: Path, tmp_path: Path) -> None:
    suite = suite_of(tmp_path, [{"protocols": ["linear_probe", "knn"], "set": {"knn_k": [3, 5]}}])
    rows = {(kind, which.split(":")[0]): (cells, why) for kind, cells, which, why in against(results, store, suite)}
    # the task's hash is that of its whole file, the settings those of the protocol alone
    assert rows["changed", "tiny, linear_probe"] == (2, "the task: knn_k[0] 1 → 3")
    assert rows["changed", "tiny, knn"] == (1, "the task: knn_k[0] 1 → 3\nsettings: knn_k[0] 1 → 3")


def test_a_new_version_of_the_code_is_told_from_settings(
    results: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Classification.code_version
    monkeypatch.setattr(Classification, "code_version", old + 1)
    suite = suite_of(tmp_path, [{"protocols": ["linear_probe", "knn"]}])
    whys = {why for _, _, _, why in against(results, store, suite)}
    assert whys == {f"the code of the task: version {old} → {old + 1}"}


def test_new_and_gone_cells_are_counted(results: Path, store: Path, tmp_path: Path) -> None:
    suite = suite_of(tmp_path, [{"protocols": ["linear_probe"], "fractions": [0.5, 1.0], "draws": 2}])
    rows = {(kind, which): cells for kind, cells, which, _ in against(results, store, suite)}
    assert rows == {
        ("new", f"tiny, linear_probe: {bench_store.RANDOM}, majority"): 4,
        ("gone", f"tiny, knn: {bench_store.RANDOM}"): 1,
    }


def test_each_part_of_a_hash_has_its_reason(results: Path) -> None:
    side = next(iter(cells_of_results(results).values()))
    for part, word in {
        "store": "data",
        "split": "samples",
        "encoder": "encoder",
        "task": "task",
        "config": "settings",
    }.items():
        changed = {**side.record, "hashes": {**side.record["hashes"], part: "other"}}
        (said,) = reasons(side, type(side)("other", changed, side.config))
        assert word in said
    assert set(side.record["hashes"]) == {"store", "split", "encoder", "task", "config"}
    assert set(KEY) <= set(side.record)


def test_nested_records_are_compared_leaf_by_leaf() -> None:
    old = {"a": {"b": [1, 2], "c": "x"}, "gone": 1, "same": [1]}
    new = {"a": {"b": [1, 3], "c": "y"}, "same": [1], "list": [1, 2]}
    assert list(differences(old, new)) == [
        ("a.b[1]", "2", "3"),
        ("a.c", "x", "y"),
        ("gone", "1", "nothing"),
        ("list", "nothing", "[1, 2]"),
    ]
