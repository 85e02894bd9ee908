"""Plans and lists: cells, hours, and what is missing, before anything is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import bench_store
import pytest
import torch

from medvlp.bench import forecast as forecast_module
from medvlp.bench.forecast import forecast
from medvlp.bench.listing import count_cells, tables
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import run_suite
from medvlp.bench.suite import choose_stores, find_stores, load_suite, resolve_suite
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.errors import UserError
from medvlp.zoo.load import full_spec

ENTRIES = [{"protocols": ["linear_probe"], "fractions": [0.5, 1.0], "draws": 2}, {"protocols": ["knn", "zero_shot"]}]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("bench"))


def suite_of(folder: Path, **changes: Any) -> SuiteConfig:
    return bench_store.suite(folder, ENTRIES, **changes).model_copy(update={"baselines": ("majority",)})


def options(out: Path) -> dict[str, Any]:
    return {"out": out, "track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}


def test_the_plan_counts_what_the_runner_runs(store: Path, tmp_path: Path) -> None:
    suite, out = suite_of(tmp_path), tmp_path / "out"
    resolved = resolve_suite(suite, [store])
    found = forecast(resolved, [bench_store.RANDOM], out=out)
    rows = {row.protocol: (row.cells, row.done, row.timed) for row in found.rows}
    assert rows == {"linear_probe": (6, 0, False), "knn": (1, 0, False)}
    assert [why for _, why in found.not_applicable] == ["the encoder has no text side"]
    assert found.missing == []
    assert found.hours > 0
    run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], **options(out))
    again = forecast(resolved, [bench_store.RANDOM], out=out)
    assert (again.cells, again.done, again.hours) == (7, 7, 0)
    assert len(finished_cells(out)) == 7


def test_hours_are_those_of_timed_cells_and_features(store: Path, tmp_path: Path) -> None:
    suite, out = suite_of(tmp_path), tmp_path / "out"
    run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], **options(out))
    for cell in finished_cells(out):
        seconds = {"linear_probe": 36.0, "knn": 360.0}[cell.record["protocol"]]
        run = {"started": 0.0, "seconds": seconds, "features_seconds": 0.0}
        if cell.record["protocol"] == "knn":
            run |= {"seconds": 372.0, "features_seconds": 12.0}
        (cell.folder / "run.json").write_text(json.dumps(run))
    found = forecast(resolve_suite(suite, [store]), ["random:test_vit@48"], timed=[out])
    rows = {row.protocol: row for row in found.rows}
    assert all(row.timed for row in found.rows)
    # 6 probes of 36 s and once the features of the one encoder
    assert rows["linear_probe"].hours == pytest.approx((6 * 36 + 12) / 3600)
    assert rows["knn"].hours == pytest.approx(360 / 3600)


def test_cells_that_are_scored_again_alone_cost_no_training(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_module, "PROBE_SECONDS", {"linear_probe": 7200.0, "knn": 7200.0})
    suite, out = suite_of(tmp_path), tmp_path / "out"
    run_suite(suite, stores=[store], encoders=[bench_store.RANDOM], **options(out))
    for cell in finished_cells(out):
        (cell.folder / "run.json").unlink()
    finer = suite.model_copy(update={"bootstrap_resamples": suite.bootstrap_resamples + 1})
    found = forecast(resolve_suite(finer, [store]), [bench_store.RANDOM], out=out)
    assert (found.cells, found.done) == (7, 0)
    assert found.hours == pytest.approx(7 * forecast_module.RESCORING_SECONDS / 3600)
    run_suite(finer, stores=[store], encoders=[bench_store.RANDOM], **options(out))
    assert all("predictions_of" in json.loads(path.read_text()) for path in out.glob("cells/*/run.json"))
    # What scoring again took says nothing of a training.
    other = forecast(resolve_suite(suite, [store]), ["random:test_vit@48"], timed=[out])
    assert min(row.hours for row in other.rows) >= 2


def test_everything_that_is_missing_is_named_at_once(store: Path, tmp_path: Path) -> None:
    hernia = [{"name": "x", "positive": "Hernia"}]
    bad = bench_store.suite(tmp_path, [{"protocols": ["knn"]}], labels=hernia, name="bad")
    away = bench_store.suite(tmp_path, [{"protocols": ["knn"]}], dataset="phantom", name="away")
    both = bad.model_copy(update={"entries": bad.entries + away.entries, "baselines": ("majority",)})
    found = forecast(resolve_suite(both, [store], missing=True), [bench_store.RANDOM, "no/such/run"])
    said = " ".join(what for what, _ in found.missing)
    assert "Encoder run" in said
    assert "There is no store of phantom" in said
    assert "Task bad: No label has both positives and negatives" in said
    assert all(fix for _, fix in found.missing)
    assert found.cells == 4  # of the random encoder and of the majority, on each task


def test_a_released_file_is_looked_at_and_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from medvlp.zoo.preview import preview
    from medvlp.zoo.release import read_release
    from medvlp.zoo.released import build_released

    release = read_release("mflag")
    model = build_released(release)
    keys: dict[str, torch.Tensor] = {}
    for rule in release.keys:
        for name, value in model.state_dict().items():
            if name.startswith(rule.ours):
                keys[rule.file[0] + name.removeprefix(rule.ours)] = torch.empty(value.shape, device="meta")
    shapes = {name: value.shape for name, value in keys.items()}
    monkeypatch.setattr("medvlp.zoo.preview.find_weights", lambda path: path)
    monkeypatch.setattr("medvlp.zoo.preview.read_shapes", lambda _: shapes)
    monkeypatch.setattr("medvlp.zoo.load.load", lambda *_, **__: pytest.fail("loaded"))
    seen = preview("mflag:file.pth")
    assert seen.name == "zoo:mflag"
    assert not seen.has_text
    assert "used" in seen.account
    shapes.pop(next(iter(shapes)))
    with pytest.raises(UserError, match="missing"):
        preview("mflag:file.pth")


def test_shapes_of_a_file_are_read_without_its_values(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from medvlp.models.weights import read_shapes, read_state

    state = {"a.weight": torch.randn(3, 4), "b": torch.randn(2)}
    torch.save({"state_dict": state}, tmp_path / "x.pth")
    save_file(state, tmp_path / "x.safetensors")
    for name in ("x.pth", "x.safetensors"):
        assert read_shapes(tmp_path / name) == {key: value.shape for key, value in read_state(tmp_path / name).items()}


def test_short_names_of_the_zoo_are_filled_in_unless_such_a_path_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert full_spec("mgca_vit:x.ckpt") == "zoo:mgca_vit:x.ckpt"
    assert full_spec("zoo:mgca_vit:x.ckpt") == "zoo:mgca_vit:x.ckpt"
    assert full_spec("random:resnet18") == "random:resnet18"
    assert full_spec("runs/mgca_vit") == "runs/mgca_vit"
    (tmp_path / "mgca_vit:x.ckpt").mkdir()
    assert full_spec("mgca_vit:x.ckpt") == "mgca_vit:x.ckpt"


# Stores and suites


def test_stores_are_found_by_their_data_sets(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "stores"
    shutil.copytree(store, root / "chest" / "nih")
    (root / "broken").mkdir()
    (root / "broken" / "store.json").write_text("{")
    assert find_stores(root, ["nih_chestxray14", "phantom"]) == [root / "chest" / "nih"]
    assert find_stores(root, ["phantom"]) == []
    suite = suite_of(tmp_path)
    assert choose_stores(suite, [], root) == [root / "chest" / "nih"]
    assert choose_stores(suite, [store], root) == [store]
    shutil.copytree(store, root / "second")
    with pytest.raises(UserError, match="Two stores hold the data set"):
        find_stores(root, ["nih_chestxray14"])
    assert find_stores(root, ["phantom"]) == []
    with pytest.raises(UserError, match="no such folder"):
        find_stores(tmp_path / "nowhere", ["phantom"])


def test_cells_without_a_store_are_shown_as_missing(store: Path, tmp_path: Path) -> None:
    here = bench_store.suite(tmp_path, [{"protocols": ["knn"]}])
    away = bench_store.suite(tmp_path, [{"protocols": ["knn"]}], dataset="phantom", name="away")
    both = here.model_copy(update={"entries": here.entries + away.entries, "baselines": ()})
    more = options(tmp_path / "out")
    with pytest.raises(UserError, match="needs a store of phantom"):
        run_suite(both, stores=[store], encoders=[bench_store.RANDOM], **more)
    summary = run_suite(both, stores=[store], encoders=[bench_store.RANDOM], missing_stores=True, **more)
    assert (summary.done, summary.failed, summary.no_store) == (1, 0, 1)
    rows = json.loads((tmp_path / "out" / "aggregate.json").read_text())
    assert {row["task"]: row["status"] for row in rows} == {"tiny": "ok", "away": "no store of phantom"}


def test_every_entry_of_a_suite_can_be_changed_at_once(tmp_path: Path) -> None:
    suite = load_suite(
        "benchmarks/suites/nih_mini.yaml",
        ["bootstrap_resamples=20", "entries.*.set.fine_tune.epochs=1", "entries.nih_pneumonia.seeds=[3]"],
    )
    assert suite.bootstrap_resamples == 20
    assert {(entry.task, entry.seeds) for entry in suite.entries} == {("nih_pneumonia", (3,)), ("nih_grounding", (0,))}
    assert {entry.set["fine_tune"]["epochs"] for entry in suite.entries} == {1}
    assert suite.entries[-1].set["fine_tune"]["lr"] == 1e-3
    with pytest.raises(UserError, match="no entries 'nih_pneumona'"):
        load_suite("benchmarks/suites/nih_mini.yaml", ["entries.nih_pneumona.seeds=[3]"])
    with pytest.raises(UserError, match=r"entries.0.sedes is not a key"):
        load_suite("benchmarks/suites/nih_mini.yaml", ["entries.*.sedes=[3]"])


def test_the_list_counts_the_cells_of_every_shipped_suite(tmp_path: Path) -> None:
    suites, tasks, data = tables()
    assert [table.title for table in (suites, tasks, data)] == ["Suites", "Tasks", "Data"]
    counted = {row[0]: row[4] for row in suites.rows}
    # 2 fractions of 5 draws and all labels, knn, zero-shot, boxes, 3 numbers of shots of 5 draws, fine-tuning
    assert counted["benchmarks/suites/nih_mini.yaml"] == 2 * 5 + 1 + 2 + 1 + 3 * 5 + 1
    assert "nih_pneumonia" in {row[0] for row in tasks.rows}
    assert any("medvlp data prepare nih_chestxray14" in str(row) for row in data.rows)
    own, beside = count_cells(suite_of(tmp_path))
    assert (own, beside) == (3 + 2, 3)


def test_the_rule_of_hours_counts_passes(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast_module, "PASSES_A_SECOND", {"cpu": 10.0, "cuda": 1000.0})
    suite = bench_store.suite(tmp_path, [{"protocols": ["fine_tune"]}]).model_copy(update={"baselines": ()})
    found = forecast(resolve_suite(suite, [store]), [bench_store.RANDOM])
    sizes = {split: (bench_store_split(store) == split).sum() for split in ("train", "val", "test")}
    looks = sizes["val"] + sizes["test"] + 2 * (3 * sizes["train"] + sizes["val"])
    assert found.hours == pytest.approx(looks / 10 / 3600)


def bench_store_split(store: Path) -> Any:
    from medvlp.store.array_store import Store

    return Store.open(store).samples()["split"].to_numpy()
