"""CTViT against a plain reading of its definition, place by place, and its quantiser against numpy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.ctvit import CTViT, CTViTTower
from medvlp.models.quantiser import Quantiser
from medvlp.models.towers import build_tower

SMALL: dict[str, Any] = {
    "dim": 12,
    "spatial_depth": 1,
    "temporal_depth": 1,
    "heads": 2,
    "head_dim": 5,
    "codes": 7,
    "scrambled": True,
}
SIZE, PATCH = (8, 8, 12), (2, 4, 4)


def config(size: tuple[int, int, int] = SIZE, **args: Any) -> VolumeTowerConfig:
    return VolumeTowerConfig.model_validate(
        {"kind": "volume", "family": "ctvit", "patch": PATCH, "args": {**SMALL, **args}, "input": {"size": size}}
    )


def drawn(net: torch.nn.Module) -> torch.nn.Module:
    """Return the network with every parameter and buffer drawn, those that start at 0 or 1 among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.5)
    return net.eval()


def position(volume: torch.Tensor, layer: Any) -> torch.Tensor:
    """Return the position convolution of `[t y x d]`: two slabs before each place and its own, one row and column."""
    slabs, height, width, _ = volume.shape
    kernel, out = layer.position.weight[:, 0], torch.zeros_like(volume)
    for t, y, x in itertools.product(range(slabs), range(height), range(width)):
        out[t, y, x] = layer.position.bias
        for i, j, k in itertools.product(range(3), repeat=3):
            s, v, u = t + i - 2, y + j - 1, x + k - 1
            if s >= 0 and 0 <= v < height and 0 <= u < width:
                out[t, y, x] += kernel[:, i, j, k] * volume[s, v, u]
    return out


def attended(tokens: torch.Tensor, layer: Any, bias: torch.Tensor | None) -> torch.Tensor:
    """Return attention `[l d]`, head by head."""
    part = layer.attention
    normed = functional.layer_norm(tokens, tokens.shape[-1:]) * part.norm.gamma + part.norm.beta
    query, (key, value) = normed @ part.query.weight.T, (tokens @ part.key_value.weight.T).chunk(2, dim=1)
    heads = []
    for head in range(part.heads):
        own = slice(head * 5, head * 5 + 5)
        q = query[:, own] / query[:, own].norm(dim=1, keepdim=True) * part.query_scale
        k = key[:, own] / key[:, own].norm(dim=1, keepdim=True) * part.key_scale
        logits = 8 * q @ k.T + (0 if bias is None else bias[head])
        heads.append(logits.softmax(1) @ value[:, own])
    return torch.cat(heads, dim=1) @ part.out.weight.T


def fed(tokens: torch.Tensor, layer: Any) -> torch.Tensor:
    value, gate = layer.feed.rise(layer.feed.norm(tokens)).split(32, dim=1)  # 8/3 of 12
    return layer.feed.fall(value * 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))))


def bias_between(net: CTViT, height: int, width: int) -> torch.Tensor:
    places = list(itertools.product(range(height), range(width)))
    bias = torch.zeros(2, len(places), len(places))
    for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
        distance = torch.tensor([float(a[0] - b[0]), float(a[1] - b[1])])
        bias[:, i, j] = net.position_bias.net(distance.sign() * torch.log(1 + distance.abs()))
    return bias


def reference(net: CTViT, volume: torch.Tensor, scrambled: bool) -> torch.Tensor:
    """Return the tokens of one volume `[d h w]` before the quantiser, `[t y x d]`."""
    slabs, height, width = (side // length for side, length in zip(SIZE, PATCH, strict=True))
    tokens = torch.zeros(slabs, height, width, 12)
    for t, y, x in itertools.product(range(slabs), range(height), range(width)):
        tokens[t, y, x] = net.embed(volume[2 * t : 2 * t + 2, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(1, -1))[0]
    layer = net.spatial.layers[0]
    tokens = tokens + position(tokens, layer)
    flat, bias = tokens.reshape(slabs, -1, 12), bias_between(net, height, width)
    flat = torch.stack([own + attended(own, layer, bias) for own in flat])
    flat = torch.stack([own + fed(own, layer) for own in flat])
    tokens = net.spatial.norm(flat).reshape(slabs, height, width, 12)
    layer, lines = net.temporal.layers[0], tokens.permute(1, 2, 0, 3).contiguous()
    if scrambled:
        lines = lines + position(lines.view(slabs, height, width, 12), layer).view(lines.shape)
    else:
        lines = lines + position(tokens, layer).permute(1, 2, 0, 3)
    rows = lines.reshape(-1, slabs, 12)
    rows = torch.stack([own + attended(own, layer, None) for own in rows])
    rows = torch.stack([own + fed(own, layer) for own in rows])
    return net.temporal.norm(rows).reshape(height, width, slabs, 12).permute(2, 0, 1, 3)


@pytest.mark.parametrize("scrambled", [True, False])
def test_the_encoder_is_its_definition(scrambled: bool) -> None:
    tower = drawn(build_tower(config(scrambled=scrambled)))
    pixels = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = tower.backbone.encode(pixels)
        expected = torch.stack([reference(tower.backbone, one[0], scrambled) for one in pixels])
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_rows_of_the_table_and_pooled_is_their_mean() -> None:
    tower = drawn(CTViTTower(config()))
    pixels = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, encoded, maps = tower(pixels), tower.backbone.encode(pixels), tower.feature_maps(pixels)
    table = tower.backbone.quantiser.table
    cosines = functional.normalize(encoded.flatten(1, 3), dim=2) @ functional.normalize(table, dim=1).T
    torch.testing.assert_close(features.tokens, table[cosines.argmax(2)])
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))
    assert features.grid == tower.grid_of(pixels) == (4, 2, 3)
    assert [tuple(each.shape[1:]) for each in maps] == [(12, 4, 2, 3)] * 4
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features.tokens)


def test_checkpointing_changes_no_gradient() -> None:
    tower = drawn(CTViTTower(config(codes=None))).train()
    pixels = torch.randn(1, 1, *SIZE, generator=torch.Generator().manual_seed(1))
    found = []
    for enabled in (False, True):
        tower.set_gradient_checkpointing(enabled)
        tower.zero_grad()
        tower(pixels).pooled.square().sum().backward()
        found.append({name: value.grad.clone() for name, value in tower.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_quantiser_moves_codes_to_its_tokens_and_passes_the_gradient() -> None:
    quantiser = Quantiser(5, 3, decay=0.8)
    before, tokens = quantiser.table.clone().numpy(), torch.randn(2, 4, 3, requires_grad=True)
    codes = quantiser(tokens)
    flat = tokens.detach().numpy().reshape(-1, 3)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    chosen = (unit @ before.T).argmax(1)
    np.testing.assert_allclose(codes.detach().numpy().reshape(-1, 3), before[chosen], atol=1e-6)
    expected = before.copy()
    for code in set(chosen):
        total = unit[chosen == code].sum(0)
        expected[code] = 0.8 * before[code] + 0.2 * total / np.linalg.norm(total)
    np.testing.assert_allclose(quantiser.table.numpy(), expected, atol=1e-6)
    codes.sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.ones_like(tokens))
    quantiser.eval()
    quantiser(tokens)
    np.testing.assert_allclose(quantiser.table.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("made", "message"),
    [(lambda: config((8, 8, 9)), "do not divide"), (lambda: config(depth=3), "CTViT cannot be built")],
)
def test_what_cannot_be_built_says_why(made: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tower(made())
