"""Suites on a tiny store: what is run, what is kept, what fails, and what a kill leaves behind."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from medvlp.bench import cells as cells_module
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import warnings
from medvlp.bench.results import finished_cells, load_results
from medvlp.bench.runner import BenchSummary, Selection, run_suite
from medvlp.config.base import json_sha256
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.intervals import interval
from medvlp.types import Predictions

CELL_FILES = ("cell.json", "result.json")
NO_TRACK = TrackConfig(mlflow=False)
DEFAULTS: dict[str, Any] = {"track": NO_TRACK, "device": "cpu", "audit": False}
PROBES = [
    {"protocols": ["linear_probe"], "fractions": [0.5, 1.0], "draws": 2},
    {"protocols": ["knn", "zero_shot"]},
    {"protocols": ["few_shot"], "shots": [3], "draws": 2},
]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("bench"))


def run(suite: SuiteConfig, store: Path, out: Path, *encoders: str, **more: Any) -> BenchSummary:
    specs = list(encoders or [bench_store.RANDOM])
    return run_suite(suite, stores=[store], encoders=specs, out=out, **DEFAULTS | more)


@pytest.fixture(scope="session")
def finished(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchSummary, SuiteConfig]:
    folder = tmp_path_factory.mktemp("finished")
    suite = bench_store.suite(folder, PROBES)
    trial = bench_store.make_run(folder / "trial")
    return folder / "out", run(suite, store, folder / "out", str(trial), bench_store.RANDOM), suite


def test_all_cells_of_the_plan_are_there_with_their_baselines(finished: tuple[Path, BenchSummary, SuiteConfig]) -> None:
    out, summary, _ = finished
    frame = load_results(out)
    cells = frame.drop_duplicates("cell")
    counts = cells.groupby(["protocol", "encoder"]).size().to_dict()
    models = {"trial", bench_store.RANDOM}
    stats = {"metadata", "image_statistics:mean", "image_statistics:histogram", "image_statistics:pixels16", "majority"}
    expected = {("linear_probe", name): 3 for name in models | stats}
    expected |= {("knn", name): 1 for name in models} | {("few_shot", name): 2 for name in models}
    assert counts == expected | {("zero_shot", "trial"): 1}
    assert (summary.done, summary.kept, summary.failed, summary.not_applicable) == (len(cells), 0, 0, 1)
    assert set(frame["metric"]) >= {"auroc", "average_precision", "f1", "ece"}
    assert set(frame["label"]) == {"Pneumonia", "macro"}


def test_every_number_follows_from_the_predictions(finished: tuple[Path, BenchSummary, SuiteConfig]) -> None:
    out, _, suite = finished
    for cell in finished_cells(out)[::4]:
        test = Predictions.from_frame(pd.read_parquet(cell.folder / "predictions.parquet"))
        val = Predictions.from_frame(pd.read_parquet(cell.folder / "validation.parquet"))
        score = {(row["metric"], row["label"]): row for row in cell.result["scores"]}
        row = score["auroc", "Pneumonia"]
        assert row["value"] == pytest.approx(roc_auc_score(test.labels[:, 0], test.scores[:, 0]), abs=1e-12)
        resamples = Resamples.draw(
            test.patient_ids, suite.bootstrap_resamples, suite.bootstrap_seed, cell.record["dataset"]
        )
        values, without = (
            bootstrap_values(test, each, metrics=["auroc"])["auroc"][:, 0]
            for each in (resamples, Resamples.jackknife(test.patient_ids))
        )
        bounds = interval(row["value"], values, without, suite.alpha, row["support"])
        assert [row["low"], row["high"]] == pytest.approx([bounds.low, bounds.high], abs=1e-12)
        threshold = cell.result["thresholds"]["Pneumonia"]
        assert threshold in val.scores[:, 0]
        called, truth = test.scores[:, 0] >= threshold, test.labels[:, 0] == 1
        f1 = 2 * (called & truth).sum() / (called.sum() + truth.sum())
        assert score["f1", "Pneumonia"]["value"] == pytest.approx(f1)
        assert cell.result["n"] == len(test.sample_ids) == 20


def test_the_probe_finds_the_brightness_and_the_majority_does_not(
    finished: tuple[Path, BenchSummary, SuiteConfig],
) -> None:
    frame = load_results(finished[0]).query("metric == 'auroc' and label == 'macro' and fraction == 1.0")
    values = frame[frame["protocol"] == "linear_probe"].set_index("encoder")["value"]
    assert values["image_statistics:mean"] > 0.8
    assert values["majority"] == 0.5


def test_encoders_share_the_samples_and_the_splits_are_kept(finished: tuple[Path, BenchSummary, SuiteConfig]) -> None:
    out = finished[0]
    frame = load_results(out).drop_duplicates("cell")
    shared = frame[frame["protocol"].isin(["linear_probe", "few_shot"])]
    assert (shared.groupby(["protocol", "fraction", "shots", "draw"])["hash:split"].nunique() == 1).all()
    half = shared[(shared["protocol"] == "linear_probe") & (shared["fraction"] == 0.5)]
    assert half["hash:split"].nunique() == 2
    for split in half["hash:split"].unique():
        kept = json.loads((out / "splits" / f"{split[:24]}.json").read_text())
        assert kept["sha256"] == split
        assert not set(kept["train"]) & set(kept["test"])
        assert len(kept["train"]) == half["train_n"].iloc[0]


def test_aggregate_is_the_mean_over_draws_with_the_interval_of_that_mean(
    finished: tuple[Path, BenchSummary, SuiteConfig],
) -> None:
    out = finished[0]
    rows = json.loads((out / "aggregate.json").read_text())
    chosen = [r for r in rows if (r["metric"], r["label"], r["fraction"]) == ("auroc", "macro", 0.5)]
    row = next(r for r in chosen if r["encoder"] == "trial" and r["protocol"] == "linear_probe")
    cells = [cell for cell in finished_cells(out) if cell.folder.name in row["cells"]]
    assert len(cells) == row["draws"] == 2
    points = [next(s["value"] for s in c.result["scores"] if s["metric"] == "auroc") for c in cells]
    assert row["value"] == pytest.approx(np.mean(points))
    values, without = (
        np.mean([getattr(cell, name)["auroc"][:, -1] for cell in cells], axis=0) for name in ("bootstrap", "jackknife")
    )
    over_patients = interval(row["value"], values, without, 0.05, row["support"])
    assert set(row["components"]) == {"patients", "draws"}
    assert row["low"] <= over_patients.low
    assert row["high"] >= over_patients.high or row["high"] == 1
    skipped = [r for r in rows if r["protocol"] == "zero_shot" and r["encoder"] == bench_store.RANDOM]
    assert skipped[0]["value"] is None
    assert "not applicable" in skipped[0]["status"]


def test_comparisons_pair_encoders_and_never_baselines_with_baselines(
    finished: tuple[Path, BenchSummary, SuiteConfig],
) -> None:
    rows = json.loads((finished[0] / "comparisons.json").read_text())
    probes = [r for r in rows if r["protocol"] == "linear_probe" and r["fraction"] == 1.0 and r["label"] == "Pneumonia"]
    assert len(probes) == 1 + 2 * 5
    row = next(r for r in probes if {r["a"], r["b"]} == {"trial", bench_store.RANDOM})
    assert row["a"] == "trial"
    assert row["difference"] == pytest.approx(row["value_a"] - row["value_b"])
    assert row["low"] <= row["difference"] <= row["high"]
    assert row["test"] == "DeLong over patients"
    assert all(r["p_adjusted"] is None or r["p_adjusted"] >= r["p"] for r in rows)
    assert next(r for r in rows if r["label"] == "macro")["comparisons"] == sum(r["label"] == "macro" for r in rows)


def test_cells_that_exist_are_not_run_again(
    finished: tuple[Path, BenchSummary, SuiteConfig], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first, suite = finished
    before = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*.json")}
    monkeypatch.setattr("medvlp.bench.work.run_cell", lambda *_, **__: pytest.fail("a cell was run again"))
    summary = run(suite, store, out)
    assert (summary.done, summary.failed) == (0, 0)
    assert 0 < summary.kept < first.done
    assert {path: path.stat().st_mtime_ns for path in out.glob("cells/*/*.json")} == before
    aggregated = json.loads((out / "aggregate.json").read_text())
    assert {"trial", bench_store.RANDOM} <= {row["encoder"] for row in aggregated}


def test_filters_run_a_part_and_refuse_what_is_not_there(store: Path, tmp_path: Path) -> None:
    suite = bench_store.suite(tmp_path, PROBES)
    only = Selection(protocols=["linear_probe"], fractions=[1.0])
    summary = run(suite, store, tmp_path / "out", only=only)
    assert summary.done == 6
    aggregated = json.loads((tmp_path / "out" / "aggregate.json").read_text())
    assert "not run" in {row["status"] for row in aggregated}
    with pytest.raises(UserError, match="Nothing of the suite"):
        run(suite, store, tmp_path / "out", only=Selection(protocols=["fine_tune"]))


def test_failures_are_recorded_with_the_next_step_and_mended_later(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["linear_probe", "knn"]}])

    def broken(*_: Any) -> None:
        raise RuntimeError("no memory for neighbours")

    with monkeypatch.context() as patch:
        patch.setattr("medvlp.tasks.classification.nearest_neighbours", broken)
        summary = run(suite, store, tmp_path / "out", bench_store.RANDOM, "no/such/run")
    assert (summary.done, summary.failed) == (6, 2)
    records = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    reasons = " ".join(record["reason"] for record in records)
    assert "no memory for neighbours" in reasons
    assert "no encoder" in reasons
    assert all(record["next"] for record in records)
    again = run(suite, store, tmp_path / "out")
    assert (again.done, again.kept, again.failed) == (1, 6, 0)
    left = (tmp_path / "out" / "failures.jsonl").read_text()
    assert "no memory" not in left


def test_one_class_split_fails_its_cells_and_says_so(store: Path, tmp_path: Path) -> None:
    labels = [{"name": "x", "positive": "Hernia"}]
    bad = bench_store.suite(tmp_path, [{"protocols": ["linear_probe"]}], labels=labels, name="bad")
    good = bench_store.suite(tmp_path, [{"protocols": ["knn"]}], name="good")
    entries = bad.entries + good.entries
    both = good.model_copy(update={"entries": entries, "baselines": ()})
    summary = run(both, store, tmp_path / "out")
    assert (summary.done, summary.failed) == (1, 1)
    assert "both positives and negatives" in (tmp_path / "out" / "failures.jsonl").read_text()


def test_a_full_disk_ends_the_run_with_the_next_step(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}])

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(cells_module, "write_folder", full)
        with pytest.raises(UserError, match="No space left") as caught:
            run(suite, store, tmp_path / "out")
    assert "what is done is kept" in caught.value.fix
    assert run(suite, store, tmp_path / "out", only=Selection(protocols=["knn"])).done == 1


def test_a_missing_store_names_the_data_set(store: Path, tmp_path: Path) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}], dataset="phantom")
    with pytest.raises(UserError, match="needs a store of phantom"):
        run(suite, store, tmp_path / "out")


def test_a_changed_setting_makes_new_cells_and_leaves_the_old_out_of_the_tables(store: Path, tmp_path: Path) -> None:
    first = bench_store.suite(tmp_path, [{"protocols": ["knn"]}])
    run(first, store, tmp_path / "out", only=Selection(protocols=["knn"]))
    flipped = [{"name": "Well", "positive": "No Finding", "negative": "Pneumonia"}]
    second = bench_store.suite(tmp_path, [{"protocols": ["knn"], "set": {"knn_k": [3]}}], labels=flipped)
    assert run(second, store, tmp_path / "out", only=Selection(protocols=["knn"])).done == 1
    assert len(finished_cells(tmp_path / "out")) == 2
    rows = json.loads((tmp_path / "out" / "aggregate.json").read_text())
    assert [len(row["cells"]) for row in rows if row["status"] == "ok" and row["protocol"] == "knn"] == [1] * 16
    examples = json.loads((tmp_path / "out" / "examples" / "index.json").read_text())
    assert {name for example in examples for name in example["labels"]} == {"Well"}
    clash = bench_store.suite(tmp_path, [{"protocols": ["knn"], "set": {"version": v}} for v in (2, 3)])
    with pytest.raises(UserError, match="Two entries set 'version'"):
        run(clash, store, tmp_path / "out")


def test_random_seeds_are_different_encoders_of_one_name(store: Path, tmp_path: Path) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"], "seeds": [0, 1]}])
    run(suite, store, tmp_path / "out", only=Selection(protocols=["knn"]))
    frame = load_results(tmp_path / "out").drop_duplicates("cell")
    assert frame["encoder"].unique().tolist() == [bench_store.RANDOM]
    assert sorted(frame["seed"]) == [0, 1]
    assert frame["hash:encoder"].nunique() == 2


def test_every_cell_is_a_child_run_in_mlflow(store: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}]).model_copy(update={"baselines": ()})
    track = TrackConfig(experiment="bench")
    for _ in range(2):
        run(suite, store, tmp_path / "out", track=track)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("bench")
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    children = [r for r in runs if "mlflow.parentRunId" in r.data.tags]
    assert [len(parents), len(children)] == [1, 1]
    assert children[0].data.tags["mlflow.parentRunId"] == parents[0].info.run_id
    value = load_results(tmp_path / "out").query("metric == 'auroc' and label == 'macro'")["value"].iloc[0]
    assert children[0].data.metrics["auroc/macro"] == pytest.approx(value)
    assert {r.info.status for r in runs} == {"FINISHED"}


def test_a_cell_that_was_not_tracked_is_tracked_by_the_next_run(store: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}]).model_copy(update={"baselines": ()})
    run(suite, store, tmp_path / "out")
    run(suite, store, tmp_path / "out", track=TrackConfig(experiment="late"))
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    child = next(r for r in runs if "mlflow.parentRunId" in r.data.tags)
    assert child.info.status == "FINISHED"
    assert child.data.params["config.settings.knn_k"] == "[1, 5]"
    lines = next((tmp_path / "out").glob("cells/*/track/metrics.jsonl")).read_text().splitlines()
    assert len(lines) == 1


def test_the_resolved_configuration_stands_beside_its_hashes(
    finished: tuple[Path, BenchSummary, SuiteConfig],
) -> None:
    cells = finished_cells(finished[0])
    for cell in cells:
        config, hashes = cell.result["config"], cell.record["hashes"]
        assert json_sha256(config["task"]) == hashes["task"]
        assert json_sha256(config["settings"]) == hashes["config"]
    assert cells[0].result["config"]["task"]["name"] == "tiny"


def test_a_store_made_unlike_the_training_images_is_said(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}]).model_copy(update={"baselines": ()})
    trial = bench_store.make_run(tmp_path / "trial")
    run(suite, store, tmp_path / "same", str(trial))
    assert "made otherwise" not in caplog.text
    file = trial / "model" / "preprocessing.json"
    file.write_text(file.read_text().replace('"pad"', '"crop"'))
    run(suite, store, tmp_path / "other", str(trial))
    assert "aspect: crop in training, pad here" in caplog.text
    encoders = json.loads((tmp_path / "other" / "suite.json").read_text())["encoders"]
    assert encoders[0]["other_preprocessing"] == ["aspect: crop in training, pad here"]
    headlines = [headline for headline, _ in warnings(Results.read(tmp_path / "other"))]
    assert "An encoder sees unfamiliar images." in headlines


def test_results_name_no_place_of_the_machine(store: Path, tmp_path: Path) -> None:
    suite = bench_store.suite(tmp_path, [{"protocols": ["knn"]}]).model_copy(update={"baselines": ()})
    out = tmp_path / "out"
    run(suite, store, out, bench_store.RANDOM, str(tmp_path / "no_such_run"))
    files = [path for path in out.rglob("*") if path.suffix in (".json", ".jsonl", ".parquet")]
    assert {"suite.json", "result.json", "failures.jsonl"} <= {path.name for path in files}
    assert [path for path in files if str(tmp_path).encode() in path.read_bytes()] == []
    assert json.loads((out / "suite.json").read_text())["suite"]["entries"][0]["task"] == "tiny"
    assert "no_such_run" in (out / "failures.jsonl").read_text()


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import bench_store
import timm, transformers, sklearn.linear_model
from medvlp.bench import cells, features, runner
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig

def run():
    suite = SuiteConfig.model_validate_json({suite!r})
    runner.run_suite(suite, stores=[Path({store!r})], encoders=[bench_store.RANDOM], out=Path({out!r}),
                     track=TrackConfig(mlflow=False), device="cpu", audit=False)

def at_call(number, function, act):
    calls = []
    def wrapped(*given, **named):
        calls.append(1)
        if len(calls) == number:
            act(*given)
        return function(*given, **named)
    return wrapped

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def kill_while_writing(target, files, scratch):
    files["predictions.parquet"] = kill  # cell.json and result.json are written, the folder is not in place yet

features.PART_IMAGES = 8
for name in ("in the features", "in a cell"):
    if not os.fork():
        if name == "in the features":
            features.FeatureCache._save = at_call(3, features.FeatureCache._save, kill)
        else:
            cells.write_folder = at_call(4, cells.write_folder, kill_while_writing)
        run()
        os._exit(0)
    print(name, os.waitstatus_to_exitcode(os.wait()[1]), len(list(Path({out!r}).glob("features/*/parts/*"))))
"""


