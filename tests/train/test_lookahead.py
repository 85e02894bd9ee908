"""Lookahead against timm's wrapper and by hand; a run with it resumes exactly and saves the slow weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_store
import torch
from safetensors.torch import load_file
from timm.optim import Lookahead as TimmLookahead
from torch import nn

from medvlp.config.train import LookaheadConfig, OptimizerConfig
from medvlp.train import loop, pretrain
from medvlp.train.checkpoint import list_checkpoints, read_checkpoint
from medvlp.train.lookahead import Lookahead
from medvlp.train.optim import build_optimizer

STEPS, ALPHA = 3, 0.3


def module() -> nn.Sequential:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    made[2].bias.requires_grad_(False)
    return made


def step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    optimizer.zero_grad()
    inputs = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
    model(inputs).square().mean().backward()
    optimizer.step()


def test_steps_are_those_of_timm_once_its_slow_weights_start_with_the_weights() -> None:
    config = OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.0)
    ours, theirs = module(), module()
    plain = build_optimizer(ours, config)
    lookahead = Lookahead(ours, LookaheadConfig(steps=STEPS, alpha=ALPHA))
    base = build_optimizer(theirs, config)
    for parameter in theirs.parameters():
        base.state[parameter]["lookahead_slow_buff"] = parameter.detach().clone()
    wrapped = TimmLookahead(base, alpha=ALPHA, k=STEPS)
    for number in range(10):
        step(ours, plain, number)
        fast = {name: parameter.detach().clone() for name, parameter in ours.named_parameters()}
        slow = {name: tensor.clone() for name, tensor in lookahead.tensors.items()}
        lookahead.update(ours, number)
        step(theirs, wrapped, number)
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, theirs.get_parameter(name), rtol=1e-12, atol=1e-14)
            back = (number + 1) % STEPS == 0 and name in slow
            expected = slow[name] + ALPHA * (fast[name] - slow[name]) if back else fast[name]
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-14)
    assert set(lookahead.tensors) == {"0.weight", "0.bias", "2.weight"}


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_run_stopped_between_two_steps_back_ends_with_the_same_bits(tmp_path, monkeypatch, ema):
    store = tiny_store.make_store(tmp_path)
    optimizer = {"name": "sgd", "lr": 0.1, "warmup_steps": 0, "lookahead": {"steps": 4, "alpha": 0.5}}
    changes: dict[str, Any] = {"train": {"steps": 7, "ema": ema, "checkpoint_every": 1, "optimizer": optimizer}}
    whole = pretrain(tiny_store.config(store, tmp_path / "whole", **changes))
    plain = loop._Training._one_step

    def stops(self: loop._Training, *arguments: Any) -> float:
        if self.step == 3:
            raise RuntimeError("pulled the plug")
        return plain(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop._Training, "_one_step", stops)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            pretrain(tiny_store.config(store, tmp_path / "stopped", **changes))
    again = pretrain(tiny_store.config(store, tmp_path / "stopped", **changes))
    parts = [read_checkpoint(list_checkpoints(run / "checkpoints")[-1]).tensors for run in (whole, again)]
    assert parts[0].keys() == parts[1].keys() == {"model", "optimizer", "lookahead"} | ({"average"} if ema else set())
    for part, tensors in parts[0].items():
        assert all(torch.equal(tensor, parts[1][part][name]) for name, tensor in tensors.items()), part
    saved = [load_file(Path(run) / "model" / "model.safetensors") for run in (whole, again)]
    assert all(torch.equal(tensor, saved[1][name]) for name, tensor in saved[0].items())
    kept = parts[0]["average" if ema else "lookahead"]
    assert all(torch.equal(tensor, saved[0][name]) for name, tensor in kept.items())
    assert any(not torch.equal(tensor, parts[0]["model"][name]) for name, tensor in kept.items())
