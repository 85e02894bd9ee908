"""An exponential moving average of a module in training.

Guarantee: weights and running statistics (the floating-point buffers of normalisation layers) are averaged alike, so
that the averaged module is consistent in evaluation.
"""

from __future__ import annotations

import torch
from torch import nn


class Average:
    """Moving average of the trainable parameters and the floating-point buffers, by their names in the state dict.

    Args:
        module: The module in training.
        decay: Share of the old average kept at each step. It warms up as `(1 + step) / (10 + step)`, so that the first
            steps do not weigh for ever.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        parameters = dict(module.named_parameters())
        self.tensors = {
            name: tensor.detach().clone()
            for name, tensor in module.state_dict().items()
            if (parameters[name].requires_grad if name in parameters else tensor.is_floating_point())
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the module after a step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        for name, tensor in self.tensors.items():
            tensor.lerp_(state[name].detach(), 1 - decay)
