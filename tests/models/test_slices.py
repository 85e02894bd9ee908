"""Slices of a volume through a flat tower, and attention among them, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.slices import SliceAttention, slice_positions
from medvlp.models.towers import build_tower


def config(**fields: Any) -> VolumeTowerConfig:
    described = {"kind": "volume", "family": "slices", "name": "resnet10t", "input": {"size": [8, 32, 32]}, **fields}
    return VolumeTowerConfig.model_validate(described)


def softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


@pytest.mark.parametrize("residual", [False, True])
def test_attention_among_slices_is_its_definition(residual: bool) -> None:
    torch.manual_seed(0)
    adapter = SliceAttention(12, heads=3, residual=residual).double()
    slices = torch.randn(2, 5, 12, dtype=torch.float64)
    state = {name: value.numpy() for name, value in adapter.state_dict().items()}
    place, wave = np.arange(5)[:, None], 10_000 ** (-np.arange(0, 12, 2) / 12)
    positions = np.zeros((5, 12))
    positions[:, 0::2], positions[:, 1::2] = np.sin(place * wave), np.cos(place * wave)
    np.testing.assert_allclose(slice_positions(5, 12), positions, atol=1e-6)
    expected = []
    for own in slices.numpy():
        qkv = (own + positions) @ state["attention.in_proj_weight"].T + state["attention.in_proj_bias"]
        query, key, value = np.split(qkv, 3, axis=1)
        heads = [np.s_[:, h * 4 : h * 4 + 4] for h in range(3)]
        read = np.concatenate([softmax(query[h] @ key[h].T / 2) @ value[h] for h in heads], axis=1)
        out = read @ state["attention.out_proj.weight"].T + state["attention.out_proj.bias"]
        expected.append((out + own if residual else out).mean(0))
    with torch.no_grad():
        np.testing.assert_allclose(adapter(slices).numpy(), np.stack(expected), atol=1e-6)


def test_tokens_are_those_of_the_slices_and_only_pooled_knows_of_the_others() -> None:
    torch.manual_seed(0)
    tower = build_tower(config()).eval()
    pixels = torch.randn(2, 1, 8, 32, 32)
    with torch.no_grad():
        features, alone = tower(pixels), tower.backbone(pixels[1, :, 5][None])
        other = tower(torch.cat([pixels[:, :, 1:2], pixels[:, :, 1:]], dim=2))
        maps = tower.feature_maps(pixels)
    assert features.grid == (8, 1, 1)
    torch.testing.assert_close(features.tokens[1].unflatten(0, features.grid)[5], alone.tokens[0].unflatten(0, (1, 1)))
    torch.testing.assert_close(other.tokens[:, 1:], features.tokens[:, 1:])
    assert not torch.allclose(other.pooled, features.pooled)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features.tokens)


def test_gradients_reach_backbone_and_adapter_with_checkpointing() -> None:
    torch.manual_seed(0)
    tower = build_tower(config(args={"adapter": {"heads": 4}}))
    tower.set_gradient_checkpointing(True)
    tower(torch.randn(1, 1, 8, 32, 32)).pooled.square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in tower.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": {"size": [8, 32, 48]}}, "squares of 1 or 3 channels"),
        ({"input": {"size": [8, 32, 32], "windows": ["lung", "bone"]}}, "squares of 1 or 3 channels"),
        ({"args": {"adapter": {"heads": 7}}}, "attention among slices"),
        ({"args": {"adapter": {"depth": 7}}}, "attention among slices"),
        ({"name": "nothing"}, "no backbone named"),
    ],
)
def test_what_cannot_be_built_says_why(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tower(config(**fields))


def test_masking_patches_of_slices_is_refused() -> None:
    tower = build_tower(config(name="vit_tiny_patch16_224", args={"depth": 1}))
    with pytest.raises(UserError, match="plain vision transformer"):
        tower.encode_visible(torch.zeros(1, 1, 8, 32, 32), torch.zeros(1, 2, dtype=torch.long))
