"""Four gloo processes on this machine, and the comparison of what they found with what one process finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

RANKS = 4
Found = dict[str, torch.Tensor]
"""Value, count and the gradient of every parameter."""
Work = Callable[[int, nn.Module], dict[str, Found]]
"""From the rank and the model under DDP to what was found, by name."""


def run(model: nn.Module, name: str, data: dict[str, torch.Tensor]) -> Found:
    """Return what a model that computes several objectives finds for one of them."""
    model.zero_grad()
    value, count = model(name, data)
    value.backward()
    grads = {key.removeprefix("module."): p.grad.clone() for key, p in model.named_parameters()}
    return {"value": value.detach(), "count": count, **grads}


def on_ranks(build: Callable[[], nn.Module], work: Work, folder: Path) -> list[dict[str, Found]]:
    """Return what `work` finds on each rank; both functions are of a module, so that a process finds them by name."""
    # One server imports torch, the ranks are forked from it: four imports of torch would take most of the time.
    mp.get_context("forkserver").set_forkserver_preload(["torch", "torch.distributed", "medvlp.objectives.contrastive"])
    mp.start_processes(_work, args=(build, work, str(folder)), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


def _work(rank: int, build: Callable[[], nn.Module], work: Work, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    torch.save(work(rank, nn.parallel.DistributedDataParallel(build())), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def check_as_one_process(found: list[Found], alone: Found, value: float, gradient: float, absolute: float) -> None:
    """Compare the mean over ranks of the value, the sum of the counts, and DDP's gradients on every rank.

    Args:
        found: What each rank found.
        alone: What one process found with all rows.
        value: Relative tolerance of the value.
        gradient: Relative tolerance of the gradients.
        absolute: Their absolute tolerance.
    """
    assert len(found) == RANKS
    torch.testing.assert_close(torch.stack([own["value"] for own in found]).mean(), alone["value"], rtol=value, atol=0)
    assert sum(float(own["count"]) for own in found) == float(alone["count"])
    for own in found:
        assert own.keys() == alone.keys()
        for key in own.keys() - {"value", "count"}:
            torch.testing.assert_close(own[key], alone[key], rtol=gradient, atol=absolute)
