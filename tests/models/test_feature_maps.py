"""Maps of towers against plain loops over the layers of the library that each tower comes from."""

from __future__ import annotations

import pytest
import timm
import torch
import transformers

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.feature_maps import channel_norm, plain_levels
from medvlp.models.vision2d import ImageTower
from medvlp.zoo.hub import HubTower
from medvlp.zoo.release import ImageConfig
from medvlp.zoo.released_towers import ReleasedTower, build_tower


def tower(name: str, size: int, **fields: object) -> ImageTower:
    config = ImageTowerConfig.model_validate({"name": name, "input": ModelInputConfig(size=size), **fields})
    return ImageTower(config).eval()


def released(family: str, name: str, **fields: object) -> ReleasedTower:
    views = {"official": {"because": "test"}}
    config = ImageConfig.model_validate({"family": family, "name": name, "views": views, **fields})
    return build_tower(config).eval()


def normalised(maps: torch.Tensor) -> torch.Tensor:
    """Normalise over channels, in plain steps."""
    centred = maps - maps.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()


def test_blocks_of_plain_transformers_are_those_of_mmsegmentation() -> None:
    assert plain_levels(12) == [3, 5, 7, 11]
    assert plain_levels(11) == [3, 5, 7, 10]
    assert plain_levels(1) == [0, 0, 0, 0]


@torch.inference_mode()
def test_maps_of_a_resnet_are_its_stages_and_end_with_the_tokens() -> None:
    model, pixels = tower("resnet18", 64), torch.randn(2, 1, 64, 96)
    net = model.backbone
    stages = [net.act1(net.bn1(net.conv1(pixels)))]
    below = net.maxpool(stages[0])
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        below = layer(below)
        stages.append(below)
    maps = model.feature_maps(pixels)
    assert [tuple(each.shape[1:]) for each in maps] == [
        (64, 32, 48),
        (64, 16, 24),
        (128, 8, 12),
        (256, 4, 6),
        (512, 2, 3),
    ]
    for found, wanted in zip(maps, stages, strict=True):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), model(pixels).tokens)


@torch.inference_mode()
def test_a_truncated_resnet_ends_with_its_last_stage_and_a_tap_changes_nothing() -> None:
    pixels = torch.randn(1, 1, 64, 64)
    short = tower("resnet18", 64, tap="layer3", truncate=True)
    assert [each.shape[1] for each in short.feature_maps(pixels)] == [64, 64, 128, 256]
    assert len(tower("resnet18", 64, tap="layer3").feature_maps(pixels)) == 5


@torch.inference_mode()
def test_maps_of_a_plain_transformer_are_four_of_its_blocks_the_last_one_normalised() -> None:
    model = tower("vit_tiny_patch16_224", 64, args={"depth": 6})
    model.set_input_size(96)
    pixels = torch.randn(2, 1, 96, 96)
    net, states = model.backbone, []
    below = net._pos_embed(net.patch_embed(pixels))
    for block in net.blocks:
        below = block(below)
        states.append(below)
    maps = model.feature_maps(pixels)
    for found, wanted in zip(maps, [states[1], states[2], states[3], net.norm(states[5])], strict=True):
        torch.testing.assert_close(found[:, :, 1, 2], wanted[:, 1 + 1 * 6 + 2])
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), model(pixels).tokens)


@torch.inference_mode()
def test_maps_of_a_hierarchical_transformer_keep_its_windows_at_another_size() -> None:
    args = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    model = tower("swin_tiny_patch4_window7_224", 224, args=args)
    window = model.backbone.layers[0].blocks[0].window_size
    tables = [block.attn.relative_position_bias_table.clone() for block in model.backbone.layers[0].blocks]
    model.set_input_size(128)
    assert model.backbone.layers[0].blocks[0].window_size == window
    assert torch.equal(model.backbone.layers[0].blocks[0].attn.relative_position_bias_table, tables[0])
    pixels = torch.randn(1, 1, 128, 128)
    below, stages = model.backbone.patch_embed(pixels), []
    for layer in model.backbone.layers:
        below = layer(below)
        stages.append(below.permute(0, 3, 1, 2))
    maps = model.feature_maps(pixels)
    assert [each.shape[2] for each in maps] == [32, 16, 8, 4]
    for found, wanted in zip(maps[:-1], stages[:-1], strict=True):
        torch.testing.assert_close(found, normalised(wanted), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), model(pixels).tokens)


