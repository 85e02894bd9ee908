"""Image towers against timm itself: token order, grids, pooling, sizes, strict weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.vision2d import ImageTower


def tower(name: str, size: int, channels: int = 1, **fields: object) -> ImageTower:
    config = ImageTowerConfig.model_validate(
        {"name": name, "input": ModelInputConfig(size=size, channels=channels), **fields}
    )
    return ImageTower(config).eval()


@torch.inference_mode()
def test_cnn_tokens_are_row_major_and_pool_to_their_mean() -> None:
    model = tower("resnet18", 96)
    pixels = torch.randn(2, 1, 64, 96)
    features = model(pixels)
    maps = model.backbone.forward_features(pixels)
    assert features.grid == (2, 3)
    assert model.dim == features.tokens.shape[2] == 512
    torch.testing.assert_close(features.tokens[:, 1 * 3 + 2], maps[:, :, 1, 2])
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "grid", "prefix"),
    [
        ("vit_tiny_patch16_224", (6, 6), 1),
        ("deit3_small_patch16_224", (6, 6), 1),
        ("eva02_tiny_patch14_224", (6, 6), 1),
    ],
)
def test_vit_tokens_have_no_prefix_and_fit_another_size(name: str, grid: tuple[int, int], prefix: int) -> None:
    size = grid[0] * (14 if "14" in name else 16)
    model = tower(name, size)
    pixels = torch.randn(2, 1, size, size)
    features, states = model(pixels), model.backbone.forward_features(pixels)
    assert features.grid == grid
    assert states.shape[1] == prefix + grid[0] * grid[1]
    torch.testing.assert_close(features.tokens, states[:, prefix:])
    torch.testing.assert_close(features.pooled, model.backbone(pixels))


def test_pixels_that_no_patch_covers_are_refused() -> None:
    with pytest.raises(UserError, match="40 pixels does not split into the patches of 16"):
        tower("vit_tiny_patch16_224", 40)
    published = tower("vit_so400m_patch14_siglip_384", 384, args={"depth": 1})  # 27 x 27 patches of 14
    assert published.grid_of(torch.zeros(1, 1, 384, 384)) == (27, 27)


@torch.inference_mode()
def test_swin_tokens_are_row_major_and_fit_another_size() -> None:
    model = tower("swin_tiny_patch4_window7_224", 96)
    pixels = torch.randn(1, 1, 96, 96)
    features, maps = model(pixels), model.backbone.forward_features(pixels)
    assert features.grid == (3, 3)
    torch.testing.assert_close(features.tokens[:, 1 * 3 + 2], maps[:, 1, 2])
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))


def test_every_parameter_is_used() -> None:
    for name in ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_b0"):
        model = tower(name, 64)
        model(torch.randn(2, 1, 64, 64)).pooled.sum().backward()
        assert [k for k, p in model.named_parameters() if p.grad is None] == [], name


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = tower("vit_tiny_patch16_224", 64).train()
    pixels = torch.randn(2, 1, 64, 64)
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        assert model.backbone.grad_checkpointing == enabled
        model.zero_grad()
        model(pixels).pooled.square().sum().backward()
        gradients.append(model.backbone.patch_embed.proj.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("name", ["resnet18", "densenet121"])
def test_gradient_checkpointing_takes_running_statistics_once(name: str) -> None:
    states = []
    for enabled in (False, True):
        torch.manual_seed(0)
        tower = ImageTower(ImageTowerConfig(name=name, input=ModelInputConfig(size=32))).train()
        tower.set_gradient_checkpointing(enabled)
        for _ in range(2):
            tower(torch.randn(4, 1, 32, 32)).pooled.sum().backward()
        states.append(dict(tower.named_buffers()))
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key


@torch.inference_mode()
def test_local_weights_with_three_channels_see_grey_as_repeated(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("resnet18", num_classes=5).eval()
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = tower("resnet18", 64, weights=tmp_path)
    assert model.record == {
        "file": "model.safetensors",
        "adapted": ["conv1.weight"],
        "dropped": ["fc.weight", "fc.bias"],
    }
    pixels = torch.randn(2, 1, 64, 64)
    expected = source.forward_head(source.forward_features(pixels.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(model(pixels).pooled, expected, rtol=1e-4, atol=1e-5)


def test_local_vit_weights_get_their_positions_resampled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    model = tower("vit_tiny_patch16_224", 96, 3, weights=tmp_path / "weights.safetensors")
    assert model.record["adapted"] == ["pos_embed"]
    target = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=96)
    expected = timm.models.vision_transformer.checkpoint_filter_fn(source.state_dict(), target)["pos_embed"]
    torch.testing.assert_close(model.backbone.pos_embed.detach(), expected)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    state = timm.create_model("resnet18", num_classes=0).state_dict()
    state["surprise.weight"] = state.pop("layer1.0.conv1.weight")
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing \(1\): layer1.0.conv1.weight; unexplained \(1\): surprise.weight"):
        tower("resnet18", 64, 3, weights=tmp_path)
    with pytest.raises(UserError, match="has no weight file"):
        tower("resnet18", 64, weights=tmp_path.parent)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be read"):
        tower("resnet18", 64, weights=tmp_path)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"conv1.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be read"):
        tower("resnet18", 64, weights=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_unknown_and_unusable_backbones_are_user_errors() -> None:
    with pytest.raises(UserError, match="Did you mean 'resnet18'"):
        tower("resnet188", 64)
    with pytest.raises(UserError, match="another width"):
        tower("mobilenetv3_small_100", 64)
    with pytest.raises(UserError, match="cannot build"):
        tower("vgg11", 64, drop_path=0.1)
