"""The plan of memory against what a step keeps when it is really made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
from typer.testing import CliRunner

from medvlp.cli import app
from medvlp.config.train import PretrainConfig
from medvlp.train.memory_plan import Allocations, _parts, most_in_step, plan_memory


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_store.make_store(tmp_path_factory.mktemp("tiny"), patients=40)


def config(store: Path, **train: Any) -> PretrainConfig:
    image = {"name": "vit_tiny_patch16_224", "args": {"depth": 4, "embed_dim": 96}, "input": {"size": 64}}
    return tiny_store.config(store, store / "run", "clip", method={"image": image}, train={"batch_size": 24} | train)


def kept(of: PretrainConfig) -> int:
    """Bytes that the graph of a real forward pass keeps for the backward pass, besides weights and batch."""
    method, batch = _parts(of)
    method.train()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*method.parameters(), *method.buffers(), batch.pixels)}
    sizes: dict[int, int] = {}
    alive = []  # storages whose addresses are counted must not be used again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    bf16 = of.train.precision == "bf16"
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        torch.stack([value for value, _ in method.losses(batch).values()]).sum()
    return sum(sizes.values())


@pytest.mark.parametrize("train", [{}, {"precision": "bf16"}, {"batch_size": 12}])
def test_activations_are_what_the_graph_keeps(store: Path, train: dict[str, Any]) -> None:
    of = config(store, **train)
    method, batch = _parts(of)
    plan = plan_memory(of)
    assert plan.by_shapes
    step = most_in_step(method, batch, of)  # really made
    planned = plan.activations + plan.gradients
    assert planned == pytest.approx(step, rel=0.02)
    assert planned == pytest.approx(kept(of), rel=0.15)


def test_weights_gradients_and_states(store: Path) -> None:
    plain = plan_memory(config(store))
    method, _ = _parts(config(store))
    weights = [4 * parameter.numel() for parameter in method.parameters()]
    assert plain.gradients == sum(weights)
    assert plain.optimizer == 2 * sum(weights)
    assert plain.parameters == sum(weights) + sum(b.numel() * b.element_size() for b in method.buffers())
    sgd = plan_memory(config(store, ema=0.9, optimizer={"name": "sgd"}))
    assert sgd.optimizer == sum(weights) + plain.parameters


def test_checkpointing_cache_and_precision_save_what_they_should(store: Path) -> None:
    plans = {
        name: plan_memory(config(store, **train)).activations
        for name, train in {
            "plain": {},
            "bf16": {"precision": "bf16"},
            "checkpoints": {"gradient_checkpointing": True},
            "cache": {"grad_cache": 4},
        }.items()
    }
    assert plans["bf16"] < 0.9 * plans["plain"]
    assert plans["checkpoints"] < 0.7 * plans["plain"]
    assert plans["cache"] < 0.4 * plans["plain"]


def test_freed_storages_are_no_longer_counted() -> None:
    with Allocations([]) as counted:
        one = torch.ones(1000)
        two = one.view(10, 100) + 1
        del one
        three = two.clone()
    assert counted.most == 8000
    assert counted.live == 8000
    del two, three
    assert counted.live == 0


def test_the_verb_tells_it(store: Path, tmp_path: Path) -> None:
    import yaml

    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(config(store).resolved()))
    result = CliRunner().invoke(app, ["plan-memory", str(file)])
    assert result.exit_code == 0, result.output
    assert "most at a time" in result.output
    assert not (store / "run").exists()
