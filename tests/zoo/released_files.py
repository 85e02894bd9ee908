"""Rebuild released checkpoint files bit by bit from their key lists, by the weights rule of the reference values."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a folder of `oracles/zoo`, named as in the released file."""
    buffers = dict(np.load(folder / "buffers.npz")) if (folder / "buffers.npz").is_file() else {}
    keys = json.loads((folder / "keys.json").read_text())["keys"]
    return {name: _tensor(name, shape, dtype, buffers) for name, (shape, dtype) in keys.items()}


def wrap(state: dict[str, torch.Tensor], container: str) -> dict[str, Any]:
    """Return the object that `torch.save` wrote, with neighbours of the kind that real files hold."""
    if container == "state_dict":
        return {"epoch": 3, "global_step": 7, "pytorch-lightning_version": "1.9", "state_dict": state}
    return (
        {"model": state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}} if container == "model" else state
    )


def image_of(folder: Path, shape: list[int] | None = None) -> torch.Tensor:
    """Return the images of a folder, checked by their hash; those of another `shape` come from a fresh generator."""
    meta = json.loads((folder / "meta.json").read_text())["input"]
    image = np.random.default_rng(meta["seed"]).standard_normal(shape or meta["shape"]).astype(np.float32)
    assert shape is not None or hashlib.sha256(image.tobytes()).hexdigest() == meta["sha256"]
    return torch.from_numpy(image)


def _tensor(name: str, shape: list[int], dtype: str, buffers: dict[str, np.ndarray]) -> torch.Tensor:
    if name in buffers:
        return torch.from_numpy(buffers[name])
    if not dtype.startswith("float") or name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    return torch.from_numpy(np.asarray(_scaled(name, z))).to(getattr(torch, dtype))


def _scaled(name: str, z: np.ndarray) -> np.ndarray:
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(z)
    if name.endswith("running_mean"):
        return 0.1 * z
    if z.ndim == 1 and name.endswith("weight"):
        return 1 + 0.02 * z
    if z.ndim == 0 and name.endswith("logit_scale"):
        return np.asarray(math.log(1 / 0.07))
    if z.ndim >= 2:
        return z * math.sqrt(1 / math.prod(z.shape[1:]))
    return 0.02 * z
