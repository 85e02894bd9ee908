"""Exchange of features between ranks for contrastive objectives.

Guarantee: every rank sees all features, and gradients flow back to the rank that made them. A loss of the local rows
against gathered negatives, scaled by `world size / global rows`, has after DDP's averaging exactly the gradient of the
one-process loss. Ranks may hold different numbers of rows, also none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from jaxtyping import Shaped


_alike: ContextVar[int] = ContextVar("alike", default=0)


@contextmanager
def alike(ranks: int) -> Iterator[None]:
    """Compute in one process as one of several ranks, as if every other rank held the same: for plans of memory."""
    token = _alike.set(ranks if ranks > 1 else 0)
    try:
        yield
    finally:
        _alike.reset(token)


def world_size() -> int:
    """Return the number of ranks, 1 where no process group runs."""
    if _alike.get():
        return _alike.get()
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this rank, 0 where no process group runs."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def all_reduce(tensor: torch.Tensor, largest: bool = False) -> None:
    """Replace a tensor by its sum over all ranks, or by the largest values; nothing is done for gradients."""
    if _alike.get():
        tensor.mul_(1 if largest else _alike.get())
    elif world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)


def gather_counts(counts: Sequence[int], device: torch.device) -> list[list[int]]:
    """Return the row counts of every rank: one list per rank, in the order given.

    The exchange runs on the CPU where the process group has a CPU backend (`cpu:gloo,cuda:nccl`), and then does not
    wait for the accelerator.
    """
    if world_size() == 1:
        return [list(counts)]
    if _alike.get():
        return [list(counts)] * world_size()
    on_cpu = "cpu" in dist.get_backend_config()
    local = torch.tensor(counts, dtype=torch.int64, device="cpu" if on_cpu else device)
    everyone = local.new_empty(world_size() * len(counts))
    dist.all_gather_into_tensor(everyone, local)
    return everyone.view(world_size(), -1).tolist()


def gather_with_gradient(
    tensor: Shaped[torch.Tensor, " n *rest"], counts: Sequence[int] | None = None
) -> Shaped[torch.Tensor, " m *rest"]:
    """Concatenate the rows of all ranks, in rank order; the backward pass sums the gradients of all ranks.

    Args:
        tensor: Local rows. All ranks must agree on everything but the number of rows.
        counts: Rows of each rank, where they are known already.

    Returns:
        All rows; `tensor` itself in a single process.
    """
    if world_size() == 1:
        return tensor
    if counts is None:
        counts = [row[0] for row in gather_counts([len(tensor)], tensor.device)]
    longest = max(counts)
    if len(tensor) < longest:
        padding = tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])
        tensor = torch.cat([tensor, padding])
    everyone = _AllGather.apply(tensor)
    if min(counts) == longest:
        return everyone
    blocks = everyone.split(longest)
    return torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])


class _AllGather(torch.autograd.Function):
    """Equal blocks of all ranks in rank order; backward is the reduce-scatter of the gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.contiguous()
        if _alike.get():
            return tensor.repeat(world_size(), *[1] * (tensor.ndim - 1))
        everyone = tensor.new_empty(world_size() * len(tensor), *tensor.shape[1:])
        dist.all_gather_into_tensor(everyone, tensor)
        return everyone

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        gradient = gradients[0].contiguous()
        if _alike.get():
            return gradient.view(world_size(), -1, *gradient.shape[1:]).sum(0)
        own = gradient.new_empty(len(gradient) // world_size(), *gradient.shape[1:])
        dist.reduce_scatter_tensor(own, gradient)
        return own