def test_killed_runs_leave_the_same_results(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.bench.features.PART_IMAGES", 8)
    suite = bench_store.suite(tmp_path, PROBES)
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    tests = str(Path(__file__).parents[1])
    code = KILLED.format(tests=tests, suite=suite.model_dump_json(), store=str(store), out=str(killed))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    dead = -signal.SIGKILL
    assert done.stdout.splitlines() == [f"in the features {dead} 2", f"in a cell {dead} 0"], done.stderr[-2000:]
    assert len(finished_cells(killed)) == 3
    assert list((killed / ".tmp").glob("*/*/result.json")), "the second kill must leave a half-written cell"
    run(suite, store, killed)
    run(suite, store, whole)

    def content(root: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for path in sorted(p for p in root.rglob("*") if p.is_file() and "track" not in p.parts):
            if path.name in ("result.json", "suite.json"):
                found[str(path.relative_to(root))] = json.loads(path.read_text()) | {"git": None}
            elif path.name != "run.json":
                found[str(path.relative_to(root))] = path.read_bytes()
        return found

    assert content(killed) == content(whole)


def test_a_cell_that_another_run_finished_first_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "cells" / "abc"
    written = [
        {name: lambda path, run=run: path.write_text(json.dumps({"scores": [], "run": run})) for name in CELL_FILES}
        for run in ("first", "second")
    ]
    for files in written:
        cells_module.write_folder(target, files, tmp_path / ".tmp")
    assert json.loads((target / "result.json").read_text())["run"] == "first"
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.parametrize("name", ["cell.json", "result.json"])
@pytest.mark.parametrize("content", [None, '{"task": "chest", "sco', "[]"])
def test_a_cell_that_cannot_be_read_is_run_again(tmp_path: Path, name: str, content: str | None) -> None:
    target = tmp_path / "cells" / "abc"
    whole = {each: lambda path: path.write_text('{"scores": []}') for each in CELL_FILES}
    cells_module.write_folder(target, whole, tmp_path / ".tmp")
    assert cells_module.status_of(target) == "ok"
    (target / name).unlink()
    if content is not None:
        (target / name).write_text(content)
    assert cells_module.status_of(target) is None
    cells_module.write_folder(target, whole, tmp_path / ".tmp")
    assert cells_module.status_of(target) == "ok"
    assert {path.name for path in target.iterdir()} == set(CELL_FILES)
