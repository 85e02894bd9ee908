"""2D image tower on timm: pixels in, row-major tokens and a pooled vector out, whatever the backbone's own layout.

Guarantee: weights are loaded strictly (every key of the file and of the model is used or explained); positions and
windows fit the configured input size; prefix tokens (class, registers) never appear among the tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from timm.layers import PatchEmbed
from torch import nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError, nearest
from medvlp.models.feature_maps import as_map, set_timm_size, timm_maps
from medvlp.models.tower import Tower
from medvlp.models.vit import require_vit
from medvlp.models.weights import check_keys, find_weights, read_state
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float


class ImageTower(Tower):
    """A timm backbone as image tower.

    `pooled` is timm's own pooling of the backbone: the mean of the tokens of a CNN (ConvNeXt: then its norm), the class
    token or the configured pool of a ViT.

    Args:
        config: timm name, local weights, stochastic depth and model input.
        model_args: Further arguments of the timm constructor, as a timm `config.json` records them.

    Attributes:
        dim: Width of the pooled vector.
        token_dim: Width of the tokens; another one only where they are tapped from an earlier stage.

    Raises:
        UserError: Unknown backbone, a backbone without one token width, or weights that do not fit.
    """

    def __init__(self, config: ImageTowerConfig, model_args: dict[str, Any] | None = None) -> None:
        super().__init__()
        # The configuration of a tower alone builds it again.
        self.config = config.model_copy(update={"args": {**config.args, **(model_args or {})}})
        self.backbone: Any = _create(config, dict(self.config.args))
        self.dim: int = self.backbone.num_features
        self.token_dim: int = self.dim
        self._statistics_hooks: list[RemovableHandle] = []
        if getattr(self.backbone, "head_hidden_size", self.dim) != self.dim:
            raise UserError(
                f"The backbone '{config.name}' pools to another width than that of its tokens.",
                "method.image.name",
                "Choose one of the families ResNet, DenseNet, EfficientNet, ConvNeXt, ViT, EVA or Swin.",
            )
        if config.weights is not None:
            self.record = load_timm_weights(self.backbone, Path(config.weights))
        self._tap = None if config.tap is None else self._tap_at(config.tap)
        if config.attention:
            require_vit(self.backbone, "method.image.attention")
        if config.freeze:
            self.requires_grad_(False)

    def forward(self, pixels: Float[torch.Tensor, "b c h w"]) -> Features:
        """Return the features of normalised pixels."""
        if self.config.upsample is not None:
            side = self.config.upsample
            pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=True)
        if self.keep_embedding:
            return self.embedded_features(pixels)
        if self.config.attention:
            return self.vit_features(pixels, attention=True)
        if self._tap is not None:
            maps, (tapped,) = self.backbone.forward_intermediates(pixels, indices=[self._tap])
            pooled = tapped.mean((2, 3)) if self.config.truncate else self.backbone.forward_head(maps, pre_logits=True)
            return Features(tapped.flatten(2).transpose(1, 2), pooled, (tapped.shape[2], tapped.shape[3]))
        maps = self.backbone.forward_features(pixels)
        pooled = self.backbone.forward_head(maps, pre_logits=True)
        tokens, grid = self._tokens(maps, pixels)
        return Features(tokens=tokens, pooled=pooled, grid=grid)

    def feature_maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> list[Float[torch.Tensor, "b d h w"]]:
        """Return the maps of normalised pixels, from shallow to deep; see `models.feature_maps`.

        `config.upsample` enlarges only pixels that are smaller; `config.tap` has no effect.

        Raises:
            UserError: The backbone has no maps.
        """
        side = self.config.upsample
        if side is not None and side > pixels.shape[2]:
            pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=True)
        final, maps = timm_maps(self.backbone, pixels)
        return [*maps[:-1], as_map(*self._tokens(final, pixels))]

    def set_input_size(self, side: int) -> None:
        """Make ready for pixels of another side; position tables are resampled, windows keep their size.

        Raises:
            UserError: The backbone cannot take this size.
        """
        set_timm_size(self.backbone, side)

    def _tap_at(self, stage: str) -> int:
        """Return the number of a ResNet's stage among its intermediate maps; leave out what follows if configured."""
        maps = list(getattr(self.backbone, "feature_info", ()))
        stages = {info["module"]: number for number, info in enumerate(maps)}
        if hasattr(self.backbone, "final_conv"):  # CLIP's ResNets count their stages
            stages = {f"layer{info['stage']}": number for number, info in enumerate(maps)}
        if stage not in stages or last_stage(self.backbone) is None:
            raise UserError(
                f"The backbone '{self.config.name}' has no stage '{stage}'.",
                "method.image.tap",
                "Use a ResNet, or leave tap out.",
            )
        self.token_dim = self.backbone.feature_info[stages[stage]]["num_chs"]
        if self.config.truncate:
            self.backbone.prune_intermediate_layers([stages[stage]])
            self.dim = self.token_dim
        return stages[stage]

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Recompute activations in the backward pass instead of keeping them; running statistics are taken once."""
        self.backbone.set_grad_checkpointing(enabled)
        for handle in self._statistics_hooks:
            handle.remove()
        self._statistics_hooks = hold_statistics(self.backbone) if enabled else []

    def _tokens(self, maps: torch.Tensor, pixels: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        if maps.ndim == 4:
            if getattr(self.backbone, "output_fmt", "NCHW") == "NHWC":
                height, width = maps.shape[1:3]
                return maps.flatten(1, 2), (height, width)
            height, width = maps.shape[2:]
            return maps.flatten(2).transpose(1, 2), (height, width)
        return maps[:, getattr(self.backbone, "num_prefix_tokens", 0) :], self.grid_of(pixels)

    def grid_of(self, pixels: Float[torch.Tensor, "b c h w"]) -> tuple[int, int]:
        """Return rows and columns of the patches of a ViT."""
        height, width = self.backbone.patch_embed.dynamic_feat_size(pixels.shape[2:])
        return height, width


def last_stage(backbone: Any) -> nn.Module | None:
    """Return the last stage of a ResNet of timm, CLIP's among them; None for other backbones."""
    if hasattr(backbone, "layer4"):
        return backbone.layer4
    return nn.Sequential(backbone.stages[-1], backbone.final_conv) if hasattr(backbone, "final_conv") else None


