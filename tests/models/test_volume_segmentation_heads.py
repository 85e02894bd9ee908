"""The heads on maps of volumes against MONAI's own UNETR and SwinUNETR, weight by weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets import UNETR, SwinUNETR
from torch import nn

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.models.towers import build_tower
from medvlp.models.volume_segmentation import VolumeSegmenter


class FixedMaps(nn.Module):
    """A tower whose maps are given."""

    def __init__(self, shapes: list[tuple[int, ...]]) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(1))
        self.maps = [torch.randn(2, *shape) for shape in shapes]

    def feature_maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return [self.one * each[: len(pixels)] for each in self.maps]


def segmenter(tower: nn.Module, size: tuple[int, ...], **how: Any) -> VolumeSegmenter:
    given: dict[str, Any] = {"classes": 3, "decoder": "auto", "channels": 8, "frozen": False, "pixel_channels": 1}
    return VolumeSegmenter(tower, size=size, **given | how)


def test_unetr_is_that_of_monai() -> None:
    torch.manual_seed(0)
    size = (32, 32, 48)
    theirs = UNETR(1, 3, size, feature_size=8, hidden_size=24, mlp_dim=48, num_heads=2).eval()
    pixels = torch.randn(2, 1, *size)
    with torch.no_grad():
        final, hidden = theirs.vit(pixels)
        tower = FixedMaps([(24, 2, 2, 3)] * 4)
        tower.maps = [theirs.proj_feat(each) for each in (hidden[3], hidden[6], hidden[9], final)]
        ours = segmenter(tower, size).eval()
        names = [("head.first", theirs.encoder1), ("head.classifier", theirs.out.conv.conv)]
        names += [(f"head.enlarge.{i}", getattr(theirs, f"encoder{i + 2}")) for i in range(3)]
        names += [(f"head.up.{i}", getattr(theirs, f"decoder{5 - i}")) for i in range(4)]
        for name, module in names:
            ours.get_submodule(name).load_state_dict(module.state_dict(), strict=True)
        assert torch.allclose(ours(pixels), theirs(pixels), atol=1e-5)


def test_swin_unetr_is_that_of_monai() -> None:
    torch.manual_seed(0)
    size = (32, 32, 64)
    theirs = SwinUNETR(1, 3, feature_size=12, num_heads=(1, 2, 4, 8), downsample="mergingv2").eval()
    tower = build_tower(
        VolumeTowerConfig.model_validate(
            {
                "kind": "volume",
                "family": "swin",
                "args": {"embed_dim": 12, "num_heads": [1, 2, 4, 8]},
                "input": {"size": size},
            }
        )
    )
    tower.backbone.load_state_dict(theirs.swinViT.state_dict(), strict=True)
    ours = segmenter(tower, size, channels=12).eval()
    names = [("head.first", theirs.encoder1), ("head.classifier", theirs.out.conv.conv)]
    names += [(f"head.lateral.{i}", getattr(theirs, f"encoder{i + 2}")) for i in range(3)]
    names += [("head.lateral.4", theirs.encoder10)]
    names += [(f"head.up.{i}", getattr(theirs, f"decoder{5 - i}")) for i in range(5)]
    for name, module in names:
        ours.get_submodule(name).load_state_dict(module.state_dict(), strict=True)
    pixels = torch.randn(2, 1, *size)
    with torch.no_grad():
        assert torch.allclose(ours(pixels), theirs(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("size", "grid"), [((32, 32, 32), (4, 4, 4)), ((16, 32, 32), (4, 2, 2)), ((24, 24, 24), (6, 6, 6))]
)
@pytest.mark.parametrize("decoder", ["auto", "linear"])
def test_any_patch_gives_logits_of_every_voxel(size: tuple[int, ...], grid: tuple[int, ...], decoder: str) -> None:
    ours = segmenter(FixedMaps([(6, *grid)] * 4), size, decoder=decoder)
    logits = ours(torch.randn(2, 1, *size))
    assert logits.shape == (2, 3, *size)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.head.parameters())
    assert ours.tower.one.grad.abs().sum() > 0


def test_a_frozen_tower_gets_no_gradient_and_stays_in_evaluation_mode() -> None:
    ours = segmenter(FixedMaps([(6, 4, 4, 4)] * 4), (32, 32, 32), frozen=True).train()
    ours(torch.randn(2, 1, 32, 32, 32)).square().mean().backward()
    assert ours.tower.one.grad is None
    assert not ours.tower.training


@pytest.mark.parametrize(
    ("shapes", "size", "decoder", "message"),
    [
        ([(6, 4, 4, 4)] * 4, (32, 32, 32), "swin_unetr", "one stride"),
        ([(6, 8, 8, 8), (6, 4, 4, 4)], (32, 32, 32), "unetr", "several strides"),
        ([(6, 3, 3, 3)] * 4, (30, 30, 30), "auto", "halved"),
        ([(6, 10, 10, 10), (6, 4, 4, 4)], (40, 40, 40), "auto", "divide"),
    ],
)
def test_a_head_that_does_not_fit_says_so(shapes: Any, size: Any, decoder: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        segmenter(FixedMaps(shapes), size, decoder=decoder)
