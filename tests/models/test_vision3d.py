"""Towers of volumes: what they share with the libraries, inflated 2D weights, left-out patches, axes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from safetensors.torch import save_file

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.tower import Tower
from medvlp.models.towers import build_tower

SIZE = (16, 32, 48)


def tower(**fields: Any) -> Tower:
    torch.manual_seed(0)
    given = {"kind": "volume", "name": "vit_tiny_patch16_224", "patch": (8, 16, 16), "input": {"size": SIZE}} | fields
    return build_tower(VolumeTowerConfig.model_validate(given)).eval()


def swin(**fields: Any) -> Tower:
    given = {"family": "swin", "name": None, "patch": None, "input": {"size": (32, 64, 32)}}
    return tower(**given | {"args": {"embed_dim": 12, "window_size": (4, 4, 4)}} | fields)


def test_tokens_of_a_transformer_are_row_major_over_depth_height_and_width() -> None:
    vit, pixels = tower(), torch.randn(2, 1, *SIZE)
    features, before = vit(pixels), vit.embed(pixels)
    assert features.grid == (2, 2, 3)
    assert features.tokens.shape == (2, 12, 192)
    pixels[1, 0, 8 + 3, 5, 16 + 2] += 1  # patch (1, 0, 1)
    changed = (vit.embed(pixels) != before).any(-1)[:, 1:]
    assert changed[1].nonzero().flatten().tolist() == [1 * 6 + 0 * 3 + 1]
    assert not changed[0].any()


def test_an_inflated_transformer_sees_a_volume_of_equal_slices_as_the_image(tmp_path: Path) -> None:
    torch.manual_seed(1)
    flat = timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=32, depth=2).eval()
    save_file(flat.state_dict(), tmp_path / "model.safetensors")
    weights: dict[str, Any] = {"weights": tmp_path, "input": {"size": (8, 32, 32)}, "args": {"depth": 2}}
    vit = tower(**weights)
    image = torch.randn(2, 1, 32, 32)
    wanted = flat.forward_features(image.expand(-1, 3, -1, -1))
    found = vit(image[:, :, None].expand(-1, -1, 8, -1, -1))
    # one channel stands for three: timm sums the kernels, so that it equals the image repeated
    torch.testing.assert_close(found.tokens, wanted[:, 1:], rtol=1e-4, atol=1e-5)
    assert vit.record["dropped"] == ["head.weight", "head.bias"]
    deeper = tower(**weights | {"input": {"size": (24, 32, 32)}})
    torch.testing.assert_close(
        deeper.backbone.pos_embed[:, 1:].unflatten(1, (3, 4)), vit.backbone.pos_embed[:, None, 1:].expand(-1, 3, -1, -1)
    )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="no 2D vision transformer"):
        tower(weights=tmp_path)


def test_a_kept_patch_is_the_same_token_in_whatever_order() -> None:
    vit, pixels = tower(), torch.randn(2, 1, *SIZE)
    keep = torch.stack([torch.randperm(12), torch.randperm(12)])
    whole = vit(pixels)
    wanted = torch.stack([whole.tokens[row, chosen] for row, chosen in enumerate(keep)])
    shuffled = vit.encode_visible(pixels, keep)
    torch.testing.assert_close(shuffled.tokens, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(shuffled.pooled, whole.pooled, rtol=1e-4, atol=1e-5)
    assert vit.encode_visible(pixels, keep[:, :3]).grid == (1, 3)


def test_token_drop_leaves_patches_out_in_training_alone() -> None:
    vit = tower(token_drop=0.5)
    pixels = torch.randn(1, 1, *SIZE)
    assert vit(pixels).tokens.shape[1] == 12
    assert vit.train()(pixels).tokens.shape[1] == 6


def test_maps_of_a_transformer_are_its_blocks() -> None:
    vit = tower(args={"depth": 4})
    pixels = torch.randn(1, 1, *SIZE)
    held: list[torch.Tensor] = []
    for block in vit.backbone.blocks:
        block.register_forward_hook(lambda _, __, output: held.append(output))
    maps = vit.feature_maps(pixels)
    assert [each.shape for each in maps] == [(1, 192, 2, 2, 3)] * 4
    for each, level in zip(maps, (1, 1, 2, 3), strict=True):
        torch.testing.assert_close(each.flatten(2).transpose(1, 2), held[level][:, 1:])


def test_swin_is_monais_encoder_with_the_corrected_merging() -> None:
    found = swin()
    net = SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), downsample="mergingv2").eval()
    net.load_state_dict(found.backbone.state_dict())
    pixels = torch.randn(1, 1, 32, 64, 32)
    features, wanted = found(pixels), net(pixels)
    assert features.grid == tuple(wanted[-1].shape[2:]) == found.grid_of(pixels) == (1, 2, 1)
    torch.testing.assert_close(features.tokens.transpose(1, 2).unflatten(2, features.grid), wanted[-1])
    torch.testing.assert_close(features.pooled, wanted[-1].mean((2, 3, 4)))
    assert len(found.feature_maps(pixels)) == 5


@pytest.mark.parametrize("make", [tower, swin])
def test_recomputed_activations_give_the_same_gradients(make: Any) -> None:
    net = make()
    pixels = torch.randn(2, 1, *net.config.input.size)
    gradients = []
    for enabled in (False, True):
        net.zero_grad()
        net.set_gradient_checkpointing(enabled)
        net.train()(pixels).pooled.square().sum().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


def test_a_frozen_tower_stays_as_it_is() -> None:
    net = swin(freeze=True).train()
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patch": (7, 16, 16)}, "do not divide"),
        ({"name": "resnet18"}, "cannot build|plain vision transformer"),
        ({"name": "vit_tinny_patch16_224"}, "Did you mean"),
        ({"family": "swin", "name": None, "patch": None, "input": {"size": (32, 48, 32)}}, "cannot be halved"),
        ({"family": "swin", "name": None, "patch": None, "args": {"widths": 3}}, "MONAI cannot build"),
    ],
)
def test_what_cannot_be_built_says_what_is_possible(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        tower(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"patch": None}, "patch is needed"),
        ({"family": "swin"}, "name has no effect"),
        ({"family": "swin", "name": None, "patch": None, "token_drop": 0.5}, "token_drop has no effect"),
    ],
)
def test_a_setting_without_effect_is_a_mistake(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tower(**fields)
