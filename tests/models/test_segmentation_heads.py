"""Dense heads against transformers' UPerNet with the same weights, and against U-Net in plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.nn import functional
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.segmentation import Segmenter, TokenPyramid, UNetHead, UPerNetHead
from medvlp.models.vision2d import ImageTower
from medvlp.types import Features

WIDTHS = (8, 12, 20, 24)


def maps_of(widths: tuple[int, ...], side: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2, width, side >> level, side >> level) for level, width in enumerate(widths)]


def randomised(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic a value of its own, so that none can stand for another."""
    with torch.no_grad():
        for tensor in [*module.parameters(), *(b for b in module.buffers() if b.is_floating_point())]:
            tensor.copy_(torch.rand_like(tensor) + 0.2 if tensor.ndim == 1 else torch.randn_like(tensor) * 0.1)
    return module


def into_transformers(head: UPerNetHead, theirs: UperNetHead) -> None:
    """Copy our weights under the names of transformers."""
    own, names = head.decoder.state_dict(), {"0": "conv", "1": "batch_norm"}
    levels = len(WIDTHS)
    wanted: dict[str, str] = {}
    for block in range(4):
        wanted[f"psp.blocks.{block}.1"] = f"psp_modules.{block}.1"
    wanted["psp.out_conv"] = "bottleneck"
    for level in range(levels - 1):  # theirs from fine to coarse, ours from coarse to fine
        wanted[f"fpn_lateral_blocks.{level}.conv_norm_relu"] = f"lateral_convs.{levels - 2 - level}"
        wanted[f"fpn_conv_blocks.{level}"] = f"fpn_convs.{levels - 2 - level}"
    wanted["fusion_block"] = "fpn_bottleneck"
    state = {}
    for ours, name in wanted.items():
        for key, value in own.items():
            if key.startswith(f"{ours}."):
                place, _, rest = key.removeprefix(f"{ours}.").partition(".")
                state[f"{name}.{names[place]}.{rest}"] = value
    state |= {f"classifier.{key}": value for key, value in head.classifier[1].state_dict().items()}
    theirs.load_state_dict(state, strict=True)
    assert len(state) == len(own) + 2


@pytest.mark.parametrize("training", [False, True])
def test_upernet_without_norms_is_that_of_transformers(training: bool) -> None:
    torch.manual_seed(0)
    config = UperNetConfig(hidden_size=16, num_labels=3, auxiliary_channels=256)
    head = randomised(UPerNetHead(WIDTHS, 3, 16, level_norm=False)).train(training)
    theirs = UperNetHead(config, list(WIDTHS)).train(training)
    into_transformers(head, theirs)
    for module in head.modules():
        if isinstance(module, nn.Dropout2d):
            module.p = 0.0  # theirs has none
    maps = maps_of(WIDTHS)
    found = head(maps, (128, 128))
    torch.testing.assert_close(found[0], theirs(maps), rtol=1e-4, atol=1e-5)
    assert len(found) == 1 + training, "the auxiliary head speaks in training alone"
    if training:
        auxiliary = UperNetFCNHead(config, list(WIDTHS)).train()
        pairs = zip(auxiliary.state_dict(), head.auxiliary.state_dict().values(), strict=True)
        auxiliary.load_state_dict(dict(pairs))
        torch.testing.assert_close(found[1], auxiliary(maps), rtol=1e-4, atol=1e-5)


def test_level_norms_come_first() -> None:
    torch.manual_seed(0)
    normed = UPerNetHead(WIDTHS, 2, 16, level_norm=True).eval()
    bare = UPerNetHead(WIDTHS, 2, 16, level_norm=False).eval()
    bare.load_state_dict(normed.state_dict(), strict=False)
    maps = maps_of(WIDTHS)
    by_hand = [functional.layer_norm(each.movedim(1, 3), each.shape[1:2], eps=1e-6).movedim(3, 1) for each in maps]
    torch.testing.assert_close(normed(maps, (128, 128))[0], bare(by_hand, (128, 128))[0], rtol=1e-4, atol=1e-5)


def test_three_levels_are_enough() -> None:
    head = UPerNetHead(WIDTHS[:3], 2, 16, level_norm=False)
    found = head(maps_of(WIDTHS[:3]), (128, 128))
    assert [tuple(each.shape) for each in found] == [(2, 2, 32, 32), (2, 2, 16, 16)]
    assert head.auxiliary[0].in_channels == 12, "the last level but one, as BenchX has it for MedKLIP"


