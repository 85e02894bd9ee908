"""Towers of clips: torchvision's MViT and timm's backbones frame by frame, sizes, weights, and memory for time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.models.video import mvit_v2_s

from medvlp.config.towers import ClipTowerConfig
from medvlp.errors import UserError
from medvlp.models.vision_clip import FramesTower, MViTTower

SMALL = {"stages": [[8, 1, 1], [16, 2, 2], [32, 2, 1]]}
INPUT = {"size": 32, "frames": 4}


def config(family: str, **changes: Any) -> ClipTowerConfig:
    own = {"name": "resnet10t"} if family == "frames" else {"args": SMALL}
    return ClipTowerConfig.model_validate({"kind": "video", "family": family, "input": INPUT, **own, **changes})


def tower(family: str, **changes: Any) -> MViTTower | FramesTower:
    torch.manual_seed(0)
    return {"mvit": MViTTower, "frames": FramesTower}[family](config(family, **changes)).eval()


def clips(frames: int = 4, size: int = 32, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, frames, size, size, generator=torch.Generator().manual_seed(1))


def test_the_default_is_mvit_v2_s_of_torchvision() -> None:
    reference = mvit_v2_s().eval()
    own = tower("mvit", args={}, input={"size": 224, "frames": 16})
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("head.")}
    own.backbone.load_state_dict(state, strict=True)
    reference.head = torch.nn.Identity()
    # Smaller clips take less time: torchvision reads the grid off this module.
    reference.pos_encoding.spatial_size, reference.pos_encoding.temporal_size = (16, 16), 2
    pixels = clips(4, 64)
    with torch.inference_mode():
        features = own(pixels)
        torch.testing.assert_close(features.pooled, reference(pixels))
    assert features.tokens.shape == (2, 2 * 2 * 2, 768)
    assert features.grid == own.grid_of(pixels) == (2, 2, 2)


def test_frames_are_encoded_one_by_one_and_averaged() -> None:
    own = tower("frames")
    backbone = timm.create_model("resnet10t", num_classes=0)
    backbone.load_state_dict(own.backbone.state_dict())
    pixels = clips()
    with torch.inference_mode():
        features = own(pixels)
        each = [backbone.eval().forward_features(pixels[:, :, frame]) for frame in range(4)]
    torch.testing.assert_close(features.pooled, torch.stack([one.mean((2, 3)) for one in each]).mean(0))
    height, width = each[0].shape[2:]
    assert features.grid == (4, height, width)
    torch.testing.assert_close(
        features.tokens.unflatten(1, features.grid)[:, 2], each[2].permute(0, 2, 3, 1), msg="frame 2"
    )


def test_time_is_the_first_axis_of_the_tokens() -> None:
    """A change of the last frames alone leaves the tokens of the first ones as they are."""
    own, pixels = tower("frames"), clips()
    changed = pixels.clone()
    changed[:, :, 3] += 1
    with torch.inference_mode():
        grid = own(pixels).grid
        before, after = (own(x).tokens.unflatten(1, grid) for x in (pixels, changed))
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


@pytest.mark.parametrize("family", ["mvit", "frames"])
def test_the_deepest_map_is_the_grid_of_the_tokens(family: str) -> None:
    own, pixels = tower(family), clips()
    with torch.inference_mode():
        maps, features = own.feature_maps(pixels), own(pixels)
    sizes = [tuple(each.shape[2:]) for each in maps]
    assert sizes == sorted(sizes, reverse=True)
    torch.testing.assert_close(maps[-1].flatten(2).transpose(1, 2), features.tokens)
    assert sizes[-1] == features.grid


@pytest.mark.parametrize("family", ["mvit", "frames"])
def test_recomputing_activations_changes_no_gradient(family: str) -> None:
    gradients = []
    for recompute in (False, True):
        own = tower(family).train()
        own.set_gradient_checkpointing(recompute)
        torch.manual_seed(3)
        own(clips()).pooled.square().sum().backward()
        gradients.append([p.grad for p in own.parameters()])
    for plain, again in zip(*gradients, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, again)


def test_recomputing_keeps_less() -> None:
    kept = []
    for recompute in (False, True):
        own, bytes_kept = tower("mvit").train(), [0]
        own.set_gradient_checkpointing(recompute)

        def pack(tensor: torch.Tensor, total: list[int] = bytes_kept) -> torch.Tensor:
            total[0] += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            own(clips())
        kept.append(bytes_kept[0])
    assert kept[1] < kept[0] / 4


def test_weights_of_another_size_are_resampled_and_named(tmp_path: Path) -> None:
    torch.manual_seed(1)
    large = tower("mvit", input={"size": 64, "frames": 8}).backbone.state_dict()
    save_file(large | {"head.1.weight": torch.zeros(4, 32), "head.1.bias": torch.zeros(4)}, tmp_path / "m.safetensors")
    own = tower("mvit", weights=tmp_path / "m.safetensors")
    assert own.record["dropped"] == ["head.1.bias", "head.1.weight"]
    assert all(".rel_pos_" in key for key in own.record["adapted"])
    assert len(own.record["adapted"]) == 3 * 4
    same = tower("mvit", weights=tmp_path / "m.safetensors", input={"size": 64, "frames": 8})
    assert same.record["adapted"] == []
    assert all(torch.equal(large[key], value) for key, value in same.backbone.state_dict().items())
    # torchvision resamples the tables in each call, when clips are of another size than the model.
    pixels = clips()
    with torch.inference_mode():
        torch.testing.assert_close(own(pixels).pooled, same(pixels).pooled, rtol=1e-4, atol=1e-5)


def test_a_frozen_tower_stays_as_it_is() -> None:
    own = tower("mvit", freeze=True).train()
    assert not own.training
    assert not any(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"size": 40, "frames": 4}}, "multiple of 16"),
        ({"input": {"size": 32, "frames": 5}}, "even number of frames"),
        ({"input": {**INPUT, "channels": 1}}, "3"),
        ({"args": {**SMALL, "heads": 3}}, "args"),
        ({"args": {"stages": [[8, 1, 1]]}}, "division by zero"),
    ],
)
def test_what_mvit_cannot_do_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        tower("mvit", **changes)
    assert message in f"{error.value.what} {error.value.where} {error.value.fix}"


def test_weights_with_a_name_too_many_are_refused(tmp_path: Path) -> None:
    state = tower("mvit").backbone.state_dict()
    save_file(state | {"blocks.9.norm1.weight": torch.zeros(8)}, tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"blocks\.9\.norm1\.weight"):
        tower("mvit", weights=tmp_path / "m.safetensors")
