"""ResNets of timm made three-dimensional (I3D, Carreira and Zisserman, arXiv 1705.07750).

Guarantee: kernels with extent grow to three slices, those of one pixel to one slice; depth is halved where height and
width are, but in the first convolution. A volume whose slices are all the same gives the features of the slice:
everywhere if weights go to the middle slice, and far from the first and last slices if they are spread.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import timm
import torch
from timm.models.resnet import ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint_sequential

from medvlp.config.towers import VolumeTowerConfig
from medvlp.errors import UserError, nearest
from medvlp.models.tower import Tower
from medvlp.models.vision2d import hold_statistics, load_timm_weights
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch.utils.hooks import RemovableHandle

Inflation = Literal["centre", "mean"]
SLICES = 3
"""Extent of an inflated kernel along depth."""
STAGES = ("layer1", "layer2", "layer3", "layer4")


class ResNet3d(Tower):
    """An inflated ResNet as a tower: tokens are the last map, pooled is their mean.

    Without 2D weights the kernels are drawn in three dimensions.

    Args:
        config: timm name, 2D weights, model input; `args` are timm's and `inflation` (centre or mean) of the weights.

    Raises:
        UserError: The backbone is no plain ResNet, or weights that do not fit.
    """

    def __init__(self, config: VolumeTowerConfig) -> None:
        super().__init__()
        self.config = config
        args = dict(config.args)
        inflation = args.pop("inflation", "centre")
        if inflation not in get_args(Inflation) or ("inflation" in config.args and config.weights is None):
            raise UserError(
                f"inflation is '{inflation}'" + ("." if config.weights else ", and there are no weights to inflate."),
                "method.image.args.inflation",
                "Write centre or mean, and give method.image.weights.",
            )
        flat = _flat(config, args)
        if config.weights is not None:
            self.record = {**load_timm_weights(flat, Path(config.weights)), "inflation": inflation}
        self.backbone: Any = InflatedResNet(flat, inflation)
        if config.weights is None:
            self.backbone.draw()
        self.dim = self.token_dim = self.backbone.num_features
        self._statistics_hooks: list[RemovableHandle] = []
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Features:
        """Return the features of normalised voxels."""
        last = self.backbone(pixels)
        tokens = last.flatten(2).transpose(1, 2)
        return Features(tokens, tokens.mean(1), tuple(last.shape[2:]))

    def feature_maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> list[Float[torch.Tensor, "b e t y x"]]:
        """Return what the stem, before its pooling, and every stage give."""
        maps: list[Float[torch.Tensor, "b e t y x"]] = self.backbone.maps(pixels)
        return maps

    def grid_of(self, pixels: Float[torch.Tensor, "b c d h w"]) -> tuple[int, ...]:
        """Return the sides of the last map."""
        depth, *plane = pixels.shape[2:]
        return (-(-depth // 16), *(-(-side // 32) for side in plane))

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them; running statistics are taken once."""
        self.backbone.checkpointing = enabled
        for handle in self._statistics_hooks:
            handle.remove()
        self._statistics_hooks = hold_statistics(self.backbone) if enabled else []


def _flat(config: VolumeTowerConfig, args: dict[str, Any]) -> Any:
    name = str(config.name).partition(".")[0]
    if not timm.is_model(name):
        raise UserError(
            f"timm has no backbone named '{config.name}'.{nearest(name, timm.list_models())}",
            "method.image.name",
            "Use a ResNet of timm, e.g. resnet50.",
        )
    try:
        return timm.create_model(
            name, num_classes=0, in_chans=config.input.channels, drop_path_rate=config.drop_path, **args
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"timm cannot build '{config.name}' with {args}: {error}", "method.image", "Use a ResNet of timm."
        ) from error


