"""Lookahead: k steps forward, one step back (Zhang et al., NeurIPS 2019, arXiv 1907.08610).

Guarantee: the slow weights start as the weights do, and what a step does is a function of the step and of both weights;
so a run that was stopped between two steps back goes on as if it had not been. timm's wrapper takes the slow weights
from after the first k steps and counts in the groups of the optimiser, which are not kept by parameter name.
"""

from __future__ import annotations

import torch
from torch import nn

from medvlp.config.train import LookaheadConfig


class Lookahead:
    """The slow weights of a module whose own weights an optimiser moves: `slow += alpha (weights - slow)`.

    Args:
        module: The module in training.
        config: Steps between two steps back, and `alpha`.

    Attributes:
        tensors: Slow weights of the trainable parameters, by name.
    """

    def __init__(self, module: nn.Module, config: LookaheadConfig) -> None:
        self.config = config
        self.tensors = {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Step back where it is due, after the optimiser's step, which is counted from 0."""
        if (step + 1) % self.config.steps == 0:
            for name, slow in self.tensors.items():
                parameter = module.get_parameter(name)
                parameter.copy_(slow.lerp_(parameter, self.config.alpha))
