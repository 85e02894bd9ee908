"""Optimiser and learning-rate schedule.

Guarantee: the learning rate is a function of the step alone. Norms, biases, scales and other parameters with fewer than
two dimensions have no weight decay. State is kept by parameter name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from medvlp.config.train import OptimizerConfig
from medvlp.train.distributed import shard_like, whole


def build_optimizer(
    module: nn.Module, config: OptimizerConfig, factors: Mapping[str, float] | None = None
) -> torch.optim.Optimizer:
    """Return the optimiser over the trainable parameters.

    Args:
        module: Owns the parameters.
        config: Kind and constants.
        factors: Beginning of parameter names -> factor of the learning rate; the longest that fits counts. A group's
            factor stands under `lr_factor`.
    """
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            fitting = [start for start in factors or {} if name.startswith(start)]
            factor = (factors or {})[max(fitting, key=len)] if fitting else 1.0
            groups.setdefault((factor, parameter.ndim >= 2), []).append(parameter)
    described: list[dict[str, Any]] = [
        {"params": members, "weight_decay": config.weight_decay if decays else 0.0, "lr_factor": factor}
        for (factor, decays), members in sorted(
            groups.items(), key=lambda item: (item[0][0] != 1, item[0][0], not item[0][1])
        )
    ]
    if config.name == "sgd":
        return torch.optim.SGD(described, lr=config.lr, momentum=config.momentum)
    kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
    return kind(described, lr=config.lr, betas=config.betas, eps=config.eps)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: linear to `lr`, then a cosine or a line to `min_lr_ratio · lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    left = 1 - min(1.0, done)
    share = {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}[config.schedule]
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * share)


def optimizer_tensors(optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as `<parameter>/<name>` -> whole tensor; all ranks must call."""
    tensors = {}
    for name, parameter in module.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{name}/{key}"] = whole(value).detach()
    return tensors


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Inverse of `optimizer_tensors`."""
    for name, parameter in module.named_parameters():
        own = {key.removeprefix(f"{name}/"): t for key, t in tensors.items() if key.rpartition("/")[0] == name}
        if own:  # counters stay where the optimiser keeps them, on the CPU
            optimizer.state[parameter] = {
                key: shard_like(value, parameter) if value.shape == parameter.shape and value.ndim else value.clone()
                for key, value in own.items()
            }
