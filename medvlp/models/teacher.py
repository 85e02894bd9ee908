"""A teacher: copies of modules whose weights trail those of the student by a moving average.

Guarantee: the teacher is part of the method's state dict and has no gradient; it moves only in `update`, never in a
forward pass, and always computes in evaluation mode (no dropout, running statistics).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn


class Teacher(nn.Module):
    """Copies of the student's modules, by name (mean teacher, arXiv 1703.01780; MoCo, arXiv 1911.05722).

    Args:
        students: The modules in training; the copies start equal.
    """

    def __init__(self, students: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.copies = nn.ModuleDict({name: copy.deepcopy(module) for name, module in students.items()})
        self.requires_grad_(False)
        self.eval()

    def __getitem__(self, name: str) -> nn.Module:
        """Return the teacher's copy of a module."""
        return self.copies[name]

    def train(self, mode: bool = True) -> Teacher:
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def update(self, students: Mapping[str, nn.Module], momentum: float) -> None:
        """Take in the student after a step.

        Args:
            students: The modules that the teacher was made of.
            momentum: Share of the teacher that stays; running statistics move alike, counters are copied.
        """
        for name, student in students.items():
            own, theirs = self.copies[name].state_dict(), student.state_dict()
            for key, tensor in own.items():
                if tensor.is_floating_point():
                    tensor.lerp_(theirs[key].to(tensor.dtype), 1 - momentum)
                else:
                    tensor.copy_(theirs[key])
