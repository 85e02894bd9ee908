"""Inflated ResNets against the flat ones that they are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.inflate import InflatedResNet
from medvlp.models.towers import build_tower

SIZE = (16, 32, 32)


def config(name: str = "resnet10t", **fields: Any) -> VolumeTowerConfig:
    return VolumeTowerConfig.model_validate(
        {"kind": "volume", "family": "resnet", "name": name, "input": {"size": SIZE}, **fields}
    )


def flat(name: str = "resnet10t") -> Any:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=0, in_chans=1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):  # as after training
                module.weight.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_file(flat().state_dict(), tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", ["resnet10t", "resnet26", "resnet26d"])
def test_a_volume_of_equal_slices_gives_the_features_of_the_slice(name: str) -> None:
    image = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = flat(name).forward_intermediates(image)[1]
        maps = InflatedResNet(flat(name), "centre").eval().maps(image[:, :, None].expand(-1, -1, 16, -1, -1))
    assert [each.shape[2] for each in maps] == [16, 8, 4, 2, 1]
    for made, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(made, wanted[:, :, None].expand_as(made), rtol=1e-4, atol=1e-5)


def test_spread_weights_add_up_to_the_flat_ones() -> None:
    spread, whole = InflatedResNet(flat(), "mean"), flat()
    kernels = {name: m for name, m in whole.named_modules() if isinstance(m, nn.Conv2d)}
    for name, module in kernels.items():
        kernel = spread.get_submodule(name).weight
        torch.testing.assert_close(kernel.sum(2), module.weight)
        torch.testing.assert_close(kernel[:, :, 0], kernel[:, :, -1])


def test_the_tower_takes_flat_weights_and_says_so(weights: Path) -> None:
    tower = build_tower(config(weights=weights)).eval()
    image = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = tower(image[:, :, None].expand(-1, -1, 16, -1, -1))
        expected = flat().forward_features(image)
    torch.testing.assert_close(features.pooled, expected.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert features.grid == tower.grid_of(torch.empty(1, 1, *SIZE)) == (1, 1, 1)
    assert tower.record["inflation"] == "centre"
    assert tower.record["file"] == "model.safetensors"


def test_fresh_kernels_fill_all_slices() -> None:
    kernel = build_tower(config()).backbone.layer1[0].conv1.weight
    assert all(kernel[:, :, place].std() > 0 for place in range(3))


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    pixels = torch.randn(2, 1, *SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    for enabled in (False, True):
        torch.manual_seed(1)
        tower = build_tower(config())
        tower.set_gradient_checkpointing(enabled)
        tower(pixels).pooled.square().sum().backward()
        found.append(({n: p.grad for n, p in tower.named_parameters()}, dict(tower.named_buffers())))
    for plain, again in zip(*found, strict=True):
        for name, value in plain.items():
            torch.testing.assert_close(again[name], value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "resnet19x"}, "no backbone named"),
        ({"name": "convnext_atto"}, "Only ResNets"),
        ({"name": "seresnet50"}, "SEModule"),
        ({"name": "resnet10t", "args": {"inflation": "mean"}}, "no weights to inflate"),
        ({"name": "resnet10t", "args": {"depths": 3}}, "timm cannot build"),
    ],
)
def test_what_cannot_be_built_says_why(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_tower(config(**fields))
