"""Fine-tuning and zero-shot on a tiny store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._classifier import masked_bce
from medvlp.tasks.base import Subject
from medvlp.zoo import load_encoder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(bench_store.make_store(tmp_path_factory.mktemp("tasks")))


def make_subject(store: Store, spec: str = bench_store.RANDOM) -> tuple[Subject, Any]:
    encoder = load_encoder(spec, stored=store.image_config)
    return Subject("x", store, lambda: np.zeros((len(store), 1)), lambda: encoder), encoder


def test_fine_tuning_learns_repeats_to_the_bit_and_leaves_the_encoder_alone(store: Store) -> None:
    task = TASKS.get("classification")(
        bench_store.task(fine_tune={"epochs": 12, "batch_size": 8, "lr": 0.002, "warmup_steps": 1})
    )
    samples = task.samples(store)
    subject, encoder = make_subject(store)
    before = {name: value.clone() for name, value in encoder.image_tower.state_dict().items()}
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    heads = [task.fit(subject, "fine_tune", samples["train"], samples["val"], seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (head.predict(samples["test"]) for head in heads)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert not np.array_equal(first.scores, other.scores)
    assert roc_auc_score(first.labels[:, 0], first.scores[:, 0]) > 0.8
    after = encoder.image_tower.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    best = heads[0].best_params
    values = [entry["val_auroc"] for entry in best["history"]]
    assert best["val_auroc"] == max(values)
    assert best["epoch"] == values.index(max(values))
    val = heads[0].predict(samples["val"])
    assert roc_auc_score(val.labels[:, 0], val.scores[:, 0]) == best["val_auroc"]


def test_unknown_labels_add_nothing_to_the_loss() -> None:
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]], requires_grad=True)
    labels = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    loss = masked_bce(logits, labels)
    p = 1 / (1 + np.exp(-np.array([0.3, 2.0, 0.5])))
    assert loss.item() == pytest.approx(-(np.log(p[0]) + np.log(1 - p[1]) + np.log(p[2])) / 3, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 1] == 0
    assert float(masked_bce(logits, torch.full((2, 2), float("nan")))) == 0


def test_zero_shot_uses_the_prompts_of_the_task_and_no_training_label(store: Store, tmp_path: Path) -> None:
    task = TASKS.get("classification")(bench_store.task())
    samples = task.samples(store)
    subject, encoder = make_subject(store, str(bench_store.make_run(tmp_path / "trial")))
    nothing = samples["train"].take(np.arange(0))
    head = task.fit(subject, "zero_shot", nothing, nothing, seed=0)
    found = head.predict(samples["test"])
    pixels = store.read(store.images["index"].to_numpy()[samples["test"].rows])
    expected = encoder.zero_shot_stored(pixels, [["pneumonia"]], [["no pneumonia"]])
    np.testing.assert_allclose(found.scores, expected.numpy(), atol=1e-6)


def test_what_a_protocol_lacks_is_said(store: Store) -> None:
    task = TASKS.get("classification")(bench_store.task(labels=[{"name": "x", "positive": "Pneumonia"}]))
    samples = task.samples(store)
    subject, _ = make_subject(store)
    with pytest.raises(UserError, match="no prompts"):
        task.fit(subject, "zero_shot", samples["train"], samples["val"], seed=0)
    baseline = Subject("metadata", store, lambda: np.zeros((len(store), 1)))
    with pytest.raises(UserError, match="is no encoder"):
        task.fit(baseline, "fine_tune", samples["train"], samples["val"], seed=0)
    positives = samples["train"].take(np.flatnonzero(samples["train"].labels[:, 0] == 1))
    with pytest.raises(UserError, match="both classes"):
        task.fit(subject, "linear_probe", positives, samples["val"], seed=0)