def plain_unet(head: UNetHead, maps: list[torch.Tensor], sizes: list[int]) -> torch.Tensor:
    """Compute the decoder of U-Net with the weights of a head, step by step."""
    found, skips = maps[-1], [*maps[-2::-1]]
    for number, (block, size) in enumerate(zip(head.decoder.blocks, sizes, strict=True)):
        found = functional.interpolate(found, (size, size), mode="nearest")
        if number < len(skips):
            found = torch.cat([found, skips[number]], 1)
        for convolution in (block.conv1, block.conv2):
            conv, norm = convolution[0], convolution[1]
            found = functional.conv2d(found, conv.weight, padding=1)
            found = (found - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
            found = (found * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    return functional.conv2d(found, head.classifier.weight, head.classifier.bias, padding=1)


def test_unet_is_skips_and_convolutions_up_to_the_pixels() -> None:
    torch.manual_seed(0)
    maps = maps_of(WIDTHS, 16)
    whole = randomised(UNetHead(WIDTHS, (2, 4, 8, 16), 3, 64)).eval()
    assert isinstance(whole, UNetHead)
    torch.testing.assert_close(whole(maps, (32, 32))[0], plain_unet(whole, maps, [4, 8, 16, 32]), rtol=1e-4, atol=1e-5)
    bridged = randomised(UNetHead(WIDTHS, (4, 8, 16, 32), 3, 64)).eval()
    assert isinstance(bridged, UNetHead)
    wanted = plain_unet(bridged, maps, [4, 8, 16, 32, 64])
    torch.testing.assert_close(bridged(maps, (64, 64))[0], wanted, rtol=1e-4, atol=1e-5)


def test_the_token_pyramid_has_four_strides() -> None:
    torch.manual_seed(0)
    pyramid = TokenPyramid(8).eval()
    maps = [torch.randn(1, 8, 6, 6) for _ in range(4)]
    found = pyramid(maps)
    assert [each.shape[2] for each in found] == [24, 12, 6, 3]
    assert torch.equal(found[2], maps[2])
    blocks = maps[3].reshape(1, 8, 3, 2, 3, 2)
    torch.testing.assert_close(found[3], blocks.amax((3, 5)))
    # A transposed convolution of stride 2 and size 2 is one small matrix product at every place.
    weight, bias = pyramid.up2.weight, pyramid.up2.bias
    torch.testing.assert_close(
        found[1][0, :, 2 * 4 + 1, 2 * 5], maps[1][0, :, 4, 5] @ weight[:, :, 1, 0] + bias, rtol=1e-4, atol=1e-5
    )


def segmenter(name: str, size: int = 64, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    tower = ImageTower(ImageTowerConfig.model_validate({"name": name, "input": ModelInputConfig(size=size)}))
    given = {"decoder": "upernet", "channels": 16, "level_norm": True, "frozen": True, "pixel_channels": 1}
    return Segmenter(tower, side=options.pop("side", size), classes=2, **{**given, **options})


@pytest.mark.parametrize("decoder", ["upernet", "unet"])
@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_logits_have_the_size_of_the_pixels(name: str, decoder: str) -> None:
    model = segmenter(name, decoder=decoder, side=96)
    pixels = torch.randn(2, 1, 96, 96)
    assert model.eval()(pixels)[0].shape == (2, 2, 96, 96)
    assert len(model.train()(pixels)) == (2 if decoder == "upernet" else 1)


def test_a_frozen_tower_gets_no_gradient_and_keeps_its_statistics() -> None:
    frozen, tuned = segmenter("resnet18"), segmenter("resnet18", frozen=False)
    pixels = torch.randn(2, 1, 64, 64)
    for model in (frozen, tuned):
        before = model.tower.backbone.bn1.running_mean.clone()
        model.train()
        model(pixels)[0].square().mean().backward()
        changed = not torch.equal(model.tower.backbone.bn1.running_mean, before)
        got = model.tower.backbone.conv1.weight.grad is not None
        assert (changed, got) == ((False, False) if model is frozen else (True, True))
        assert model.head.classifier[1].weight.grad.abs().sum() > 0


def test_stochastic_depth_may_stay_on_in_a_frozen_transformer() -> None:
    model = segmenter("test_vit", drop_path=0.5).train()
    rates = [block.drop_path1.drop_prob for block in model.tower.backbone.blocks]
    assert rates[0] == 0
    assert rates[-1] == 0.5
    assert all(block.drop_path1.training for block in model.tower.backbone.blocks)
    assert not model.tower.backbone.blocks[0].attn.training
    assert not any(isinstance(module, DropPath) for module in segmenter("test_vit").tower.modules())


class Blind(nn.Module):
    """An encoder with one vector an image."""

    def forward(self, pixels: torch.Tensor) -> Features:
        return Features(pixels.mean((2, 3))[:, None], pixels.mean((2, 3)), (1, 1))


def test_an_encoder_without_a_grid_is_refused() -> None:
    options: dict[str, Any] = {"pixel_channels": 1, "classes": 1, "channels": 16, "level_norm": True, "frozen": True}
    with pytest.raises(UserError, match="have no grid"):
        Segmenter(Blind(), side=32, decoder="unet", **options)
    with pytest.raises(UserError, match="have no grid"):
        segmenter("test_vit", 16)  # a single patch


def test_a_size_that_does_not_fit_names_the_setting() -> None:
    with pytest.raises(UserError, match="cannot take pixels of 10 x 10"):
        segmenter("test_vit", 64, side=10)
