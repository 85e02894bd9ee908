"""Processes of one training: torchrun's environment, one device each, DDP or FSDP2 around the method.

Guarantee: without torchrun everything here is the identity. Collectives of Python values run on the CPU and wait for no
accelerator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from medvlp.config.train import TrainConfig
from medvlp.errors import UserError

if TYPE_CHECKING:
    from medvlp.methods.base import Method


FORWARD_METHODS = (
    "class_embedding",
    "embed",
    "encode_embedded",
    "encode_hidden",
    "encode_visible",
    "feature_maps",
    "visible_states",
)
"""Methods of towers that compute with their weights, beside `forward`."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def processes(config: TrainConfig) -> Iterator[Processes]:
    """Join the processes that torchrun started; alone where it did not.

    Raises:
        UserError: `device: cuda` without a GPU.
    """
    cuda = torch.cuda.is_available() and config.device != "cpu"
    if config.device == "cuda" and not cuda:
        raise UserError("There is no CUDA device.", "train.device", "Set train.device to auto or cpu.")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, device)
        return
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(dist.get_rank(), world_size, device)
    finally:
        if started_here:
            dist.destroy_process_group()


def wrap(method: Method, config: TrainConfig, where: Processes) -> nn.Module:
    """Return the module whose call computes the losses on all ranks; `method` itself in one process under `ddp`.

    FSDP2 shards the towers and then the rest in place, also in one process. Compilation is in place, too, so that
    parameter names stay those of the method.
    """
    if config.gradient_checkpointing:
        method.set_gradient_checkpointing(True)
    if config.compile:
        method.image_encoder.compile()
        if method.text_encoder is not None:
            method.text_encoder.compile(dynamic=True)
    if config.strategy == "fsdp2":
        if where.world_size == 1:
            return method
        mesh = init_device_mesh(where.device.type, (where.world_size,))
        for tower in (method.image_encoder, method.text_encoder):
            if tower is not None and any(parameter.requires_grad for parameter in tower.parameters()):
                # The text tower runs twice a step; torch 2.11 fails in backward if its weights were freed in between.
                fully_shard(tower, mesh=mesh, reshard_after_forward=False)
                for name in FORWARD_METHODS:
                    if hasattr(tower, name):
                        register_fsdp_forward_method(tower, name)
        fully_shard(method, mesh=mesh)
        return method
    if where.world_size == 1:
        return method
    ids = [where.device.index] if where.device.type == "cuda" else None
    idle = not all(method.is_on(name) for name in method.config.objectives)
    return nn.parallel.DistributedDataParallel(
        method, device_ids=ids, gradient_as_bucket_view=True, find_unused_parameters=idle
    )


def without_sync(module: nn.Module, skip: bool) -> AbstractContextManager[None]:
    """Leave out the exchange of gradients in all but the last micro-batch of a step."""
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return module.no_sync() if skip else nullcontext()
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not skip)
    return nullcontext()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor whole (all ranks must call), any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor on the device of `like`, and in shards if `like` is."""
    value = value.to(like.device)
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)
