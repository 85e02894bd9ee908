"""MedCLIP's text side with weights made by rule gives the numbers of the official implementation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.config.towers import ProjectionConfig, TextTowerConfig
from medvlp.models.projection import Projection
from medvlp.models.text import TextTower
from medvlp.types import TextBatch


def made_by_rule(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Weights from the key alone (FORMAT.md beside the reference values); only what a BERT has."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    z = np.random.Generator(np.random.PCG64(seed)).standard_normal(shape)
    if len(shape) == 1:
        return torch.from_numpy(1 + 0.02 * z if name.endswith("weight") else 0.02 * z).float()
    return torch.from_numpy(z * np.sqrt(1 / np.prod(shape[1:]))).float()


@pytest.mark.slow
@torch.inference_mode()
def test_text_vectors_are_official_with_pads_pooled(oracles: Path) -> None:
    folder = oracles / "zoo" / "medclip_vit"
    keys = json.loads((folder / "keys.json").read_text())["keys"]
    config = TextTowerConfig(
        hidden=768, layers=12, heads=12, vocab_size=28996, max_tokens=512, pool="layers_1_2_12", dropout=0.0
    )
    tower = TextTower(config, 28996, 0, legacy_pad_mean=True).eval()
    projection = Projection(768, ProjectionConfig(dim=512, bias=False))
    prefix = "text_model.model."
    for name, tensor in tower.model.state_dict().items():
        assert keys[prefix + name][0] == list(tensor.shape)
        tensor.copy_(made_by_rule(prefix + name, tuple(tensor.shape)))
    projection.layers.weight.copy_(made_by_rule("text_model.projection_head.weight", (512, 768)))
    with np.load(folder / "features.npz") as reference:
        text = TextBatch(
            torch.from_numpy(reference["in_input_ids"]), torch.from_numpy(reference["in_attention_mask"]).bool()
        )
        raw, unit = torch.from_numpy(reference["text_proj_raw"]), torch.from_numpy(reference["text_proj"])
    pooled = tower(text).pooled
    torch.testing.assert_close(functional.linear(pooled, projection.layers.weight), raw, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(projection(pooled), unit, rtol=1e-4, atol=1e-6)
    assert not text.mask.all()