def hold_statistics(backbone: nn.Module) -> list[RemovableHandle]:
    """Keep batch normalisation from taking in a batch a second time when the backward pass recomputes it."""

    def recomputes() -> bool:
        return torch._C._current_graph_task_id() != -1

    def before(module: Any, _: Any) -> None:
        if recomputes():
            module.kept_momentum, module.momentum = module.momentum, 0.0

    def after(module: Any, _: Any, __: Any) -> None:
        if recomputes():
            module.momentum = module.kept_momentum
            if module.training and module.num_batches_tracked is not None:
                module.num_batches_tracked -= 1

    norms = [m for m in backbone.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    return [
        handle
        for norm in norms
        for handle in (norm.register_forward_pre_hook(before), norm.register_forward_hook(after, always_call=True))
    ]


def _create(config: ImageTowerConfig, arguments: dict[str, Any]) -> Any:
    name = config.name.partition(".")[0]
    if not timm.is_model(name):
        raise UserError(
            f"timm has no backbone named '{config.name}'.{nearest(name, timm.list_models())}",
            "method.image.name",
            "Use a name of timm.list_models(), e.g. resnet50 or vit_base_patch16_224.",
        )
    native = timm.get_pretrained_cfg(name)
    if native is not None and native.fixed_input_size and native.input_size[-1] != config.input.size:
        arguments["img_size"] = config.input.size
    if config.drop_path:
        arguments["drop_path_rate"] = config.drop_path
    try:
        backbone = timm.create_model(name, num_classes=0, in_chans=config.input.channels, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(
            f"timm cannot build '{config.name}' with {arguments}: {error}",
            "method.image",
            "Choose another input size, drop_path: 0.0, or another backbone.",
        ) from error
    embed, side = getattr(backbone, "patch_embed", None), config.upsample or config.input.size
    # Published towers at their own size are taken as they are, e.g. SO400M: patches of 14 on 384 pixels.
    if isinstance(embed, PatchEmbed) and side % embed.patch_size[0] and not (native and native.input_size[-1] == side):
        raise UserError(
            f"An image of {side} pixels does not split into the patches of {embed.patch_size[0]} of '{config.name}': "
            "its right and lower margins would not be seen.",
            "method.image.input.size",
            f"Give a multiple of {embed.patch_size[0]}.",
        )
    if not hasattr(backbone, "forward_head"):
        raise UserError(f"The backbone '{config.name}' has no pooled output.", "method.image.name", "Choose another.")
    return backbone


def load_timm_weights(backbone: Any, path: Path) -> dict[str, Any]:
    """Load a local timm checkpoint strictly.

    Differences that are explained, and returned: position tables resampled and old names mapped by timm's own filter of
    the architecture; the stem's three input channels summed to one by timm's rule; the classifier dropped.

    Args:
        backbone: A timm model without classifier.
        path: A folder with `model.safetensors`, or a weight file.

    Returns:
        `file`, `adapted` and `dropped` keys.
    """
    file = find_weights(path)
    state = read_state(file)
    own = backbone.state_dict()
    given = dict(state)
    filter_state = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    if filter_state is not None:
        state = dict(filter_state(state, backbone))
    dropped = [key for key in _classifier_keys(backbone) if key in state and key not in own]
    for key in dropped:
        del state[key]
    _adapt_stem(backbone, state)
    check_keys(own, state, file)
    backbone.load_state_dict(state, strict=True)
    adapted = sorted(k for k, value in state.items() if k not in given or given[k].shape != value.shape)
    return {"file": file.name, "adapted": adapted, "dropped": dropped}


def _classifier_keys(backbone: Any) -> list[str]:
    classifiers = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    return [f"{name}.{part}" for name in names for part in ("weight", "bias")]


def _adapt_stem(backbone: Any, state: dict[str, torch.Tensor]) -> None:
    """Bring the first convolution of a checkpoint to the input channels of the backbone, by timm's rule."""
    stem = next(((n, m) for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        return
    name, convolution = stem
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 4 or weight.shape[1] == convolution.weight.shape[1]:
        return
    state[f"{name}.weight"] = timm.models.adapt_input_conv(convolution.in_channels, weight)
