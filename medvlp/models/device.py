"""Where a model computes."""

from __future__ import annotations

import torch

from medvlp.errors import UserError


def resolve_device(name: str) -> str:
    """Return the torch device of a name; `auto` is the GPU where there is one, else the CPU.

    Raises:
        UserError: No such device, or a GPU is asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        return "cuda" if available else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError as error:
        raise UserError(f"There is no device '{name}'.", "device", "Use auto, cpu or cuda.") from error
    if kind == "cuda" and not available:
        raise UserError("There is no CUDA device.", "device", "Use auto or cpu.")
    return name
