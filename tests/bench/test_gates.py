"""The audit before a suite, and the cells that its leaks mark."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bench_store
import nih_layout as nih
import numpy as np
import pandas as pd
import pytest
import yaml

from medvlp.bench.gates import Audit, Marks, audit_once
from medvlp.bench.locks import Locks
from medvlp.bench.provenance import Source, Training, released_trainings, training_of
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import warnings
from medvlp.bench.runner import BenchSummary, run_suite
from medvlp.bench.schedule import Schedule
from medvlp.bench.suite import Suite, resolve_suite
from medvlp.config.prepare import PrepareConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks.base import Samples
from medvlp.zoo.release import release_names


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A clean store, and one whose first test image is a training image's copy."""
    folder = tmp_path_factory.mktemp("gates")
    clean = bench_store.make_store(folder / "clean")
    shutil.copytree(folder / "clean" / "raw", folder / "leaking" / "raw")
    images = folder / "leaking" / "raw" / "images"
    samples = Store.open(clean).samples()
    first = {split: samples.loc[samples["split"] == split, "path"].iloc[0] for split in ("train", "test")}
    shutil.copyfile(images / Path(first["train"]).name, images / Path(first["test"]).name)
    options: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "val_fraction": 0.3}
    root, out = folder / "leaking" / "raw", folder / "leaking" / "store"
    prepare(PrepareConfig(source="nih_chestxray14", root=root, out=out, **options))
    return {"clean": clean, "leaking": out}


def suite_of(folder: Path, *protocols: str) -> SuiteConfig:
    suite = bench_store.suite(folder, [{"protocols": list(protocols)}])
    return suite.model_copy(update={"baselines": ("majority",)})


def run(suite: SuiteConfig, store: Path, out: Path, *encoders: str, **more: Any) -> BenchSummary:
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu"} | more
    return run_suite(suite, stores=[store], encoders=[*encoders, bench_store.RANDOM], out=out, **options)


def test_a_leak_of_the_own_split_marks_the_cells_that_train_and_stands_on_the_front(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = suite_of(tmp_path, "knn", "linear_probe")
    summary = run(suite, stores["leaking"], tmp_path / "out")
    assert (summary.failed, summary.leaked) == (0, 3)
    leaks = json.loads((tmp_path / "out" / "leaks.json").read_text())
    sentence = "1 of 20 test images are shown by images of the training or validation split of nih_chestxray14."
    assert set(map(tuple, leaks["cells"].values())) == {(sentence,)}
    rows = json.loads((tmp_path / "out" / "aggregate.json").read_text())
    assert {tuple(row["leaks"]) for row in rows if row["status"] == "ok"} == {(sentence,)}
    found = Results.read(tmp_path / "out")
    front = warnings(found)
    assert front[0][0] == "The data leak."
    assert any(what == "Numbers are touched by leaks." and sentence in text for what, text in front)
    # the audit is made once for each set of stores
    monkeypatch.setattr("medvlp.store.audit.audit", lambda *_: pytest.fail("audited again"))
    assert run(suite, stores["leaking"], tmp_path / "out").leaked == 3


def test_clean_stores_mark_nothing(stores: dict[str, Path], tmp_path: Path) -> None:
    summary = run(suite_of(tmp_path, "knn"), stores["clean"], tmp_path / "out")
    assert summary.leaked == 0
    assert json.loads((tmp_path / "out" / "leaks.json").read_text())["cells"] == {}
    assert not any("leak" in what.lower() for what, _ in warnings(Results.read(tmp_path / "out")))


def test_results_without_an_audit_say_so(stores: dict[str, Path], tmp_path: Path) -> None:
    run(suite_of(tmp_path, "knn"), stores["clean"], tmp_path / "out", audit=False)
    assert ("The data were not audited.", "Whether test images were seen in training is not known.") in warnings(
        Results.read(tmp_path / "out")
    )


def test_split_lists_with_foreign_names_repeats_and_overlaps_stand_on_the_front(tmp_path: Path) -> None:
    layout = nih.small(patients=24, test_patients=6)
    root = layout.write(tmp_path / "raw")
    lists = {"train": [*range(1, 9), 8, 20], "val": [9, 10, 11, 12], "test": [*range(13, 21), 999]}
    (tmp_path / "lists").mkdir()
    for name, own in lists.items():
        (tmp_path / "lists" / f"{name}.txt").write_text("\n".join(map(nih.name, own)) + "\n")
    options: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "split_lists": tmp_path / "lists"}
    store = tmp_path / "store"
    prepare(PrepareConfig(source="nih_chestxray14", root=root, out=store, accept_split_overlap=True, **options))
    summary = run(suite_of(tmp_path, "knn"), store, tmp_path / "out")
    assert summary.failed == 0
    front = dict.fromkeys(f"{what} {text}" for what, text in warnings(Results.read(tmp_path / "out")))
    said = " ".join(front)
    assert "The data leak. Split lists of nih_chestxray14: 1 names are in both train and test." in said
    assert "Split lists have faults. Split lists of nih_chestxray14: train: 1 of 10 lines repeat a name." in said
    assert "test: 1 of 9 names are no image of the data set." in said


# What an encoder was trained on


