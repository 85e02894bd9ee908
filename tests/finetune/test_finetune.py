"""Fine-tuning of an export of a hospital, end to end: what is left, what it says, and how it goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import own_data
import pandas as pd
import pytest
import torch
import tracking_store
import yaml
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.finetune import run as run_module
from medvlp.finetune.run import finetune
from medvlp.infer.predict import predict
from medvlp.store.prepare import prepare
from medvlp.tasks._fine_tune import FineTuning
from medvlp.tasks._tuned import load_tuned
from medvlp.track.jsonl import read_lines
from medvlp.train.resume import alone_in
from medvlp.zoo import load_encoder


def result_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "encoder.safetensors") | load_file(run / "model" / "head.safetensors")


def curve(run: Path) -> list[dict[str, float]]:
    timed = ("time", "train/samples_per_second")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_lines(run / "metrics.jsonl")]


def test_a_run_leaves_all_that_use_needs(own_run: Path) -> None:
    run = own_run / "run"
    assert {path.name for path in run.iterdir()} == {
        *("config.yaml", "metrics.jsonl", "checkpoints", "predictions", "model", "report.html", "result.json"),
    }
    assert {path.name for path in (run / "model").iterdir()} == {
        *("config.json", "encoder.safetensors", "head.safetensors", "preprocessing.json", "decisions.json"),
        "model_card.md",
    }
    result = result_of(run)
    assert [one["label"] for one in result["decisions"]] == ["Blob", "Bar"]
    assert all(one["slope"] != 1 and one["threshold"] for one in result["decisions"])
    assert "Left out, because the training images have one class only: Rare." in result["notes"]
    counted = {split: found["images"] for split, found in result["record"]["samples"].items()}
    assert counted == {"train": 48, "val": 24, "test": 24}
    assert "96 patients 24 for val and 24 for test set aside" in result["record"]["split_rule"]
    balance = {(row["label"], row["split"]): row for row in result["balance"]}
    assert balance["Blob", "train"]["unknown"] == 0 < balance["Bar", "train"]["unknown"]
    model = load_tuned(run)
    assert model.label_names == ["Blob", "Bar"]
    assert model.scope.modalities == ("DX",)
    assert model.scope.views == ("AP", "PA")
    assert model.scope.body_parts == ("CHEST",)
    described = json.loads((run / "model" / "config.json").read_text(encoding="utf-8"))
    assert model.hash == described["hash"]
    resolved = own_data.config(own_run / "store", run).resolved()
    assert yaml.safe_load((run / "config.yaml").read_text()) == resolved


def test_scores_follow_from_kept_predictions_of_test_patients(own_run: Path) -> None:
    run = own_run / "run"
    result, frame = result_of(run), pd.read_parquet(run / "predictions" / "test.parquet")
    scores = {(row["metric"], row["label"]): row for row in result["scores"]}
    thresholds = {one["label"]: one["threshold"] for one in result["decisions"]}
    for label in ("Blob", "Bar"):
        known = frame[f"label:{label}"].notna()
        truth, score = frame.loc[known, f"label:{label}"], frame.loc[known, f"score:{label}"]
        row = scores["auroc", label]
        assert row["value"] == pytest.approx(roc_auc_score(truth, score))
        called = score >= thresholds[label]
        assert scores["sensitivity", label]["value"] == pytest.approx(called[truth == 1].mean())
        assert row["n"] == known.sum()
        assert row["low"] is None or row["low"] <= row["value"] <= row["high"]
    validation = pd.read_parquet(run / "predictions" / "val.parquet")
    assert not set(frame["patient_id"]) & set(validation["patient_id"])
    best = result["chosen"]
    assert best["val_auroc"] == max(entry["val_auroc"] for entry in best["history"])
    lines = {line["step"]: line for line in read_lines(run / "metrics.jsonl")}
    last = best["history"][-1]["step"]
    assert lines[last + 1]["test/auroc/Blob"] == pytest.approx(scores["auroc", "Blob"]["value"])
    assert lines[best["step"]]["val/auroc"] == best["val_auroc"]


def test_subgroups_have_scores_and_gaps(own_run: Path) -> None:
    rows = result_of(own_run / "run")["subgroups"]
    assert {row["attribute"] for row in rows} == {"age", "sex", "view"}
    assert {row["metric"] for row in rows} == {"auroc", "sensitivity", "specificity"}
    frame = pd.read_parquet(own_run / "run" / "predictions" / "test.parquet")
    for sex in "FM":
        (one,) = [r for r in rows if (r["name"], r["metric"], r["label"]) == (sex, "auroc", "Blob")]
        assert one["small"]
        assert one["samples"] < len(frame)
    assert (
        sum(r["samples"] for r in rows if (r["attribute"], r["metric"], r["label"]) == ("sex", "auroc", "Blob")) == 24
    )


def test_nothing_left_names_a_patient_or_a_folder(own_run: Path, tmp_path: Path) -> None:
    run = own_run / "run"
    open_to_all = [run / "report.html", run / "model", run / "metrics.jsonl"]
    files = [file for path in open_to_all for file in ([path] if path.is_file() else path.iterdir())]
    ids = (
        [f"MRN{4711 + n}" for n in range(96)]
        + [f"1.2.9.{n}." for n in range(96)]
        + [own_data.SECRET, "ACC00", str(own_run)]
    )
    for file in files:
        content = file.read_bytes()
        found = [name for name in ids if name.encode() in content]
        assert not found, (file.name, found)


def test_a_stopped_run_ends_like_one_that_was_not(own_run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    whole = own_run / "run"
    total = result_of(whole)["chosen"]["history"][-1]["step"]
    plain = FineTuning._one_step
    for stop in (1, total // 2, total):
        run = tmp_path / str(stop)

        def step(self: FineTuning, batch: Any, stop: int = stop) -> None:
            plain(self, batch)
            if self.step + 1 == stop:
                raise RuntimeError("pulled the plug")

        with monkeypatch.context() as patch:
            patch.setattr(FineTuning, "_one_step", step)
            with pytest.raises(RuntimeError):
                finetune(own_data.config(own_run / "store", run))
        assert not (run / "model").exists()
        finetune(own_data.config(own_run / "store", run, data={"num_workers": 2}))
        assert all(torch.equal(value, weights(run)[name]) for name, value in weights(whole).items())
        assert curve(run) == curve(whole)
        one, two = result_of(run), result_of(whole)
        for result in (one, two):  # where it lay, and the commit that somebody may have made meanwhile
            del result["config_sha256"], result["record"]["git"]
        assert one == two


def test_a_second_run_in_the_same_folder_at_the_same_time_is_refused(own_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with alone_in(run), pytest.raises(UserError, match=r"Another run is writing this run\.dir"):
        finetune(own_data.config(own_run / "store", run))
    assert list(run.iterdir()) == []


def test_a_stop_after_training_costs_no_training_and_a_new_threshold_neither(
    own_run: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    run = shutil.copytree(own_run / "run", tmp_path / "run")
    shutil.rmtree(run / "model")
    (run / "result.json").unlink()

    def no_step(self: FineTuning, batch: Any) -> None:
        raise AssertionError("a step was done")

    monkeypatch.setattr(FineTuning, "_one_step", no_step)
    config = own_data.config(own_run / "store", run)
    done = finetune(config)
    assert all(torch.equal(value, weights(run)[name]) for name, value in weights(own_run / "run").items())
    assert done.scores[0]["value"] == result_of(own_run / "run")["scores"][0]["value"]
    monkeypatch.setattr(run_module, "load_encoder", no_step)
    assert finetune(config).scores == result_of(run)["scores"], "a complete run is left as it is"
    monkeypatch.undo()
    monkeypatch.setattr(FineTuning, "_one_step", no_step)
    wanted = {"threshold": "sensitivity", "target": 0.3}
    finetune(own_data.config(own_run / "store", run, decision=wanted))
    before, now = result_of(own_run / "run"), result_of(run)
    assert now["decisions"] != before["decisions"]
    assert now["scores"][0] == before["scores"][0]
    assert "sensitivity of 0.3" in (run / "model" / "model_card.md").read_text()


def test_mlflow_has_one_run_with_a_live_curve_hashes_and_no_folder(own_run: Path, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    database = tracking_store.copy_to(tmp_path)
    run = tmp_path / "run"
    config = own_data.config(
        own_run / "store", run, train={"epochs": 2}, track={"mlflow": True, "uri": f"sqlite:///{database}"}
    )
    plain = FineTuning._one_step

    def step(self: FineTuning, batch: Any) -> None:
        plain(self, batch)
        if self.step == 8:
            raise RuntimeError("pulled the plug")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FineTuning, "_one_step", step)
        with pytest.raises(RuntimeError):
            finetune(config)
    client = MlflowClient(f"sqlite:///{database}")
    (found,) = client.search_runs(["1"])
    assert found.info.status == "FAILED"
    assert len(client.get_metric_history(found.info.run_id, "train/loss")) >= 3
    finetune(config)
    (found,) = client.search_runs(["1"])
    assert found.info.status == "FINISHED"
    steps = [point.step for point in client.get_metric_history(found.info.run_id, "train/loss")]
    assert steps == sorted(set(steps))
    assert found.data.metrics["test/auroc/Blob"] == pytest.approx(result_of(run)["scores"][0]["value"])
    assert {"val/auroc", "train/lr", "test/auroc/Blob.low"} <= set(found.data.metrics) | {"test/auroc/Blob.low"}
    assert found.data.tags["store_hash"] == result_of(run)["record"]["store_hash"]
    assert found.data.tags["medvlp.kind"] == "finetune"
    assert found.data.params["train.epochs"] == "2"
    assert str(tmp_path) not in json.dumps(found.data.params)
    assert str(own_run) not in json.dumps(found.data.params)
    names = {file.path for file in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "model_card.md", "result.json"} <= names


def test_a_fine_tuned_run_is_an_encoder_again(own_run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(own_run / "run"))
    assert encoder.name == "run"
    model = load_tuned(own_run / "run")
    pixels = torch.randn(3, 1, 32, 32)
    with torch.inference_mode():
        expected = model.network.head(encoder(pixels).pooled)
        assert torch.equal(model.network(pixels), expected)
    done = finetune(
        own_data.config(
            own_run / "store",
            tmp_path / "again",
            encoder=str(own_run / "run"),
            data={"labels": ["Blob"]},
            train={"steps": 2, "freeze_encoder": True},
        )
    )
    assert {row["label"] for row in done.scores} == {"Blob", "macro"}
    before, after = weights(own_run / "run"), weights(tmp_path / "again")
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "head" not in name)


def test_questions_with_a_negative_column_and_splits_of_the_store(tmp_path: Path) -> None:
    store = own_data.make_store(tmp_path, patients=48, splits=True)
    label = {"name": "blob, no bar", "positive": "Blob", "negative": "Bar"}
    finetune(own_data.config(store, tmp_path / "run", data={"labels": [label, "Bar"]}, train={"steps": 2}))
    result = result_of(tmp_path / "run")
    assert result["record"]["split_rule"] == "splits of the store"
    assert {row["label"] for row in result["scores"]} == {"blob, no bar", "Bar", "macro"}
    frame = pd.read_parquet(tmp_path / "run" / "predictions" / "test.parquet")
    assert np.isnan(frame["label:blob, no bar"]).any()
    assert frame["patient_id"].str.fullmatch("[0-9a-f]{20}").all(), "ids of a personal data set are hashed"


def test_test_images_that_are_training_images_are_told(tmp_path: Path) -> None:
    root = own_data.write_export(tmp_path / "export", 40, splits=True)
    files = {path.name: path for path in root.rglob("*.dcm")}  # of two patients: pixels alone are the same
    own_data.write_file(files["im006.dcm"], 6, pixels=own_data.picture(True, True, 0))
    assert "split" in (root / "labels.csv").read_text()
    source = {"source": "dicom_folder", "root": root, "out": tmp_path / "store", "options": {"labels": "labels.csv"}}
    given = {"image": {"size": 32}, "num_workers": 1, "identifiers": {"salt": tmp_path / "private" / "salt"}}
    prepare(PrepareConfig.model_validate(source | given))
    done = finetune(own_data.config(tmp_path / "store", tmp_path / "run", train={"steps": 1}))
    assert any("1 test images have the same pixels" in note for note in done.notes)


def bad(own_run: Path, tmp_path: Path, case: str) -> Any:
    """Return a configuration with one mistake, made on disk where it belongs there."""
    store, run = own_run / "store", tmp_path / "run"
    if case == "unknown label":
        return own_data.config(store, run, data={"labels": ["Blub"]})
    if case == "one class":
        return own_data.config(store, run, data={"labels": ["Blob", "Rare"]})
    if case == "no labels":
        copy = shutil.copytree(store, tmp_path / "store")
        meta = json.loads((copy / "store.json").read_text())
        (copy / "store.json").write_text(json.dumps(meta | {"labels": []}))
        return own_data.config(copy, run)
    if case == "broken encoder":
        folder = tmp_path / "encoder"
        folder.mkdir()
        (folder / "config.json").write_text("{")
        return own_data.config(store, run, encoder=f"timm:{folder}")
    if case == "no encoder":
        return own_data.config(store, run, encoder=str(tmp_path / "nowhere"))
    if case == "diverges":
        return own_data.config(store, run, train={"lr": 1e30, "warmup_steps": 0})
    if case == "other run":
        run.mkdir()
        (run / "config.yaml").write_text("kind: pretrain\n")
        return own_data.config(store, run)
    if case == "other settings":
        shutil.copytree(own_run / "run", run)
        return own_data.config(store, run, train={"lr": 0.5})
    if case == "other labels":
        shutil.copytree(own_run / "run", run)
        return own_data.config(store, run, data={"labels": ["Blob"]})
    if case == "other encoder":
        shutil.copytree(own_run / "run", run)
        return own_data.config(store, run, encoder="random:resnet10t@32", alpha=0.1)
    if case == "no view":
        return own_data.config(store, run, data={"views": ["LATERAL"]})
    assert case == "no store"
    return own_data.config(tmp_path / "gone", run)


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("unknown label", r"no label 'Blub'. Did you mean 'Blob'"),
        ("one class", r"one class only \(Rare: 0 positive and 48 negative\)"),
        ("no labels", "The store has no labels"),
        ("broken encoder", "cannot be read"),
        ("no encoder", "There is no encoder"),
        ("diverges", "not finite"),
        ("other run", r"run of another kind \(pretrain\)"),
        ("other settings", r"train.lr: 0.003 before, 0.5 now"),
        ("other labels", r"data.labels"),
        ("other encoder", "The encoder is not what this run began with"),
        ("no view", "one class only"),
        ("no store", "There is no prepared store"),
    ],
)
def test_a_mistake_says_what_where_and_how_to_mend(case: str, what: str, own_run: Path, tmp_path: Path) -> None:
    config = bad(own_run, tmp_path, case)
    with pytest.raises(UserError, match=what) as caught:
        finetune(config)
    assert caught.value.where
    assert caught.value.fix
    assert not (tmp_path / "run" / "model").exists() or "other" in case


def test_the_head_is_that_of_a_task(own_run: Path, tmp_path: Path) -> None:
    """A LayerNorm, two exclusive classes, and the state with the best F1; the same answers when it is loaded again."""
    how = {"norm": True, "classes": "exclusive", "select": "f1", "init": "truncated_normal"}
    changes = {"classification": how, "data": {"labels": ["Blob"]}}
    finetune(own_data.config(own_run / "store", tmp_path / "run", **changes))
    model = load_tuned(tmp_path / "run")
    assert model.task.classification.classes == "exclusive"
    head = load_file(tmp_path / "run" / "model" / "head.safetensors")
    assert {name: len(value) for name, value in head.items()} == {
        **{"head.weight": 2, "head.bias": 2, "norm.weight": head["head.weight"].shape[1]},
        "norm.bias": head["head.weight"].shape[1],
    }
    assert "val_f1" in result_of(tmp_path / "run")["chosen"]
    file = next((own_run / "export").rglob("im000.dcm"))
    predict(tmp_path / "run", [file], tmp_path / "out.csv")
    (one,) = pd.read_csv(tmp_path / "out.csv")["probability:Blob"]
    assert 0 <= one <= 1


def test_settings_of_one_label_are_refused_for_several(own_run: Path, tmp_path: Path) -> None:
    for how in ({"classes": "exclusive"}, {"select": "f1"}):
        with pytest.raises(UserError, match="for one label, and there are"):
            finetune(own_data.config(own_run / "store", tmp_path / "run", classification=how))
    for given, message in (
        ({"task": "segmentation", "classification": {"norm": True}}, "classification has no effect"),
        ({"classification": {"legacy_scores": True}}, "belongs to tasks of the benchmark"),
    ):
        with pytest.raises(ValueError, match=message):
            own_data.config(own_run / "store", tmp_path / "run", **given)
