"""Settings per encoder and the equal grid in cells, and BenchX's classification on miniatures of its data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pytest

from medvlp.bench.cells import run_cell
from medvlp.bench.forecast import Clock
from medvlp.bench.plan import Judged
from medvlp.bench.reuse import KeptPredictions
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import resolve_suite
from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks import TASKS
from medvlp.tasks._classifier import ClassifierTuning
from medvlp.tasks.base import Subject
from medvlp.zoo import load_encoder

PUBLISHED = Path(__file__).parents[2] / "benchmarks/published/benchx.csv"
ENTRY = {"protocols": ["fine_tune"]}
OWN = {"mgca_vit": {"fine_tune": {"lr": 0.01}}, "mine": {"fine_tune": {"batch_size": 4}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("benchx"), patients=40, test_patients=12)


def judged(name: str, spec: str) -> Judged:
    return Judged(name, spec, f"hash of {name}", "nih_chestxray14", "encoder")


ENCODERS = [
    judged("zoo:mgca_vit", "zoo:mgca_vit:FILE"),
    judged("mine@ab12cd", "runs/mine"),
    judged("other", "runs/other"),
]


def planned(store: Path, folder: Path, **changes: Any) -> tuple[Schedule, dict[str, Planned]]:
    suite = bench_store.suite(folder, [ENTRY], **changes)
    schedule = Schedule(resolve_suite(suite, [store]))
    return schedule, {one.judged.name: one for one in schedule.plan(ENCODERS)}


def test_an_encoders_settings_are_in_its_cell_and_in_no_other(store: Path, tmp_path: Path) -> None:
    schedule, plan = planned(store, tmp_path, per_encoder=OWN)
    tasks = {name: schedule.task(one.key, one.judged).config for name, one in plan.items()}
    assert tasks["zoo:mgca_vit"].fine_tune.lr == 0.01
    assert tasks["mine@ab12cd"].fine_tune.batch_size == 4, "the piece of a hash is no part of a name"
    assert tasks["other"].fine_tune == schedule.tasks[plan["other"].key].config.fine_tune
    hashes = {name: one.cell.hashes for name, one in plan.items() if one.cell is not None}
    assert all(schedule.is_current(own) for own in hashes.values())
    _, again = planned(store, tmp_path, per_encoder={**OWN, "mine": {"fine_tune": {"batch_size": 5}}})
    changed = {name for name, one in again.items() if one.cell is not None and one.cell.hashes != hashes[name]}
    assert changed == {"mine@ab12cd"}
    assert not schedule.is_current(again["mine@ab12cd"].cell.hashes)  # type: ignore[union-attr]


def test_settings_of_an_encoder_that_there_is_not_are_a_mistake(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no encoder 'mgca_vitt'\. Did you mean 'mgca_vit'"):
        planned(store, tmp_path, per_encoder={"mgca_vitt": {}})


def test_the_forecast_counts_trials_and_validations(store: Path, tmp_path: Path) -> None:
    def hours(**changes: Any) -> float:
        schedule, plan = planned(store, tmp_path, **changes)
        return Clock([], schedule, "cpu", None).seconds(plan["other"])[0]

    once, grid = hours(), hours(tuning={"lr": [0.1, 0.2, 0.3], "batch_size": [2, 4], "trials": 4})
    looks = hours(fine_tune={**bench_store.TASK["fine_tune"], "validate_epochs": 2})
    assert looks < once < grid < 4 * once


def test_every_trial_is_kept_and_the_best_on_validation_used(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = {"epochs": 1, "batch_size": 8, "optimizer": "sgd", "warmup_steps": 0}
    grid = {"lr": [0.003, 1e30, 0.03, 0.01]}
    on_validation = iter([0.4, 0.9, 0.9])
    monkeypatch.setattr(ClassifierTuning, "score", lambda *_: next(on_validation, 0.9))
    suite = bench_store.suite(tmp_path, [ENTRY], fine_tune=how, tuning=grid)
    schedule = Schedule(resolve_suite(suite, [store]))
    one = next(iter(schedule.plan([judged("other", "runs/other")])))
    task, samples = schedule.task(one.key, one.judged), schedule.samples(one.key)
    encoder = load_encoder(bench_store.RANDOM)
    subject = Subject("other", Store.open(store), lambda: np.zeros((0, 0)), lambda: encoder)
    assert one.cell is not None
    cell = run_cell(
        one.cell, task=task, subject=subject, suite=suite, settings=schedule.settings(task, "fine_tune"), facts={},
        kept=KeptPredictions(tmp_path / "out"), out=tmp_path / "out", scratch=tmp_path / "scratch", **samples,
    )  # fmt: skip
    best = json.loads((cell.folder / "result.json").read_text())["best_params"]
    assert [trial["setting"] for trial in best["trials"]] == [{"lr": lr} for lr in grid["lr"]]
    scores = [trial["score"] for trial in best["trials"]]
    assert scores == [0.4, None, 0.9, 0.9]
    assert "finite" in best["trials"][1]["reason"]
    assert (best["chosen"], best["val_auroc"]) == (2, 0.9), "the first of equal ones"
    alone = TASKS.get("classification")(
        task.config.model_copy(
            update={
                "tuning": None,
                "fine_tune": task.config.fine_tune.model_copy(update={"lr": grid["lr"][best["chosen"]]}),
            }
        )
    ).fit(subject, "fine_tune", samples["train"], samples["val"], one.cell.seed)
    np.testing.assert_array_equal(alone.predict(samples["test"]).scores[:, 0], cell.predictions.scores[:, 0])
    assert cell.result["scoring"] == "classification"


def test_a_grid_without_any_finite_end_fails_with_advice(store: Path) -> None:
    config = bench_store.task(
        fine_tune={"epochs": 1, "batch_size": 8, "optimizer": "sgd", "warmup_steps": 0}, tuning={"lr": [1e30, 2e30]}
    )
    task: Any = TASKS.get("classification")(config)
    opened = Store.open(store)
    samples = task.samples(opened)
    subject = Subject("x", opened, lambda: np.zeros((0, 0)), lambda: load_encoder(bench_store.RANDOM))
    with pytest.raises(UserError, match="None of the 2 settings"):
        task.fit(subject, "fine_tune", samples["train"], samples["val"], 0)


def test_a_store_that_was_prepared_otherwise_is_refused(store: Path) -> None:
    for changes, message in (
        ({"store_options": {"agreement": "union"}}, r"options\.agreement=None; the task asks for union"),
        ({"label_subsets": "lists"}, "without split lists"),
    ):
        task: Any = TASKS.get("classification")(bench_store.task(**changes))
        with pytest.raises(UserError, match=message):
            task.samples(Store.open(store))


OPTIONS: dict[str, dict[str, Any]] = {
    "nih_chestxray14": {},
    "vindr_cxr": {"agreement": "union"},
    "covidx": {"shared_patients": "keep_test"},
    "siim_acr": {"edition": "png"},
    "rsna_pneumonia": {},
}
FIXED = {"nih_chestxray14": "nih_14"}
SHORT = ["fine_tune.steps=2", "fine_tune.warmup_steps=1", "fine_tune.input_size=32"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OPTIONS))
def test_a_task_runs_from_the_raw_layout_to_scores(name: str, tmp_path: Path) -> None:
    write_layout(name, tmp_path / "raw", 120, 5, size=32, image_size=64, options=OPTIONS[name])
    given: dict[str, Any] = {"source": name, "root": tmp_path / "raw", "options": OPTIONS[name], "num_workers": 1}
    given |= {"image": {"size": 32}, "val_fraction": 0}
    prepare(PrepareConfig(out=tmp_path / "whole", **given))
    images = sorted(Store.open(tmp_path / "whole").images["image_id"])
    lists = {"val": images[::4], "test": images[1::4], "train": images[2::4] + images[3::4]}
    lists["train_10"] = lists["train"][::2]
    (tmp_path / "lists").mkdir()
    for file, own in lists.items():
        (tmp_path / "lists" / f"{file}.txt").write_text("\n".join(own))
    prepare(PrepareConfig(out=tmp_path / "store", split_lists=tmp_path / "lists", accept_split_overlap=True, **given))
    store, encoder = Store.open(tmp_path / "store"), load_encoder("random:resnet10t@32")
    subject = Subject("x", store, lambda: np.zeros((len(store), 0)), lambda: encoder)
    for file in (f"benchx_{name}", FIXED.get(name, name)):
        task: Any = TASKS.get("classification")(load_config(f"benchmarks/tasks/{file}.yaml", SHORT, TaskConfig))
        samples = task.samples(store)
        train = task.training_subset(samples["train"], fraction=0.1, shots=0, draw=0)
        if file.startswith("benchx"):
            assert 0 < len(train) <= len(set(train.sample_ids) & set(lists["train_10"])), "some lists name images twice"
            task = task.for_encoder("mgca_vit")
        head = task.fit(subject, "fine_tune", samples["train"], samples["val"], 0)
        found, scoring = head.predict(samples["test"]), SCORINGS.get(task.rule)()
        scores = {row.metric for row in scoring.scores(found, scoring.thresholds(head.predict(samples["val"])))}
        assert ("argmax_f1" in scores) == (file.startswith("benchx") and len(task.config.labels) == 1)
        assert ("legacy_auroc" in scores) == (file.startswith("benchx") and len(task.config.labels) == 14)
        assert len(head.best_params.get("trials", [])) == (0 if file.startswith("benchx") else 8)


def test_the_tables_of_the_paper_are_beside_as_published_numbers() -> None:
    rows = [line.split(",") for line in PUBLISHED.read_text().splitlines()[1:]]
    own = [row for row in rows if row[2] == "fine_tune"]
    assert len(own) == 10 * 5 * 3
    named = {tuple(row[:5]): float(row[5]) for row in own}
    assert len(named) == len(own)
    assert named["MRM", "benchx_nih_chestxray14", "fine_tune", "0.01", "legacy_auroc"] == 0.801
    assert named["REFERS", "benchx_rsna_pneumonia", "fine_tune", "1", "argmax_f1"] == 0.672
    for task in {row[1] for row in own}:
        assert load_config(f"benchmarks/tasks/{task}.yaml", (), TaskConfig).name == task
