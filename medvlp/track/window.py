"""Loss terms between two log calls, kept on the device so that no step waits for them.

Guarantee: a term that is not finite is found, with the first step at which it was, before anything is logged or saved.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
import torch.distributed as dist

from medvlp.errors import UserError

logger = logging.getLogger(__name__)

GRADIENT = "grad_norm"


class NotFiniteError(UserError):
    """A loss term, the gradient or a weight is not finite; `step`, counted from 1, is the first at which it was not."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(
            f"The {term} is not finite at step {step}.",
            "train",
            "Lower train.optimizer.lr or use precision fp32, then run again: the last good checkpoint is kept.",
        )
        self.term, self.step = term, step


class Window:
    """Sums of value and count of each term over the micro-batches since the last `close`.

    Args:
        warn: Report, once, a term that had nothing to work on in a whole window.
    """

    def __init__(self, warn: bool = True) -> None:
        self.warn = warn
        self._sums: dict[str, torch.Tensor] = {}
        self._entries: dict[str, int] = {}
        self._figures = {GRADIENT}
        self._warned: set[str] = set()

    def add(self, terms: Mapping[str, tuple[torch.Tensor, torch.Tensor]], step: int, in_loss: bool = True) -> None:
        """Take in the terms of one micro-batch of a step, counted from 1; figures (not `in_loss`) add to no loss."""
        if not in_loss:
            self._figures |= set(terms)
        for name, (value, count) in terms.items():
            value, count = value.detach().float().reshape(()), count.detach().float().reshape(())
            bad = torch.where(value.isfinite(), math.inf, float(step))
            if name in self._sums:
                value_sum, count_sum, first_bad = self._sums[name]
                value, count, bad = value_sum + value, count_sum + count, torch.minimum(first_bad, bad)
            self._sums[name] = torch.stack([value, count, bad])
            self._entries[name] = self._entries.get(name, 0) + 1

    def close(self, step: int) -> dict[str, float]:
        """Return the mean of each term over window and ranks, its count per micro-batch, and `loss`; start anew.

        Args:
            step: The step that the window ends with.

        Raises:
            NotFiniteError: A term was not finite, on any rank.
        """
        names = sorted(self._sums, key=lambda name: (name == GRADIENT, name))  # a bad loss makes a bad gradient
        sums = torch.stack([self._sums[name] for name in names]).double().cpu()
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        if ranks > 1:
            totals, first_bad = sums[:, :2].contiguous(), sums[:, 2].contiguous()
            dist.all_reduce(totals)
            dist.all_reduce(first_bad, dist.ReduceOp.MIN)
            sums = torch.cat([totals, first_bad[:, None]], dim=1)
        metrics: dict[str, float] = {"loss": 0.0}
        for name, (value, count, bad) in zip(names, sums.tolist(), strict=True):
            if math.isfinite(bad):
                what = "gradient norm" if name == GRADIENT else f"loss term '{name}'"
                raise NotFiniteError(what, int(bad))
            mean = value / self._entries[name] / ranks
            metrics[name] = mean
            if name == GRADIENT:
                continue
            metrics["loss"] += 0.0 if name in self._figures else mean
            metrics[f"{name}_count"] = count / self._entries[name]
            if self.warn and count == 0 and name not in self._warned:
                self._warned.add(name)
                logger.warning(
                    "The loss term '%s' had nothing to work on in %d micro-batches up to step %d: check its labels.",
                    name,
                    self._entries[name],
                    step,
                )
        self._sums.clear()
        self._entries.clear()
        return metrics