class InflatedResNet(nn.Module):
    """A ResNet of timm on volumes, with its names; inflation changes shapes, not names.

    Args:
        flat: The two-dimensional network with its weights, random or trained. It is changed and must not be used again.
        inflation: Where the weights of a kernel go: all to its middle slice (as in Merlin), or in equal parts to the
            three slices.

    Attributes:
        num_features: Channels of the last map.
        feature_info: Names and widths of the stages, as in timm.
        checkpointing: Recompute activations in the backward pass instead of keeping them.

    Raises:
        UserError: The network is no plain ResNet, or has layers that have no three-dimensional form here.
    """

    def __init__(self, flat: Any, inflation: Inflation = "centre") -> None:
        super().__init__()
        if not isinstance(flat, ResNet):
            raise UserError(
                f"Only ResNets of timm can be inflated, not {type(flat).__name__}.",
                "method.image.name",
                "Use e.g. resnet18, resnet50 or resnet152.",
            )
        self.num_features: int = flat.num_features
        self.conv1: Any
        self.bn1: Any
        self.act1: Any
        self.maxpool: Any
        self.feature_info: list[dict[str, Any]] = list(flat.feature_info)
        self.checkpointing = False
        for name in ("conv1", "bn1", "act1", "maxpool", *STAGES):
            part = getattr(flat, name)
            setattr(self, name, _inflated(part, inflation, 1 if name == "conv1" else None))

    def draw(self) -> None:
        """Draw the kernels anew, as timm draws flat ones (He et al., arXiv 1502.01852, by the fan of the output)."""
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, pixels: Float[torch.Tensor, "b c d h w"]) -> Float[torch.Tensor, "b e t y x"]:
        """Return the last map."""
        return self.maps(pixels)[-1]

    def maps(self, pixels: Float[torch.Tensor, "b c d h w"]) -> list[Float[torch.Tensor, "b e t y x"]]:
        """Return what the stem, before its pooling, and every stage give."""
        states = self.act1(self.bn1(self.conv1(pixels)))
        found = [states]
        states = self.maxpool(states)
        for name in STAGES:
            stage = getattr(self, name)
            if self.checkpointing and torch.is_grad_enabled():
                states = checkpoint_sequential(stage, len(stage), states, use_reentrant=False)
            else:
                states = stage(states)
            found.append(states)
        return found


def _inflated(module: nn.Module, inflation: Inflation, stride: int | None = None) -> nn.Module:
    """Return the module with everything flat in it, or the module itself, replaced.

    Args:
        module: Of the flat network; it is changed.
        inflation: See `InflatedResNet`.
        stride: Along depth; None is that along height.
    """
    if isinstance(module, nn.Conv2d):
        return _convolution(module, inflation, stride or module.stride[0])
    if isinstance(module, nn.BatchNorm2d):
        return _batch_norm(module)
    if isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
        return _pool(module)
    for name, child in module.named_children():
        setattr(module, name, _inflated(child, inflation, stride))
    kind = type(module).__name__
    if kind.endswith("2d") or kind in ("SEModule", "EcaModule"):
        raise UserError(f"A ResNet with {kind} has no inflated form.", "method.image.name", "Use a plain ResNet.")
    return module


def _convolution(flat: nn.Conv2d, inflation: Inflation, stride: int) -> nn.Conv3d:
    extent = SLICES if flat.kernel_size[0] > 1 else 1
    (side, wide), (down, right), (apart, spread) = flat.kernel_size, flat.stride, flat.dilation
    assert not isinstance(flat.padding, str)
    deep = nn.Conv3d(
        flat.in_channels,
        flat.out_channels,
        (extent, side, wide),
        stride=(stride, down, right),
        padding=(apart * (extent // 2), flat.padding[0], flat.padding[1]),
        dilation=(apart, apart, spread),
        groups=flat.groups,
        bias=flat.bias is not None,
        device=flat.weight.device,
    )
    with torch.no_grad():
        deep.weight.zero_()
        if inflation == "centre":
            deep.weight[:, :, extent // 2] = flat.weight
        else:
            deep.weight.copy_(flat.weight[:, :, None] / extent)
        if flat.bias is not None and deep.bias is not None:
            deep.bias.copy_(flat.bias)
    return deep


def _batch_norm(flat: nn.BatchNorm2d) -> nn.BatchNorm3d:
    deep = nn.BatchNorm3d(flat.num_features, flat.eps, flat.momentum, flat.affine, flat.track_running_stats)
    deep.to(flat.weight.device).load_state_dict(flat.state_dict())
    return deep.train(flat.training)


def _pool(flat: nn.MaxPool2d | nn.AvgPool2d) -> nn.Module:
    kernel, stride, padding = (_number(value) for value in (flat.kernel_size, flat.stride, flat.padding))
    if isinstance(flat, nn.MaxPool2d):
        return nn.MaxPool3d(kernel, stride, padding, ceil_mode=flat.ceil_mode)
    return nn.AvgPool3d(kernel, stride, padding, ceil_mode=flat.ceil_mode, count_include_pad=flat.count_include_pad)


def _number(value: Any) -> int:
    return int(value[0]) if isinstance(value, tuple) else int(value)
