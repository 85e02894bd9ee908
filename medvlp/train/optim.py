"""Optimiser and learning-rate schedule.

Guarantee: the learning rate is a function of the step alone. Norms, biases, scales and other parameters with fewer than
two dimensions have no weight decay. State is kept by parameter name.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from medvlp.config.schema import OptimizerConfig
from medvlp.train.distributed import shard_like, whole


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW or SGD over the trainable parameters, in two groups: with and without weight decay."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Return the rate of a step, counted from 0: linear to `lr`, then a cosine to `min_lr_ratio · lr`."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return config.lr * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


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
