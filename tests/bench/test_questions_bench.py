"""A suite of questions and of class retrieval: planned, kept, marked where the split leaks, compared and shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_store
import pandas as pd
import pytest
import yaml

from medvlp.bench.gates import Audit, Marks
from medvlp.bench.plan import Judged
from medvlp.bench.provenance import Source, Training
from medvlp.bench.report import write_report
from medvlp.bench.rescore import rescore
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import BenchSummary, Selection, run_suite
from medvlp.bench.schedule import Schedule
from medvlp.bench.suite import load_suite, resolve_suite
from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.config.train import TrackConfig
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks.base import SPACE

SHIPPED = ("vqa_rad", "slake", "phantom_vqa", "benchx_mimic_5x200", "mimic_5x200")
SMALL = {"width": 16, "hidden": 16, "layers": 1, "heads": 2}


def store_of(name: str, folder: Path, studies: int, **options: Any) -> Path:
    write_layout(name, folder / name, studies, seed=3, size=32, image_size=32)
    given: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "options": options}
    prepare(PrepareConfig(source=name, root=folder / name, out=folder / f"{name}_store", **given))
    return folder / f"{name}_store"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BenchSummary, list[Path]]:
    folder = tmp_path_factory.mktemp("questions")
    stores = [store_of("vqa_rad", folder, 16, split="official"), store_of("mimic_cxr_jpg", folder, 24)]
    entries: list[dict[str, Any]] = []
    changes = {"vqa_rad": {"vqa": SMALL, "fine_tune": {"epochs": 1, "batch_size": 16}}}
    for name in ("vqa_rad", "benchx_mimic_5x200", "mimic_5x200"):
        task = load_config(f"benchmarks/tasks/{name}.yaml", [], TaskConfig).resolved()
        for section, own in changes.get(name, {}).items():
            task[section] |= own
        file = folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(task))
        wanted = ["knn", "frozen"] if name == "vqa_rad" else ["zero_shot"]
        entries.append({"task": str(file), "protocols": wanted})
    given = {"name": "asked", "version": 1, "entries": entries, "bootstrap_resamples": 20}
    suite = SuiteConfig.model_validate(given | {"baselines": ["metadata", "majority"]})
    run = str(bench_store.make_run(folder / "run"))
    out = folder / "out"
    return out, run_suite(suite, stores=stores, encoders=[run], out=out, track=TrackConfig(mlflow=False)), stores


def test_questions_have_cells_of_encoders_and_of_the_question_alone(
    finished: tuple[Path, BenchSummary, list[Path]],
) -> None:
    out, summary, _ = finished
    assert summary.failed == 0
    cells = {(c.record["task"], c.record["protocol"], c.record["encoder"]): c for c in finished_cells(out)}
    assert set(cells) == {
        ("vqa_rad", "knn", "run"), ("vqa_rad", "frozen", "run"), ("vqa_rad", "knn", "metadata"),
        ("vqa_rad", "knn", "majority"), ("benchx_mimic_5x200", "zero_shot", "run"), ("mimic_5x200", "zero_shot", "run"),
    }  # fmt: skip
    rows = cells["vqa_rad", "frozen", "run"].result["scores"]
    assert {row["metric"] for row in rows} == {"accuracy", "accuracy_closed", "accuracy_open", "unseen_answers"}
    assert all(row["chance"] is not None for row in rows if row["metric"].startswith("accuracy"))
    frame = pd.read_parquet(cells["vqa_rad", "frozen", "run"].folder / "predictions.parquet")
    given = frame[frame["closed"]]["given"]
    assert set(given) <= {"yes", "no"}


def test_official_test_questions_are_marked_as_leaks(finished: tuple[Path, BenchSummary, list[Path]]) -> None:
    out, _, _ = finished
    leaks = json.loads((out / "leaks.json").read_text())
    cells = {cell.folder.name: cell.record["task"] for cell in finished_cells(out)}
    marked = {cells[name] for name, texts in leaks["cells"].items() if texts}
    assert marked == {"vqa_rad"}
    assert any("test questions of vqa_rad are about images" in text for text in leaks["audit"]["findings"])


@pytest.mark.parametrize("dataset", ["mimic_cxr_jpg", "mimic_cxr"])
def test_listed_images_of_the_training_split_mark_what_was_trained_on_it(
    finished: tuple[Path, BenchSummary, list[Path]], dataset: str
) -> None:
    _, _, stores = finished
    store = Store.open(stores[1])
    entry = {"task": "benchmarks/tasks/benchx_mimic_5x200.yaml", "protocols": ["zero_shot"]}
    suite = SuiteConfig.model_validate({"name": "x", "version": 1, "entries": [entry]})
    schedule = Schedule(resolve_suite(suite, [stores[1]]))
    one = Judged("e", "e", "h", "mimic_cxr_jpg", "encoder", has_text=True, offers=(SPACE,))
    (planned,) = schedule.plan([one])
    trained = Training((Source(dataset, "train"),), known=True)
    (found,) = Marks(Audit({"mimic_cxr_jpg": store.hash}), schedule, {"e": trained}).of(planned)
    tested = schedule.samples(planned.key)["test"].sample_ids
    count = int((store.images.set_index("image_id").loc[tested, "split"] == "train").sum())
    assert 0 < count < len(tested)
    assert found.startswith(f"{count} of {len(tested)} test images are of the training split of mimic_cxr_jpg")


def test_a_list_is_tested_whatever_its_split(finished: tuple[Path, BenchSummary, list[Path]]) -> None:
    out, _, stores = finished
    store = Store.open(stores[1])
    facts = [json.loads(text) for text in store.studies["attributes"]]
    listed = {own["image_5x200"]: own["class_5x200"] for own in facts if "image_5x200" in own}
    cells = {c.record["task"]: c for c in finished_cells(out)}
    frame = pd.read_parquet(cells["benchx_mimic_5x200"].folder / "predictions.parquet")
    assert dict(zip(frame["sample_id"], frame["class"], strict=True)) == listed
    assert set(store.images.set_index("image_id").loc[frame["sample_id"], "split"]) > {"train"}
    one, both = (cells[name].result["scores"] for name in ("benchx_mimic_5x200", "mimic_5x200"))
    assert {row["label"] for row in one} == {"image to report", "macro"}
    assert {row["metric"] for row in both} - {row["metric"] for row in one} == {
        "recall_at_1", "recall_at_5", "recall_at_10", "median_rank"
    }  # fmt: skip
    shares = frame["class"].value_counts(normalize=True)
    chance = next(row for row in one if (row["metric"], row["label"]) == ("hit_at_1", "macro"))["chance"]
    assert chance == pytest.approx(float((shares**2).sum()))


def test_the_report_and_rescoring_know_the_new_kinds(
    finished: tuple[Path, BenchSummary, list[Path]], tmp_path: Path
) -> None:
    out, _, _ = finished
    done = rescore(out, "accuracy_open")
    assert (done.done, done.kept) == (0, 4)
    write_report(out, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "vqa_rad" in text
    assert "benchx_mimic_5x200" in text


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_tasks_are_sound(name: str) -> None:
    assert load_config(f"benchmarks/tasks/{name}.yaml", [], TaskConfig).name == name


def test_the_shipped_suite_asks_both_data_sets(tmp_path: Path) -> None:
    small = [f"vqa.{name}={value}" for name, value in SMALL.items()]
    small += ["fine_tune.steps=1", "fine_tune.batch_size=8", "fine_tune.input_size=32"]
    changes = [f"entries.*.set.{text}" for text in small]
    changes += ["entries.*.seeds=[0]", "bootstrap_resamples=10", "permutations=100", 'baselines=["majority"]']
    stores = [store_of(name, tmp_path, 16) for name in ("vqa_rad", "slake")]
    only = Selection(fractions=[1.0])
    options = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False, "only": only}
    suite = load_suite("benchmarks/suites/vqa.yaml", changes)
    done = run_suite(suite, stores=stores, encoders=[bench_store.RANDOM], out=tmp_path / "out", **options)
    assert done.failed == 0
    found = {(c.record["task"], c.record["protocol"]) for c in finished_cells(tmp_path / "out")}
    assert found == {(task, protocol) for task in ("vqa_rad", "slake") for protocol in ("knn", "frozen", "fine_tune")}
