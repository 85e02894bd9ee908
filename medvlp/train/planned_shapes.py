"""What has values while a training step is made on tensors that have a shape and no values."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SMALL = 2**26
"""Bytes of a tensor that may have values where others have none."""
_INDEXING = (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten.index_put_, torch.ops.aten._index_put_impl_)


class SmallHaveValues(TorchDispatchMode):
    """Inside a `FakeTensorMode`: what hangs neither on weights nor on pixels is computed, unless it is large.

    So texts are laid out and masks are drawn as in training, and a method may ask how many tokens there are.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if any(isinstance(tensor, FakeTensor) for tensor in given):
            if func.overloadpacket in _INDEXING:
                args = (args[0], [place for index in args[1] for place in _places(index)], *args[2:])
            return func(*args, **kwargs)
        with suppress(DataDependentOutputException, DynamicOutputShapeException):
            made = func(*args, **kwargs)
            if sum(leaf.nbytes for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)) > SMALL:
                return made
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def _places(index: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    """Return the indices that a mask with values stands for; any other index is left as it is."""
    if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
        return (index,)
    with unset_fake_temporarily():
        return index.nonzero().unbind(1)
