"""The loop of fine-tuning: the same bits after any stop, a frozen encoder, and what ends it."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pytest
import torch

from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.vision2d import ImageTower
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._classifier import macro_auroc
from medvlp.tasks._fine_tune import FineTuning, Keeping, seeded
from medvlp.train.checkpoint import list_checkpoints, load_newest
from medvlp.zoo import Encoder, load_encoder

SETTINGS: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.003, "warmup_steps": 2, "ema": 0.7}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(bench_store.make_store(tmp_path_factory.mktemp("tune"), patients=48, test_patients=12))


def dropping_encoder(store: Store) -> Encoder:
    """Return an encoder with stochastic depth, so that the draws of every step matter."""
    encoder = load_encoder(bench_store.RANDOM, stored=store.image_config)
    config: ImageTowerConfig = encoder.image_tower.config.model_copy(update={"drop_path": 0.4})
    with seeded(3, "cpu"):
        tower = ImageTower(config)
    return Encoder("dropping", tower, tower.dim, encoder.preprocessing, {})


def tuning_of(store: Store, encoder: Encoder, settings: dict[str, Any], keeping: Keeping | None = None) -> FineTuning:
    task = TASKS.get("classification")(bench_store.task(fine_tune=settings))
    samples = task.samples(store)
    tunable = task.tunable(encoder, store, samples["train"], samples["val"], seed=5)
    checkpoint = None if keeping is None else load_newest(keeping.folder)
    return FineTuning(tunable, task.config.fine_tune, 5, keeping, checkpoint)


def run(store: Store, folder: Path, stop_at: int | None = None, **changes: Any) -> tuple[FineTuning, list[Any]]:
    """Train with checkpoints every two steps; `stop_at` breaks it off when that step's metrics are logged."""
    curve: list[Any] = []

    def log(metrics: dict[str, float], step: int) -> None:
        if step == stop_at:
            raise RuntimeError("pulled the plug")
        curve.append((step, {name: value for name, value in metrics.items() if "second" not in name}))

    keeping = Keeping(folder, 2, 1, {}, log, threading.Event())
    with seeded(11, "cpu"):
        tuning = tuning_of(store, dropping_encoder(store), SETTINGS | changes, keeping)
        tuning.run()
    return tuning, curve


def test_it_ends_with_the_same_bits_after_a_stop_at_any_step(store: Store, tmp_path: Path) -> None:
    whole, curve = run(store, tmp_path / "whole")
    assert whole.step == whole.total == 3 * whole.per_epoch
    assert len({entry["val_auroc"] for entry in whole.history}) > 1, "a run in which nothing happens proves nothing"
    for step in range(1, whole.total + 1):
        folder = tmp_path / str(step)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run(store, folder, stop_at=step)
        again, rest = run(store, folder)
        assert again.history == whole.history
        assert rest == curve[len(curve) - len(rest) :]
        state = again.network.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.network.state_dict().items()), step
        assert len(list_checkpoints(folder)) == 1


def test_a_wish_to_stop_is_kept_and_obeyed(store: Store, tmp_path: Path) -> None:
    asked = threading.Event()
    keeping = Keeping(tmp_path, 100, 1, {"more": 1}, lambda _, step: asked.set() if step == 1 else None, asked)
    tuning = tuning_of(store, dropping_encoder(store), SETTINGS, keeping)
    with pytest.raises(KeyboardInterrupt):
        tuning.run()
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == tuning.step < tuning.total
    assert checkpoint.state["more"] == 1


@pytest.mark.parametrize("name", ["resnet10t", "test_vit"])
def test_a_frozen_encoder_stays_as_it_is_and_the_head_learns(store: Store, name: str) -> None:
    encoder = load_encoder(f"random:{name}@32", stored=store.image_config)
    before = copy.deepcopy(encoder.image_tower.state_dict())
    tuning = tuning_of(store, encoder, {**SETTINGS, "freeze_encoder": True, "ema": None})
    head = {key: value.clone() for key, value in tuning.network.head.state_dict().items()}
    tuning.run()
    tower = tuning.network.tower.state_dict()  # running statistics of normalisation, too
    assert all(torch.equal(value, tower[key]) for key, value in before.items())
    assert not any(torch.equal(value, head[key]) for key, value in tuning.network.head.state_dict().items())


def test_length_by_steps_and_patience(store: Store) -> None:
    encoder = load_encoder(bench_store.RANDOM, stored=store.image_config)
    tuning = tuning_of(store, encoder, {**SETTINGS, "steps": 5})
    chosen = tuning.run()
    assert tuning.step == 5
    assert [entry["step"] for entry in tuning.history][-1] == 5, "the last step is validated, also within an epoch"
    assert chosen["val_auroc"] == max(entry["val_auroc"] for entry in tuning.history)
    tuning = tuning_of(store, encoder, {**SETTINGS, "epochs": 9, "patience": 2})
    values = iter([0.5, 0.7, 0.7, 0.6, 0.9])
    tuning.tunable.validate = lambda network: next(values)  # type: ignore[method-assign]
    assert tuning.run()["epoch"] == 1
    assert len(tuning.history) == 4


def test_a_loss_that_is_not_finite_ends_it_before_anything_is_kept(store: Store, tmp_path: Path) -> None:
    encoder = load_encoder(bench_store.RANDOM, stored=store.image_config)
    with torch.no_grad():
        next(encoder.image_tower.parameters()).fill_(float("nan"))
    keeping = Keeping(tmp_path, 1, 1, {}, lambda *_: None, threading.Event())
    tuning = tuning_of(store, encoder, SETTINGS, keeping)
    with pytest.raises(UserError, match="'bce' is not finite at step 1") as caught:
        tuning.run()
    assert caught.value.where
    assert "Lower lr" in caught.value.fix
    assert not tmp_path.exists() or not list_checkpoints(tmp_path)


def test_macro_auroc_leaves_out_labels_of_one_class() -> None:
    labels = np.array([[1, 1, np.nan], [0, 1, np.nan], [np.nan, 1, np.nan], [1, 1, 1]])
    scores = np.array([[0.9, 0, 0], [0.1, 1, 1], [0.0, 2, 2], [0.05, 3, 3]])
    assert macro_auroc(labels, scores) == 0.5
    assert np.isnan(macro_auroc(labels[:, 1:], scores[:, 1:]))
