"""Gradient cache: towers take a part of the batch at a time, the contrast sees all of it (arXiv 2101.06983).

Guarantee: gradients are those of the whole batch at once, up to rounding; with dropout, those of the masks that each
part drew, the same ones in both passes. The towers run twice: first without a graph, for one vector of each sample;
then part by part with one, once the loss has said the gradient of every vector. A loss that needs more of a sample than
vectors, or a tower that normalises over the batch or whose codes follow it, is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from medvlp.errors import UserError
from medvlp.methods.base import Method
from medvlp.models.quantiser import Quantiser
from medvlp.types import Batch, TextBatch

if TYPE_CHECKING:
    from medvlp.methods.base import Term

KEY = "train.grad_cache"
_PARTS = ("image_encoder", "text_encoder", "image_projection", "text_projection")
Vectors = tuple[torch.Tensor, torch.Tensor | None]


class Kept:
    """Stands for the features of a batch: the pooled vectors and the projected ones, without the graph of a tower."""

    def __init__(self, method: str, pooled: torch.Tensor, projected: torch.Tensor | None) -> None:
        self.method, self.pooled, self.projected = method, pooled, projected

    def __getattr__(self, name: str) -> Any:
        raise UserError(
            f"A loss of the method '{self.method}' needs the {name} of each sample; a gradient cache keeps vectors.",
            KEY,
            "Leave it out; train.gradient_checkpointing saves memory, too.",
        )


@dataclass(frozen=True)
class _Pass:
    """One call of a tower: how vectors are computed, of what, from which random states, and what stands for them."""

    compute: Callable[[Any], Vectors]
    given: torch.Tensor | TextBatch
    rows: list[slice]
    states: list[list[torch.Tensor]]
    leaves: Vectors


class GradCache:
    """The losses of a method, and their gradient, of a batch that is larger than the towers take at a time.

    Args:
        method: On its device.
        size: Samples at a time.
        autocast: Context of a forward pass.
    """

    def __init__(self, method: Method, size: int, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        self.method, self.size, self.autocast = method, size, autocast
        self._passes: list[_Pass] = []

    def losses(self, batch: Batch) -> dict[str, Term]:
        """Return the losses of a whole batch; call under `autocast`.

        Raises:
            UserError: They need more than vectors, or a tower normalises over the batch or moves its codes by it.
        """
        self._check_towers()
        self._passes.clear()
        with self._in_place_of_towers():
            return self.method(batch)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of a loss of `losses` to the parameters; on several ranks, their mean over ranks."""
        loss.backward()
        for one in self._passes:
            wanted = [leaf is not None and leaf.grad is not None for leaf in one.leaves]
            for rows, state in zip(one.rows, one.states, strict=True) if any(wanted) else ():
                _set_random(state)
                with self.autocast():
                    vectors = one.compute(_part(one.given, rows))
                pairs = [
                    (vector, leaf.grad[rows])
                    for vector, leaf in zip(vectors, one.leaves, strict=True)
                    if vector is not None and vector.requires_grad and leaf is not None and leaf.grad is not None
                ]
                if pairs:
                    torch.autograd.backward([vector for vector, _ in pairs], [gradient for _, gradient in pairs])
        self._passes.clear()
        self._average()

    def _average(self) -> None:
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return
        gradients = [parameter.grad for parameter in self.method.parameters() if parameter.grad is not None]
        for work in [dist.all_reduce(gradient, async_op=True) for gradient in gradients]:
            work.wait()
        for gradient in gradients:
            gradient /= dist.get_world_size()

    def _check_towers(self) -> None:
        for name in _PARTS:
            part = getattr(self.method, name, None)
            for module in part.modules() if isinstance(part, nn.Module) else ():
                if isinstance(module, _BatchNorm) and module.training:
                    raise UserError(
                        f"method.{name} normalises over the batch, which a gradient cache splits.",
                        KEY,
                        "Use a tower and a projection without batch normalisation, or leave it out.",
                    )
                if isinstance(module, Quantiser) and module.training:
                    raise UserError(
                        f"method.{name} has a quantiser, whose codes move in every forward pass; a gradient cache "
                        "makes two of each sample, and the second would meet other codes.",
                        KEY,
                        "Use a tower without a quantiser, or leave it out.",
                    )

    @contextmanager
    def _in_place_of_towers(self) -> Iterator[None]:
        """Let the method's ways to its towers return vectors without a graph."""
        method = self.method
        encode_image, project_image, project_text = method.encode_image, method.project_image, method.project_text
        ways: dict[str, Callable[[Any], Any]] = {
            "encode_stored": self._kept(lambda pixels: encode_image(method.normalised(pixels)), project_image),
            "encode_image": self._kept(encode_image, project_image),
            "encode_text": self._kept(method.encode_text, project_text),
            "project_image": lambda given: given.projected if isinstance(given, Kept) else project_image(given),
            "project_text": lambda given: given.projected if isinstance(given, Kept) else project_text(given),
        }
        vars(method).update(ways)
        try:
            yield
        finally:
            for name in ways:
                del vars(method)[name]

    def _kept(self, encode: Callable[[Any], Any], project: Callable[[Any], torch.Tensor]) -> Callable[[Any], Kept]:
        """Return the tower's way in parts: the vectors of all samples, to which a loss may flow back."""
        projects = self.method.shared_space or project.__func__ not in (Method.project_image, Method.project_text)  # type: ignore[attr-defined]

        def compute(part: Any) -> Vectors:
            features = encode(part)
            return features.pooled, project(features) if projects else None

        def kept(given: torch.Tensor | TextBatch) -> Kept:
            number = len(given) if isinstance(given, torch.Tensor) else len(given.ids)
            rows = [slice(begin, begin + self.size) for begin in range(0, number, self.size)]
            states, found = [], []
            with torch.no_grad():
                for own in rows:
                    states.append(_random_state(self.method))
                    found.append(compute(_part(given, own)))
            torch.clear_autocast_cache()  # weights that were cast without a graph must not be used with one
            pooled = torch.cat([vectors[0] for vectors in found])
            projected = torch.cat([other for _, other in found if other is not None]) if projects else None
            if torch.is_grad_enabled():
                for leaf in (pooled, projected):
                    if leaf is not None:
                        leaf.requires_grad_()
                self._passes.append(_Pass(compute, given, rows, states, (pooled, projected)))
            return Kept(self.method.config.name, pooled, projected)

        return kept


def _part(given: torch.Tensor | TextBatch, rows: slice) -> Any:
    """Return some samples of a batch."""
    if isinstance(given, torch.Tensor):
        return given[rows]
    values = {field.name: getattr(given, field.name) for field in fields(given)}
    parts: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
    return replace(given, **parts)


def _random_state(method: nn.Module) -> list[torch.Tensor]:
    """Return the states that dropout on the CPU and on the method's device goes on from."""
    device = next(method.parameters()).device
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random(states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    for state in states[1:]:
        torch.cuda.set_rng_state(state)
