"""Rebuild released checkpoint files bit by bit from their key lists, by the weights rule of the reference values."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

Keys = dict[str, tuple[list[int], str]]
"""Name in the file -> shape and type."""


def folder_of(oracles: Path, name: str) -> Path:
    """Return the folder of reference values of a format: ARL's image tower is that of M3AE, name by name."""
    return oracles / "zoo" / {"arl": "m3ae"}.get(name, name)


def keys_of(oracles: Path, name: str) -> Keys:
    """Return the tensors that the file of a format holds."""
    keys: Keys = json.loads((folder_of(oracles, name) / "keys.json").read_text())["keys"]
    if name == "echoprime":  # its text tower has a file of its own
        return keys | {f"text:{key}": what for key, what in keys_of(oracles, "echoprime_text").items()}
    return keys | (_entity_keys() if name == "arl" else {})


def weights_of(oracles: Path, name: str, prefix: str = "") -> dict[str, torch.Tensor]:
    """Return the tensors of a released file, those whose names begin with `prefix`."""
    file = folder_of(oracles, name) / "buffers.npz"
    buffers = dict(np.load(file)) if file.is_file() else {}
    keys = {key: what for key, what in keys_of(oracles, name).items() if key.startswith(prefix)}
    return {key: tensor_of(key, shape, dtype, buffers) for key, (shape, dtype) in keys.items()}


def _entity_keys() -> Keys:
    """Return what ARL's file holds beyond that of M3AE, read off its official code; 50 entities and 120 links."""
    shapes: dict[str, list[int]] = {"align_head.x": [50, 256]}
    for layer in range(6):
        stem = f"multi_modal_language_layers.{layer}."
        for kind in ("knowledge_attention", "knowledge_crossattention"):
            shapes |= {f"{stem}{kind}.self.{part}.weight": [256, 256] for part in ("query", "key", "value")}
            shapes |= {f"{stem}{kind}.output.dense.weight": [256, 256], f"{stem}{kind}.output.LayerNorm.weight": [256]}
        shapes |= {
            f"{stem}knowledge_intermediate.dense.weight": [1024, 256],
            f"{stem}knowledge_output.dense.weight": [256, 1024],
            f"{stem}knowledge_output.LayerNorm.weight": [256],
            f"{stem}image2knowledge.weight": [256, 768],
            f"{stem}knowledge2text.weight": [768, 256],
            f"{stem}knowledge_fusion_output.dense.weight": [768, 768],
            f"{stem}knowledge_fusion_output.LayerNorm.weight": [768],
        }
    for side in ("img", "txt"):
        shapes |= {f"align_head.{side}_linear1.weight": [768, 768], f"align_head.{side}_linear2.weight": [256, 768]}
    shapes["align_head.embedding_ln.weight"] = [256]
    shapes |= {name.replace("weight", "bias"): shape[:1] for name, shape in shapes.items() if name.endswith("weight")}
    for number, (heads, width) in enumerate(((8, 64), (1, 256)), start=1):
        stem = f"align_head.conv{number}."
        shapes |= {f"{stem}{part}": [1, heads, width] for part in ("att_src", "att_dst")}
        shapes |= {f"{stem}lin_src.weight": [512 if number == 1 else 256, 256 if number == 1 else 512]}
        shapes[f"{stem}bias"] = [heads * width]
    return {name: (shape, "float32") for name, shape in shapes.items()} | {"align_head.edge_index": ([2, 120], "int64")}


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


def tensor_of(name: str, shape: list[int], dtype: str, buffers: dict[str, np.ndarray]) -> torch.Tensor:
    """Return the values of one key by the weights rule; a buffer that is stored is taken as it is."""
    if name in buffers:
        return torch.from_numpy(buffers[name])
    if not dtype.startswith("float") or name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    name = name.removeprefix("text:")
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