@torch.inference_mode()
def test_released_towers_give_the_maps_of_the_same_backbone() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 64, 64)
    resnet = released("resnet", "resnet18", last="layer3")
    assert [each.shape[1] for each in resnet.feature_maps(pixels)] == [64, 64, 128, 256]
    torch.testing.assert_close(resnet.feature_maps(pixels)[-1].flatten(2).transpose(1, 2), resnet(pixels).tokens)
    vit = released("vit", "vit_tiny_patch16_224", args={"img_size": 64, "depth": 3})
    own = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=0).eval()
    own.load_state_dict(vit.backbone.state_dict())
    wanted = own.forward_intermediates(pixels, indices=[0, 1, 2], norm=False, intermediates_only=True)
    found = vit.feature_maps(pixels)
    for place, level in enumerate((0, 1, 1)):
        torch.testing.assert_close(found[place], wanted[level])
    torch.testing.assert_close(found[-1].flatten(2).transpose(1, 2), vit(pixels).tokens)
    assert vit.feature_maps(torch.randn(1, 3, 96, 96))[0].shape[2:] == (6, 6), "positions are resized"


@torch.inference_mode()
def test_released_transformers_with_windows_or_rotations_give_maps_at_another_size() -> None:
    torch.manual_seed(0)
    args = {"embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 1, 2, 2)}
    swin, pixels = released("swin", "swin_tiny_patch4_window7_224", args=args), torch.randn(1, 3, 128, 128)
    with pytest.raises(UserError, match="windows of the checkpoint are those of 224"):
        swin.feature_maps(pixels)
    swin.set_input_size(128)
    maps = swin.feature_maps(pixels)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)]
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), swin(pixels).tokens)
    eva = released("eva", "eva02_tiny_patch14_224", args={"img_size": 42, "depth": 2, "dynamic_img_size": True})
    pixels = torch.randn(1, 3, 56, 56)
    maps = eva.feature_maps(pixels)
    assert [tuple(each.shape[2:]) for each in maps] == [(4, 4)] * 4
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), eva(pixels).tokens)
    with pytest.raises(UserError, match="do not divide into patches of 14"):
        eva.set_input_size(50)


@torch.inference_mode()
def test_models_of_transformers_give_maps_of_their_layers() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 64, 64)
    small = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    vit = HubTower(transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **small)).eval())
    states = vit.model(pixel_values=pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    maps = vit.feature_maps(pixels)
    assert [tuple(each.shape[1:]) for each in maps] == [(16, 8, 8)] * 4
    torch.testing.assert_close(maps[0][:, :, 2, 3], states.hidden_states[1][:, 1 + 2 * 8 + 3])
    torch.testing.assert_close(maps[-1][:, :, 2, 3], states.last_hidden_state[:, 1 + 2 * 8 + 3])
    swin_config = transformers.SwinConfig(image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2])
    swin = HubTower(transformers.SwinModel(swin_config).eval())
    maps = swin.feature_maps(pixels)
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 16, 16), (16, 8, 8)]
    embedded, size = swin.model.embeddings(pixels)
    first = swin.model.encoder.layers[0].blocks[0](embedded, size)
    first = first[0] if isinstance(first, tuple) else first
    torch.testing.assert_close(maps[0], channel_norm(first.transpose(1, 2).unflatten(2, (16, 16))))
    convolutional = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic"
    )
    maps = HubTower(transformers.ResNetModel(convolutional).eval()).feature_maps(pixels)
    assert [tuple(each.shape[1:]) for each in maps] == [(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)]
