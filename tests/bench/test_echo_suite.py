"""The suites of video as they are shipped, on tiny phantoms: every kind of cell, chance lines, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import clip_stores
import pytest
from browser import open_page

from medvlp.bench.report import write_report
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import run_suite
from medvlp.bench.suite import load_suite
from medvlp.config.train import TrackConfig
from medvlp.store.array_store import Store

RANDOM = "random:resnet10t@32"


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("echo_suite")
    store = Store.open(clip_stores.make_echo(folder, 60, size=32))
    taken = {"size": 32, "frames": 2, "every": 4}
    run = clip_stores.make_model(folder / "run", store.config.resolved(), taken, options={"study_clips": 2})
    small = ["bootstrap_resamples=30", "entries.*.seeds=[0]", "entries.*.set.fine_tune.steps=3", "permutations=100"]
    suite = load_suite("benchmarks/suites/echo.yaml", [*small, "entries.echo_ef.set.fine_tune.batch_size=4"])
    track = TrackConfig(mlflow=False)
    done = run_suite(
        suite, stores=[store.path], encoders=[run, RANDOM], out=folder / "out", track=track, device="cpu", audit=False
    )
    assert done.failed == 0
    return folder / "out"


def test_every_cell_has_numbers_and_what_chance_gets(out: Path) -> None:
    found: dict[str, set[tuple[str, str]]] = {}
    for cell in finished_cells(out):
        record = cell.record
        found.setdefault(record["encoder"], set()).add((record["task"], record["protocol"]))
        first = cell.result["scores"][0]
        assert first["value"] is not None
        assert first["low"] <= first["high"]
        if record["task"] in ("echo_retrieval", "echo_reading", "echo_reading_clips"):
            assert first["chance"] > 0
    of_clips = {
        ("echo_reading_clips", "knn"),
        *(("echo_ef", p) for p in ("linear_probe", "knn", "few_shot", "fine_tune")),
    }
    assert found["run"] == of_clips | {
        ("echo_retrieval", "zero_shot"),
        ("echo_ef", "zero_shot"),
        ("echo_reading", "knn"),
    }
    assert found[RANDOM] == of_clips
    for name in ("metadata", "majority"):
        assert found[name] == {("echo_ef", "linear_probe"), ("echo_reading", "knn"), ("echo_reading_clips", "knn")}


def test_the_majority_reads_the_training_mean(out: Path) -> None:
    for cell in finished_cells(out):
        if cell.record["encoder"] == "majority" and cell.record["task"] == "echo_reading":
            scores = {row["metric"]: row for row in cell.result["scores"] if row["label"] == "EF"}
            assert scores["mae"]["value"] == pytest.approx(scores["mae"]["chance"])
            assert scores["mae_gain"]["value"] == pytest.approx(0, abs=1e-9)


def test_the_smallest_error_leads(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_report(out, page)
    rows = json.loads((out / "aggregate.json").read_text())
    errors = {
        row["encoder"]: row["value"]
        for row in rows
        if (row["task"], row["metric"], row["label"]) == ("echo_reading_clips", "mae", "macro")
    }
    assert len(errors) == 4
    with open_page(page) as opened:
        text = opened.locator("body").inner_text()
        panel = text[text.index("echo_reading_clips: k nearest") :]
        order = sorted(errors, key=lambda name: panel.index(f"\n{name}"))
        assert [errors[name] for name in order] == sorted(errors.values())
        assert "Chance is the error of the mean of the training studies" in opened.content()


def test_phases_of_operations_are_judged_within_videos(tmp_path: Path) -> None:
    store = Store.open(clip_stores.make_operations(tmp_path, 8))
    taken = {"size": 32, "frames": 2, "every": 1}
    run = clip_stores.make_model(tmp_path / "run", store.config.resolved(), taken, "surgclip", clip_stores.RESNET)
    suite = load_suite("benchmarks/suites/surgery.yaml", ["bootstrap_resamples=20", "permutations=100"])
    track = TrackConfig(mlflow=False)
    done = run_suite(
        suite, stores=[store.path], encoders=[run, RANDOM], out=tmp_path / "out", track=track, device="cpu", audit=False
    )
    assert done.failed == 0
    cells = {
        (cell.record["encoder"], cell.record["protocol"]): cell.result["scores"]
        for cell in finished_cells(tmp_path / "out")
    }
    for own in (("run", "zero_shot"), ("run", "linear_probe"), (RANDOM, "knn"), ("majority", "linear_probe")):
        values = {row["metric"]: row["value"] for row in cells[own] if row["label"] == "macro"}
        assert 0 <= values["video_f1"] <= 1
        assert 0 <= values["video_accuracy"] <= 1