def marks(store: Path, training: Training, audit: Audit, folder: Path) -> list[str]:
    from medvlp.bench.plan import Judged

    suite: Suite = resolve_suite(suite_of(folder, "zero_shot"), [store])
    schedule = Schedule(suite)
    one = Judged("e", "e", "h", "nih_chestxray14", "encoder", has_text=True, offers=("zero-shot scores",))
    (planned,) = schedule.plan([one])
    return Marks(audit, schedule, {"e": training}).of(planned)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (Source("nih_chestxray14", "train"), None),
        (Source("nih_chestxray14", "all"), "trained on the test images of nih_chestxray14"),
        (Source("nih_chestxray14", "unknown"), "whether on its test images is not written down"),
        (Source("rsna_pneumonia", "train"), "shares images or patients with nih_chestxray14"),
        (Source("padchest", "all"), None),
    ],
)
def test_declared_training_data_mark_cells(
    stores: dict[str, Path], tmp_path: Path, source: Source, expected: str | None
) -> None:
    audit = Audit({"nih_chestxray14": Store.open(stores["clean"]).hash})
    found = marks(stores["clean"], Training((source,), known=True), audit, tmp_path)
    assert found == [] if expected is None else expected in found[0]


def test_training_images_that_a_task_asks_are_counted(stores: dict[str, Path]) -> None:
    store = Store.open(stores["clean"])
    rows = np.flatnonzero(store.images["split"] == "train")[:5]
    rows = np.append(rows, np.flatnonzero(store.images["split"] == "test")[:3])
    images = store.images["image_id"].astype(str).to_numpy()[rows].tolist()
    test = Samples(rows, images, [f"p{row}" for row in rows], ["x"], np.ones((len(rows), 1)))
    marker = Marks(Audit({"nih_chestxray14": store.hash}), Schedule.__new__(Schedule), {})
    training = Training((Source("nih_chestxray14", "train", store.hash),), known=True)
    assert list(marker._encoder(training, store, test)) == [
        "5 of 8 test images are of the training split of nih_chestxray14, which trained the encoder."
    ]
    assert list(marker._encoder(training, store, test.take(np.arange(5, 8)))) == []


def test_a_run_that_was_trained_on_an_overlapping_store_marks_its_cells_by_count(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    clean = Store.open(stores["clean"])
    test = clean.samples().query("split == 'test'")["image_id"].tolist()
    exposed = {"nih_chestxray14": {name: {"other": 1} for name in test[:3]}}
    audit = Audit({"nih_chestxray14": clean.hash, "other": "hash-of-other"}, (), exposed)
    training = Training((Source("rsna_pneumonia", "train", "hash-of-other"),), known=True)
    (found,) = marks(stores["clean"], training, audit, tmp_path)
    assert found == "3 of 20 test images are shown by images of other, which trained the encoder."


def test_a_run_tells_what_it_was_trained_on(stores: dict[str, Path], tmp_path: Path) -> None:
    run_folder = bench_store.make_run(tmp_path / "trial")
    assert training_of(str(run_folder)) == (Training(), [])  # the record of this one names no store
    config = json.loads((run_folder / "model" / "config.json").read_text())
    store = Store.open(stores["clean"])
    config["record"] = {"store_hash": store.hash}
    (run_folder / "model" / "config.json").write_text(json.dumps(config))
    assert training_of(str(run_folder))[0] == Training((Source("", "train", store.hash),), known=True)
    (run_folder / "config.yaml").write_text(yaml.safe_dump({"data": {"store": str(store.path), "split": "val"}}))
    training, further = training_of(str(run_folder))
    assert training.sources == (Source("nih_chestxray14", "val", store.hash),)
    assert [one.hash for one in further] == [store.hash]
    assert training_of("random:resnet18") == (Training((), known=True), [])
    assert training_of("timm:somewhere") == (Training(), [])
    assert training_of("zoo:mgca_vit:file.ckpt")[0].sources == (Source("mimic_cxr", "train"),)


def test_the_list_of_training_data_names_formats_of_the_zoo() -> None:
    assert set(released_trainings()) <= set(release_names())


def test_stores_of_one_folder_name_are_told_apart(stores: dict[str, Path], tmp_path: Path) -> None:
    opened = [Store.open(path) for path in stores.values()]
    assert {store.path.name for store in opened} == {"store"}
    audit = audit_once(opened, [], tmp_path, tmp_path / "scratch", Locks(tmp_path / "locks"))
    names = ["nih_chestxray14", f"nih_chestxray14-{opened[1].hash[:8]}"]
    assert list(audit.stores) == names
    # every other image of the second store is one of the first
    assert any("data sets" in text or "splits" in text for text in audit.findings)
    assert not any("patient" in text and "for example" in text for text in audit.findings)
    assert audit.error == ""
    # of a store that only trained an encoder, the front does not tell what is wrong inside
    further = audit_once(opened[:1], opened[1:], tmp_path, tmp_path / "scratch", Locks(tmp_path / "locks"))
    assert list(further.stores) == names
    assert (
        further.findings == audit_once(opened[:1], [], tmp_path, tmp_path / "scratch", Locks(tmp_path / "l")).findings
    )
    assert further.findings != audit.findings
    assert further.exposed == audit.exposed


def test_a_study_is_shown_where_any_of_its_images_is() -> None:
    images = pd.DataFrame({"image_id": ["a1", "a2", "b1", "c1"], "study_id": ["a", "a", "b", "c"]})
    place = SimpleNamespace(images=images, hash="h")
    audit = Audit({"d": "h"}, exposed={"d": {"a2": {"train": 3}, "c1": {"train": 1, "other": 1}}})
    marks = Marks(audit, SimpleNamespace(), {})
    labels = np.ones((3, 1))
    studies = Samples(np.array([0, 2, 3]), ["a", "b", "c"], ["p", "q", "r"], ["report"], labels)
    single = Samples(np.array([0, 2, 3]), ["a1", "b1", "c1"], ["p", "q", "r"], ["x"], labels)
    assert [marks.shown(place, studies, name) for name in ("train", "other")] == [2, 1]
    assert [marks.shown(place, single, name) for name in ("train", "other")] == [1, 1]
