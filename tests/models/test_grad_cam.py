"""Grad-CAM against its definition by finite differences, for backbones of every layout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from medvlp.config.towers import ImageTowerConfig, VolumeTowerConfig
from medvlp.models.grad_cam import grad_cam
from medvlp.models.towers import build_tower
from medvlp.models.vision2d import ImageTower

STEP = 1e-5


def make(name: str, size: int, **fields: Any) -> tuple[ImageTower, nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    config = ImageTowerConfig.model_validate({"name": name, "input": {"size": size}, **fields})
    tower = ImageTower(config).double().eval()
    for part in tower.modules():
        if isinstance(part, nn.BatchNorm2d):  # timm starts the last norm of a residual block at 0
            nn.init.uniform_(part.weight, 0.5, 1.0)
    projection = nn.Linear(tower.dim, 6, dtype=torch.float64)
    texts = nn.functional.normalize(torch.randn(2, 6, dtype=torch.float64), dim=1)
    return tower, projection, torch.randn(2, 1, size, size, dtype=torch.float64), texts


def by_definition(tower: Any, projection: nn.Linear, pixels: torch.Tensor, texts: torch.Tensor, module: str) -> Any:
    """Channel weights by central differences: how the cosine changes if a channel rises at all places of the grid."""
    place = tower.backbone.get_submodule(module)
    takes_input = module.startswith("blocks")
    held: dict[str, Any] = {"shift": 0.0}

    def patched(values: torch.Tensor) -> torch.Tensor:
        held["values"] = values
        return values + held["shift"]

    if takes_input:
        handle = place.register_forward_pre_hook(lambda _, given: (patched(given[0]), *given[1:]))
    else:
        handle = place.register_forward_hook(lambda _, __, given: patched(given))

    def cosines() -> torch.Tensor:
        vectors = projection(tower(pixels).pooled)
        return nn.functional.normalize(vectors, dim=1) @ texts.T

    with torch.no_grad():
        cosines()
        values = held["values"]
        channels_last = takes_input or not module or getattr(tower.backbone, "output_fmt", "NCHW") == "NHWC"
        axis, prefix = (-1 if channels_last else 1), (tower.backbone.num_prefix_tokens if takes_input else 0)
        count = values[0].numel() // values.shape[axis] - prefix
        weights = []
        for channel in range(values.shape[axis]):
            shift = torch.zeros_like(values)
            shift.select(axis, channel).fill_(STEP)
            if prefix:
                shift[:, :prefix] = 0
            held["shift"] = shift
            up = cosines()
            held["shift"] = -shift
            weights.append((up - cosines()) / (2 * STEP) / count)
        handle.remove()
        weights = torch.stack(weights, dim=2)  # [b t c]
        moved = values.movedim(axis, -1)
        moved = moved[:, prefix:] if prefix else moved
        maps = torch.einsum("b...c,btc->bt...", moved, weights).relu()
    return maps.flatten(2)


CASES = {
    "cnn": ("test_resnet", 64, {}, "layer4"),
    "cnn_tapped": ("test_resnet", 64, {"tap": "layer3"}, "layer3"),
    "cnn_cut": ("test_resnet", 32, {"tap": "layer3", "truncate": True}, "layer3"),
    "vit": ("test_vit", 32, {}, "blocks.5"),
    "vit_mean_pool": ("test_vit", 32, {"args": {"global_pool": "avg"}}, "blocks.5"),
    "swin": ("swin_tiny_patch4_window7_224", 64, {"args": {"embed_dim": 6, "depths": [1, 1, 1, 1]}}, "layers.3"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_map_is_the_definition(case: str) -> None:
    name, size, fields, module = CASES[case]
    tower, projection, pixels, texts = make(name, size, **fields)

    def project(features: Any) -> torch.Tensor:
        return nn.functional.normalize(projection(features.pooled), dim=1)

    before = [parameter.grad for parameter in tower.parameters()]
    with torch.inference_mode():
        found = grad_cam(tower.backbone, lambda: tower(pixels), project, texts, tower.config.tap)
    assert found.shape == (2, 2, *tower(pixels).grid)
    expected = by_definition(tower, projection, pixels, texts, module)
    assert expected.max() > 0
    torch.testing.assert_close(found.flatten(2).double(), expected, rtol=1e-3, atol=float(1e-3 * expected.max()))
    assert [parameter.grad for parameter in tower.parameters()] == before
    assert not torch.is_grad_enabled() or not found.requires_grad
    alone = grad_cam(tower.backbone, lambda: tower(pixels[1:2]), project, texts[1:], tower.config.tap)
    torch.testing.assert_close(alone[0, 0], found[1, 1], rtol=1e-4, atol=1e-7)


SWIN = {"embed_dim": 2, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "window_size": [2, 2, 2]}
VIT = {"depth": 2, "embed_dim": 24, "num_heads": 2}
CTVIT = {"dim": 12, "spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_dim": 8, "codes": None}
VOLUMES: dict[str, tuple[dict[str, Any], str]] = {
    "vit": ({"family": "vit", "name": "vit_tiny_patch16_224", "patch": [16, 16, 16], "args": VIT}, "blocks.1"),
    "swin": ({"family": "swin", "args": SWIN}, "layers4.0"),
    "ctvit": ({"family": "ctvit", "patch": [16, 16, 16], "args": CTVIT}, ""),
}


@pytest.mark.parametrize("case", ["vit", "ctvit", pytest.param("swin", marks=pytest.mark.slow)])
def test_the_map_of_a_volume_is_the_definition(case: str) -> None:
    """Over depth, height and width; a volume alone has the map that it has beside another."""
    fields, module = VOLUMES[case]
    torch.manual_seed(0)
    config = VolumeTowerConfig.model_validate({"kind": "volume", "input": {"size": [64, 32, 32]}, **fields})
    tower = build_tower(config).double().eval()
    projection = nn.Linear(tower.dim, 6, dtype=torch.float64)
    texts = nn.functional.normalize(torch.randn(2, 6, dtype=torch.float64), dim=1)
    pixels = torch.randn(2, 1, 64, 32, 32, dtype=torch.float64)

    def project(features: Any) -> torch.Tensor:
        return nn.functional.normalize(projection(features.pooled), dim=1)

    found = grad_cam(tower.backbone, lambda: tower(pixels), project, texts)
    assert found.shape == (2, 2, *tower(pixels).grid)
    expected = by_definition(tower, projection, pixels, texts, module)
    assert expected.max() > 0
    torch.testing.assert_close(found.flatten(2).double(), expected, rtol=1e-3, atol=float(1e-3 * expected.max()))
    alone = grad_cam(tower.backbone, lambda: tower(pixels[1:]), project, texts)
    torch.testing.assert_close(alone[0], found[1], rtol=1e-4, atol=1e-7)


def test_the_map_of_slices_is_that_of_each_slice() -> None:
    """A slice whose neighbours change keeps its activations: what no text looks at in it stays 0."""
    torch.manual_seed(0)
    fields = {"family": "slices", "name": "test_resnet", "input": {"size": [8, 32, 32]}}
    tower = build_tower(VolumeTowerConfig.model_validate({"kind": "volume", **fields})).eval()
    projection, pixels = nn.Linear(tower.dim, 6), torch.randn(2, 1, 8, 32, 32)
    texts = nn.functional.normalize(torch.randn(2, 6), dim=1)
    maps = grad_cam(tower.backbone, lambda: tower(pixels), lambda f: projection(f.pooled), texts)
    assert maps.shape == (2, 2, *tower(pixels).grid)
    assert maps.isfinite().all()
    assert (maps > 0).flatten(3).any(3).sum() > 8
