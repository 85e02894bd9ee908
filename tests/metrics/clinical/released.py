"""Weights made from the names of their keys alone, so that the official code and ours can be given the same."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch


def ruled(shapes: Mapping[str, torch.Size], gains: Mapping[str, float] | None = None) -> dict[str, torch.Tensor]:
    """Return the tensor of each key: random, scaled by the width of what it multiplies, and by the gain of the key."""
    state = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        z = np.random.Generator(np.random.PCG64(seed)).standard_normal(tuple(shape))
        if len(shape) >= 2:
            z = z * np.sqrt(1 / np.prod(shape[1:]))
        else:
            z = 1 + 0.02 * z if name.endswith("weight") else 0.02 * z
        state[name] = torch.from_numpy(np.asarray(z)).float() * (gains or {}).get(name, 1.0)
    return state


WORDS = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "heart", "is", "normal", "in", "size", "no", "pleural", "or",
    "effusion", "pneumothorax", "mild", "edema", "seen", "left", "right", "lung", "clear", "opacity", "small", "##s",
    "##ly", "new", ",", ".", ":", "none", "#", "of", "a", "b", "1", "2",
]  # fmt: skip


def write_vocabulary(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")


def write_chexbert(folder: Path, config: Any) -> Path:
    """Write `chexbert.pth` as released: optimiser beside the weights, names as DataParallel writes them."""
    from transformers import BertModel

    shapes = {f"module.bert.{name}": tensor.shape for name, tensor in BertModel(config).state_dict().items()}
    for head in range(14):
        shapes[f"module.linear_heads.{head}.weight"] = torch.Size([4 if head < 13 else 2, config.hidden_size])
        shapes[f"module.linear_heads.{head}.bias"] = torch.Size([4 if head < 13 else 2])
    saved = {"epoch": 3, "model_state_dict": ruled(shapes), "optimizer_state_dict": {"state": {}}}
    torch.save(saved, folder / "chexbert.pth")
    write_vocabulary(folder)
    config.to_json_file(folder / "config.json")
    return folder
