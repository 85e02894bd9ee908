"""How much memory a pre-training takes, told before it starts.

Guarantee: the method itself runs one step forward and backward on a batch of the loader, on tensors that have a shape
and no values, and every allocation is counted until it is freed; only states of the optimiser and what a softmax takes
besides on CUDA are counted by rule. What else a device needs (its context, workspaces of its libraries, gaps of its
allocator) is not in it.
"""

from __future__ import annotations

import logging
import tempfile
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from medvlp.config.train import PretrainConfig
from medvlp.data.pretraining import load_data
from medvlp.data.volume_augment import on_device
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods.base import Method, complete
from medvlp.methods.context import MethodContext
from medvlp.objectives.gather import alike, world_size
from medvlp.train.grad_cache import GradCache
from medvlp.train.planned_batch import planned_parts
from medvlp.train.planned_shapes import SmallHaveValues
from medvlp.types import Batch, map_tensors

logger = logging.getLogger(__name__)

NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException)
OF_TEXTS = 2
"""Dimensions of texts and labels; pixels and voxels have more."""


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one process on its device.

    Args:
        parameters: Weights and buffers.
        gradients: Of all weights that are trained.
        optimizer: States of the optimiser, and copies of the weights (average, lookahead).
        batch: A micro-batch of one process as the loader gives it.
        activations: What else lives in a step when most does.
        peak: The most that lives at a time; the gradients may not all live then.
        by_shapes: Whether the step ran on shapes alone; else on values, on the CPU.
        samples: Of the micro-batch of one process.
    """

    parameters: int
    gradients: int
    optimizer: int
    batch: int
    activations: int
    peak: int
    by_shapes: bool
    samples: int


def plan_memory(config: PretrainConfig, *, from_store: bool = True, processes: int = 1) -> MemoryPlan:
    """Return what one process of a pre-training takes.

    Args:
        config: The run.
        from_store: Open its store for one batch; else take the sizes that the configuration names, with texts of
            `max_tokens` tokens; see `planned_parts`.
        processes: Processes that share each batch, under DDP.

    Raises:
        UserError: The data cannot train the method, or there are none and its sizes hang on them; or the weights are
            sharded.
    """
    if processes > 1 and config.train.strategy != "ddp":
        raise UserError("What a shard of the weights takes is not planned.", "train.strategy", "Plan one process.")
    with alike(processes):
        return _planned(config, from_store, processes)


def _planned(config: PretrainConfig, from_store: bool, processes: int) -> MemoryPlan:
    how, by_shapes = config.train.optimizer, True

    def parts() -> tuple[Method, Batch]:
        return _parts(config, processes) if from_store else planned_parts(config, processes)

    method, batch = parts()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as shapes, SmallHaveValues():
            _without_values(method, shapes)
            own = map_tensors(batch, lambda tensor: tensor if tensor.ndim <= OF_TEXTS else shapes.from_tensor(tensor))
            step = most_in_step(method, own, config)
    except NEEDS_VALUES as error:
        logger.warning("The method needs values (%s): the step is made on the CPU.", type(error).__name__)
        by_shapes = False
        method, batch = parts()
        step = most_in_step(method, batch, config)
    weights = list(method.parameters())
    trained = sum(_bytes(weight) for weight in weights if weight.requires_grad)
    parameters = sum(map(_bytes, (*weights, *method.buffers())))
    states = {"adamw": 2, "adam": 2, "sgd": int(how.momentum > 0)}[how.name] * trained
    states += ((config.train.ema is not None) + (how.lookahead is not None)) * parameters
    of_batch = sum(map(_bytes, _tensors(batch)))
    update = 2 * trained  # gradients, and the change of the weights while it is made
    most = max(of_batch + step, update)
    other = max(0, step - trained)
    samples = len(batch.index)
    return MemoryPlan(parameters, trained, states, of_batch, other, parameters + states + most, by_shapes, samples)


def most_in_step(method: Method, batch: Batch, config: PretrainConfig) -> int:
    """Return the most bytes that live at a time in a step, besides weights, states and batch; gradients are among them.

    Args:
        method: Its tensors may be without values.
        batch: Likewise.
        config: Precision, micro-batches and the like.
    """
    train = config.train
    kind = next(method.parameters()).device.type
    method.set_gradient_checkpointing(train.gradient_checkpointing)
    method.train().zero_grad()

    def autocast() -> AbstractContextManager[Any]:
        return torch.autocast(kind, torch.bfloat16, enabled=train.precision == "bf16")

    losses: Callable[[Batch], Any] = method
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
    if train.grad_cache is not None:
        cache = GradCache(method, train.grad_cache, autocast)
        losses, backward = cache.losses, cache.backward
    with Allocations([*method.parameters(), *method.buffers(), *_tensors(batch)]) as counted:
        # From the second micro-batch on the gradients of the first live throughout, and so do the buckets of DDP.
        for _ in range(min(train.accumulate * world_size(), 2)):
            with autocast():
                loss = torch.stack([value for value, _ in losses(batch).values()]).sum()
            backward(loss)
            del loss
    return counted.most


class Allocations(TorchDispatchMode):
    """Counts the bytes of all storages that are made inside, until they are freed.

    Args:
        known: Tensors that were there before.

    Attributes:
        live: Bytes that live now.
        most: The most that lived at a time.
    """

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.most = 0
        self._seen: Any = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._count, out)
        if func.overloadpacket is torch.ops.aten._softmax_backward_data:
            # On CUDA it makes the product of both inputs besides: a whole map, where attention is written out.
            self.most = max(self.most, self.live + _bytes(args[1]))
        return out

    def _count(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = None
            self.live += size
            self.most = max(self.most, self.live)
            weakref.finalize(storage, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.live -= size


def _parts(config: PretrainConfig, processes: int = 1) -> tuple[Method, Batch]:
    """Return a fresh method and one process's part of a batch of its data."""
    kind = METHODS.get(config.method.name)
    with tempfile.TemporaryDirectory() as folder:
        demands = kind.demands(complete(config.method))
        data = load_data(config, demands=demands, tokenizer_folder=Path(folder) / "t", world_size=processes)
        batches = data.loader(config, world_size=processes).epoch(0)
        batch = on_device(next(batches), "cpu")
        batches.close()  # type: ignore[attr-defined]
    table = data.table
    context = MethodContext.of(None if table is None else table.tokenizer, data.label_names, data.concepts)
    return kind(config.method, context), batch


def _without_values(method: Method, shapes: FakeTensorMode) -> None:
    """Replace the tensors of a method by ones without values; shared ones stay shared."""
    for module in method.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = shapes.from_tensor(tensor)  # type: ignore[assignment]


def _tensors(batch: Batch) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
