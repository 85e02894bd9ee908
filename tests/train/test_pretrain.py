"""The loop against plain references: resume, accumulation, average, schedule, errors, one process."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_store
import torch
import tracking_store
import transformers
import yaml
from safetensors.torch import load_file

from medvlp.data.pretraining import load_data
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model
from medvlp.methods.base import complete
from medvlp.track.jsonl import read_lines
from medvlp.train import checkpoint, loop, pretrain
from medvlp.train.checkpoint import list_checkpoints
from medvlp.train.optim import build_optimizer, learning_rate


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tiny_store.make_store(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def whole_run(store, tmp_path_factory) -> Path:
    """An undisturbed run of six steps."""
    return pretrain(tiny_store.config(store, tmp_path_factory.mktemp("whole") / "run"))


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one: Path, two: Path, tolerance: float | None = None) -> None:
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if tolerance is None:
            assert torch.equal(tensor, second[name]), name
        else:
            torch.testing.assert_close(tensor, second[name], rtol=tolerance, atol=tolerance)


def curve(run: Path) -> list[dict[str, float]]:
    timed = ("time", "train/samples_per_second", "train/data_wait")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_lines(run / "metrics.jsonl")]


def after_step(monkeypatch, step: int, action) -> None:
    """Run `action(training)` right after a step is done and before anything is written."""
    plain = loop._Training._one_step

    def with_action(self, *arguments):
        waited = plain(self, *arguments)
        if self.step + 1 == step:
            action(self)
        return waited

    monkeypatch.setattr(loop._Training, "_one_step", with_action)


def fail(_) -> None:
    raise RuntimeError("pulled the plug")


def test_a_run_leaves_what_the_next_stages_read(whole_run, store):
    assert {path.name for path in whole_run.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "tokenizer",
        "model",
    }
    resolved = tiny_store.config(store, whole_run).resolved()
    assert yaml.safe_load((whole_run / "config.yaml").read_text()) == resolved
    assert [path.name for path in list_checkpoints(whole_run / "checkpoints")] == ["step_000000004", "step_000000006"]
    model = load_model(whole_run / "model")
    assert model.preprocessing.stored.size == 32
    assert model.label_names[-1] == "Support Devices"
    assert model.record["step"] == 6
    assert model.record["data"]["train_images"] == 24
    assert str(store) not in json.dumps(model.record)
    lines = read_lines(whole_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines if "val/loss" in line] == [3, 6]
    assert all(line["train/samples_per_second"] > 0 and 0 <= line["train/data_wait"] <= 1 for line in lines)


@pytest.mark.parametrize("step", range(1, 7))
def test_a_run_stopped_after_any_step_ends_with_the_same_bits(store, whole_run, tmp_path, monkeypatch, step):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_step(patch, step, fail)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            pretrain(tiny_store.config(store, run))
    assert not (run / "model").exists()
    pretrain(tiny_store.config(store, run, data={"num_workers": step % 3}))
    assert_same_weights(run, whole_run)
    assert curve(run) == curve(whole_run)


def test_the_weights_that_a_run_started_from_are_recorded_by_hash(store, whole_run, tmp_path):
    import timm
    from safetensors.torch import save_file

    assert load_model(whole_run / "model").record["started_from"] == {}
    file = tmp_path / "start.safetensors"
    save_file(timm.create_model("test_vit", num_classes=0, in_chans=1, img_size=32).state_dict(), file)
    expected = {"image": hashlib.sha256(file.read_bytes()).hexdigest()}
    started = {"method": {"image": {"weights": str(file)}}}
    run = pretrain(tiny_store.config(store, tmp_path / "run", train={"steps": 1}, **started))
    assert load_model(run / "model").record["started_from"] == expected
    pretrain(tiny_store.config(store, run, train={"steps": 2}))  # the file is no longer needed
    assert load_model(run / "model").record["started_from"] == expected


def test_the_callers_random_state_is_left_alone(store, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    pretrain(tiny_store.config(store, tmp_path / "run", train={"steps": 1}))
    assert torch.equal(torch.rand(3), expected)


def test_a_finished_run_is_left_alone_and_a_longer_one_goes_on(store, whole_run, tmp_path, caplog):
    run = tmp_path / "run"
    first = pretrain(tiny_store.config(store, run))
    before = curve(run)
    with caplog.at_level(logging.INFO):
        pretrain(tiny_store.config(store, run))
    assert "complete at step 6" in caplog.text
    assert curve(first) == before
    pretrain(tiny_store.config(store, run, train={"steps": 8}))
    assert [line["step"] for line in curve(run)] == list(range(1, 9))
    assert load_model(run / "model").record["step"] == 8


def test_another_configuration_is_refused_with_its_keys(store, whole_run):
    changed = tiny_store.config(
        store, whole_run, train={"batch_size": 4, "steps": 9, "log_every": 3}, data={"augment": {"contrast": 0.5}}
    )
    with pytest.raises(UserError) as caught:
        pretrain(changed)
    message = str(caught.value)
    assert "data.augment.contrast: 0.2 before, 0.5 now" in message
    assert "train.batch_size: 8 before, 4 now" in message
    assert "train.steps" not in message
    assert "log_every" not in message


def test_other_data_are_refused(whole_run, tmp_path):
    other = tiny_store.make_store(tmp_path, patients=44)
    with pytest.raises(UserError, match="not those that this run began with"):
        pretrain(tiny_store.config(other, whole_run, train={"steps": 9}))


@pytest.mark.parametrize("damage", ["truncate", "flip", "state"])
def test_a_damaged_checkpoint_is_passed_over(store, whole_run, tmp_path, damage, caplog):
    run = tmp_path / "run"
    pretrain(tiny_store.config(store, run, train={"steps": 4}))
    newest = list_checkpoints(run / "checkpoints")[-1]
    file = newest / ("state.json" if damage == "state" else "optimizer.safetensors")
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2])
    caplog.clear()
    pretrain(tiny_store.config(store, run, train={"steps": 5}))
    assert "passed over" in caplog.text
    assert [line["step"] for line in curve(run)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("changed", ["labels", "pixels"])
def test_a_store_that_was_changed_by_hand_is_refused(store, tmp_path, changed):
    own, run = tmp_path / "store", tmp_path / "run"
    shutil.copytree(store, own)
    pretrain(tiny_store.config(own, run, train={"steps": 2}))
    table = own / ("studies.parquet" if changed == "labels" else "images.parquet")
    rows = pd.read_parquet(table)
    column = "label:Pneumonia" if changed == "labels" else "index"
    rows[column] = rows[column].to_numpy()[::-1]
    rows.to_parquet(table)
    with pytest.raises(UserError, match="not those that this run began with"):
        pretrain(tiny_store.config(own, run, train={"steps": 4}))


def test_a_text_tower_of_another_architecture_is_refused(store, whole_run, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "tower"
    shutil.copytree(whole_run, run)
    shutil.copytree(run / "tokenizer", folder)
    size = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 300}
    transformers.BertModel(transformers.BertConfig(hidden_size=32, **size)).save_pretrained(folder)
    with pytest.raises(UserError, match=r"encoder\.layer\.1"):
        pretrain(tiny_store.config(store, run, method={"text": {"folder": str(folder)}}, train={"steps": 8}))


@pytest.mark.parametrize("damage", [b"\xff\xfe\n", b"\0\0\0\0", b"5\n", b"{}\n"])
def test_a_damaged_curve_stops_no_run(store, whole_run, tmp_path, damage):
    run = tmp_path / "run"
    shutil.copytree(whole_run, run)
    lines = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(lines + damage)
    pretrain(tiny_store.config(store, run, train={"steps": 7}))
    assert [line["step"] for line in curve(run)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("reason", ["access", "format"])
def test_a_checkpoint_that_may_be_good_is_neither_passed_over_nor_removed(store, tmp_path, monkeypatch, reason):
    run = tmp_path / "run"
    config = tiny_store.config(store, run, train={"steps": 3, "checkpoint_every": 1})
    pretrain(config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})}))
    newest = run / "checkpoints" / "step_000000002"
    if reason == "format":
        state = json.loads((newest / "state.json").read_text())
        (newest / "state.json").write_text(json.dumps(state | {"format": 99}))
    else:

        def refused(_: Path) -> str:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(checkpoint, "file_sha256", refused)
    with pytest.raises(UserError, match=r"format 99|cannot be read: .*Permission denied"):
        pretrain(config)
    assert newest.is_dir()
    assert not (run / "checkpoints" / "step_000000003").exists()


def test_weights_that_are_not_finite_are_never_saved(store, tmp_path, monkeypatch):
    def spoil(training) -> None:
        next(training.method.parameters()).data.view(-1)[0] = math.inf

    after_step(monkeypatch, 4, spoil)
    run = tmp_path / "run"
    train = {"steps": 4, "validate_every": 100, "optimizer": {"clip_norm": None}}
    with pytest.raises(UserError, match=r"weight 'log_scale' is not finite at step 4\."):
        pretrain(tiny_store.config(store, run, data={"split": "val"}, train=train | {"batch_size": 2}))
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_000000002"]
    assert not (run / "model").exists()


def test_a_second_run_in_the_same_folder_at_the_same_time_is_refused(store, whole_run, tmp_path, monkeypatch):
    run, refusals = tmp_path / "run", []

    def start_again(_) -> None:
        with pytest.raises(UserError, match=r"Another run is writing this run\.dir") as refused:
            pretrain(tiny_store.config(store, run))
        refusals.append(refused.value.where)

    with monkeypatch.context() as patch:
        after_step(patch, 3, start_again)
        pretrain(tiny_store.config(store, run))
    assert refusals == [str(run)]
    assert_same_weights(run, whole_run)


def test_a_refused_run_leaves_no_folder(store, tmp_path):
    with pytest.raises(UserError, match="fewer than one batch"):
        pretrain(tiny_store.config(store, tmp_path / "run", train={"batch_size": 800}))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_never_takes_the_place_of_a_good_one(store, tmp_path):
    run = tmp_path / "run"
    settings = {"checkpoint_every": 1, "keep_checkpoints": 1}
    pretrain(tiny_store.config(store, run, train=settings | {"steps": 2}))
    damaged = run / "checkpoints" / "step_000000009"
    damaged.mkdir()
    pretrain(tiny_store.config(store, run, train=settings | {"steps": 3}))
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step_000000003"]


def test_validation_keeps_its_own_time(store, tmp_path):
    run = pretrain(tiny_store.config(store, tmp_path / "run", train={"log_every": 5, "validate_every": 2, "steps": 5}))
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "val/loss" in line] == [2, 4, 5]


def test_a_kill_between_the_last_checkpoint_and_the_model_is_mended(store, whole_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_write_model", fail)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            pretrain(tiny_store.config(store, run))
    pretrain(tiny_store.config(store, run))
    assert_same_weights(run, whole_run)
    before = (run / "model" / "config.json").stat().st_mtime_ns
    pretrain(tiny_store.config(store, run))
    assert (run / "model" / "config.json").stat().st_mtime_ns == before


def test_a_full_disk_names_the_step_and_keeps_the_checkpoint_before(store, whole_run, tmp_path, monkeypatch):
    import resource

    run, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    with monkeypatch.context() as patch:
        after_step(patch, 4, fill)
        try:
            with pytest.raises(UserError, match="checkpoint of step 4 cannot be written"):
                pretrain(tiny_store.config(store, run))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000000002"]
    pretrain(tiny_store.config(store, run))
    assert_same_weights(run, whole_run)


def test_ctrl_c_saves_and_the_same_command_goes_on(store, whole_run, tmp_path, monkeypatch, caplog):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        after_step(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_store.config(store, run))
    assert "Stopped at step 3" in caplog.text
    assert list_checkpoints(run / "checkpoints")[-1].name == "step_000000003"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    pretrain(tiny_store.config(store, run))
    assert_same_weights(run, whole_run)


def test_a_loss_that_is_not_finite_names_term_and_step_and_keeps_the_last_good_checkpoint(store, tmp_path, monkeypatch):
    kind = METHODS.get("medclip")
    plain, calls = kind.losses, []

    def broken(self, batch):
        terms = plain(self, batch)
        calls.append(self.training)
        if sum(calls) == 6:
            terms["soft_label"] = (terms["soft_label"][0] * math.nan, terms["soft_label"][1])
        return terms

    monkeypatch.setattr(kind, "losses", broken)
    settings = {"steps": 12, "checkpoint_every": 4, "log_every": 4, "validate_every": 100}
    with pytest.raises(UserError, match=r"loss term 'soft_label' is not finite at step 6\."):
        pretrain(tiny_store.config(store, tmp_path / "run", train=settings))
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["step_000000004"]
    written = json.loads((tmp_path / "run" / "not_finite_rank0.json").read_text())
    config = tiny_store.config(store, tmp_path / "again")
    demands = kind.demands(complete(config.method))
    data = load_data(config, tokenizer_folder=tmp_path / "again", demands=demands)
    sixth = next(itertools.islice(data.loader(config).stream(), 5, None))
    assert written["image_ids"] == data.store.images["image_id"].iloc[sixth.index.numpy()].tolist()


def test_a_term_without_anything_to_work_on_is_reported_once(store, tmp_path, monkeypatch, caplog):
    kind = METHODS.get("medclip")
    plain = kind.losses

    def with_dead(self, batch):
        return plain(self, batch) | {"grounding": (torch.zeros(()), torch.zeros(()))}

    monkeypatch.setattr(kind, "losses", with_dead)
    pretrain(tiny_store.config(store, tmp_path / "run", train={"steps": 3}))
    assert caplog.text.count("'grounding' had nothing to work on") == 1


def test_accumulation_is_the_mean_gradient_of_its_micro_batches(store, tmp_path):
    optimizer = {"name": "sgd", "lr": 0.1, "clip_norm": None, "warmup_steps": 0, "weight_decay": 0.0, "momentum": 0.0}
    settings = {"steps": 1, "batch_size": 16, "accumulate": 2, "optimizer": optimizer}
    config = tiny_store.config(store, tmp_path / "run", method={"text": {"dropout": 0.0}}, train=settings)
    training = loop._Training(config, loop.Processes(0, 1, torch.device("cpu")))
    start = {name: p.detach().clone() for name, p in training.method.named_parameters()}
    batches = training.data.loader(config).epoch(0)
    for _ in range(2):
        torch.stack([value for value, _ in training.method(next(batches)).values()]).sum().backward()
    expected = {n: start[n] - 0.1 * p.grad / 2 for n, p in training.method.named_parameters()}
    pretrain(config)
    for name, tensor in weights(tmp_path / "run").items():
        if name in expected:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


def test_the_averaged_weights_are_what_is_saved(store, tmp_path):
    run = tmp_path / "run"
    settings = {"ema": 0.7, "checkpoint_every": 1, "keep_checkpoints": 9}
    pretrain(tiny_store.config(store, run, train=settings | {"steps": 1}))
    pretrain(tiny_store.config(store, run, train=settings))  # resumed, so that the average was loaded, too
    steps = [load_file(path / "model.safetensors") for path in list_checkpoints(run / "checkpoints")]
    first = loop._Training(
        tiny_store.config(store, tmp_path / "fresh"), loop.Processes(0, 1, torch.device("cpu"))
    ).method.state_dict()
    name = "image_projection.layers.0.weight" if "image_projection.layers.0.weight" in first else next(iter(steps[0]))
    expected = first[name].double()
    for k, step in enumerate(steps):
        decay = min(0.7, (1 + k) / (10 + k))
        expected = decay * expected + (1 - decay) * step[name].double()
    assert np.allclose(weights(run)[name].double(), expected, atol=1e-6)
    assert not np.allclose(weights(run)[name], steps[-1][name], atol=1e-6)


def test_gradient_checkpointing_changes_nothing(store, whole_run, tmp_path):
    run = pretrain(tiny_store.config(store, tmp_path / "run", train={"gradient_checkpointing": True}))
    assert_same_weights(run, whole_run, tolerance=1e-4)


def test_bf16_trains_close_to_fp32(store, whole_run, tmp_path):
    run = pretrain(tiny_store.config(store, tmp_path / "run", train={"precision": "bf16"}))
    assert curve(run)[0]["train/loss"] == pytest.approx(curve(whole_run)[0]["train/loss"], rel=0.02)
    assert curve(run)[0]["train/loss"] != curve(whole_run)[0]["train/loss"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(run).values() if tensor.is_floating_point())


@pytest.mark.slow
def test_compiled_training_ends_near_the_plain_one(store, whole_run, tmp_path):
    run = pretrain(tiny_store.config(store, tmp_path / "run", train={"compile": True}))
    assert curve(run)[-1]["train/loss"] == pytest.approx(curve(whole_run)[-1]["train/loss"], rel=0.05)
    assert weights(run).keys() == weights(whole_run).keys()


def test_learning_rate_warms_up_and_falls_to_its_floor():
    from medvlp.config.train import OptimizerConfig

    config = OptimizerConfig(lr=1.0, warmup_steps=4, min_lr_ratio=0.1)
    rates = [learning_rate(config, step, 104) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert rates[54] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[4:]))


def test_norms_biases_and_scales_are_not_decayed():
    from medvlp.config.train import OptimizerConfig

    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    module.scale = torch.nn.Parameter(torch.zeros(1))
    module.frozen = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    groups = build_optimizer(module, OptimizerConfig(weight_decay=0.3)).param_groups
    decayed = [p for group in groups if group["weight_decay"] for p in group["params"]]
    assert [tuple(p.shape) for p in decayed] == [(2, 3)]
    assert sum(len(group["params"]) for group in groups) == 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_a_clear_error(store, tmp_path):
    with pytest.raises(UserError, match="no CUDA device"):
        pretrain(tiny_store.config(store, tmp_path / "run", train={"device": "cuda"}))
    assert not (tmp_path / "run").exists()


def test_mlflow_has_one_run_with_true_states_across_an_interruption(store, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = {"track": {"mlflow": True, "system_metrics": False}}
    run, _ = tmp_path / "run", tracking_store.copy_to(tmp_path)
    with monkeypatch.context() as patch:
        after_step(patch, 3, lambda _: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            pretrain(tiny_store.config(store, run, **changes))
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run_id = (run / "mlflow_run_id").read_text()
    assert client.get_run(run_id).info.status == "KILLED"
    pretrain(tiny_store.config(store, run, **changes))
    done = client.get_run(run_id)
    assert done.info.status == "FINISHED"
    assert len(client.search_runs([done.info.experiment_id])) == 1
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == [1, 2, 3, 4, 5, 6]
    assert done.data.params["train.optimizer.lr"] == "0.001"
    assert done.data.params["data.store"] == "store"
    assert len(done.data.tags["store_hash"]) == 64
