"""Grad-CAM of the similarity between an image and texts, on the feature map of an image tower.

Guarantee: weights and their gradients are left as they were; a batch gives what each image gives alone. The map is the
positive part of the channel sum of (mean gradient × activation): Selvaraju et al. 2017 (arXiv 1610.02391), equations 1
and 2, with the product of unit vectors in place of a class score. Of a ViT the activations are the patch tokens that
enter the last block, since behind it those of a class-token model get no gradient; of any other backbone the output of
the stage that the tokens come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float


def grad_cam(
    backbone: nn.Module,
    encode: Callable[[], Features],
    project: Callable[[Features], Float[torch.Tensor, "b d"]],
    texts: Float[torch.Tensor, "t d"],
    tap: str | None = None,
) -> Float[torch.Tensor, "b t *g"]:
    """Return the evidence of each image for each text, 0 where there is none, in units of the cosine.

    Args:
        backbone: The timm backbone inside the image tower, in evaluation mode.
        encode: Runs the tower on a batch.
        project: To unit vectors in the space of the texts.
        texts: Unit vectors, or differences of two.
        tap: Stage of a CNN that the tokens come from; None is the last one.

    Raises:
        UserError: The backbone has no stage that can be looked into.
    """
    place = _place(backbone, tap)
    held: list[torch.Tensor] = []
    grids: list[tuple[int, ...]] = []

    def hold(activations: torch.Tensor) -> torch.Tensor:
        # What comes before needs no graph, what comes behind does.
        torch.set_grad_enabled(True)
        held.append(activations.detach().requires_grad_())
        return held[-1]

    def before(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if place.own_grid:
            grids.append(tuple(inputs[1]))
        return (hold(inputs[0]), *inputs[1:])

    def behind(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return hold(output)

    with torch.inference_mode(False), torch.no_grad():
        module = place.module
        handle = module.register_forward_pre_hook(before) if place.at_input else module.register_forward_hook(behind)
        try:
            features = encode()
        finally:
            handle.remove()
        # What was made in inference mode can be part of a graph only as a copy.
        similarity = project(features).float() @ texts.float().clone().T
        (activations,) = held
        shape = (len(features.pooled), *(grids[0] if grids else features.grid))
        maps = [
            _weighted(activations, torch.autograd.grad(column.sum(), activations, retain_graph=True)[0], shape, place)
            for column in similarity.unbind(1)
        ]
    return torch.stack(maps, dim=1)


@dataclass(frozen=True)
class _Place:
    """A module to look into.

    Args:
        module: The module.
        at_input: Its input holds the activations, else its output.
        prefix: Tokens before the patches, where activations are tokens.
        channels_last: A map has its channels in the last axis.
        own_grid: Its second input says the grid of the activations, which is not that of the tokens.
    """

    module: nn.Module
    at_input: bool = False
    prefix: int = 0
    channels_last: bool = False
    own_grid: bool = False


def _place(backbone: Any, tap: str | None) -> _Place:
    if isinstance(getattr(backbone, "backbone", None), nn.Module):  # a flat tower on every slice
        return _place(backbone.backbone, tap)
    if hasattr(backbone, "blocks") and hasattr(backbone, "patch_embed"):
        return _Place(backbone.blocks[-1], at_input=True, prefix=getattr(backbone, "num_prefix_tokens", 0))
    if hasattr(backbone, "conv_proj"):  # MViT, whose last block may halve its input
        return _Place(backbone.blocks[-1], at_input=True, prefix=1, own_grid=True)
    if hasattr(backbone, "layers4"):  # MONAI's Swin
        return _Place(backbone.layers4[0])
    if hasattr(backbone, "quantiser"):  # CTViT, whose output are its tokens
        return _Place(backbone, channels_last=True)
    stages = [info["module"] for info in getattr(backbone, "feature_info", ())]
    name = tap or (stages[-1] if stages else None)
    if name is None:
        raise UserError(
            f"The backbone '{type(backbone).__name__}' has no stage for Grad-CAM.", "encoder", "Use another backbone."
        )
    return _Place(backbone.get_submodule(name), channels_last=getattr(backbone, "output_fmt", "NCHW") == "NHWC")


def _weighted(
    activations: torch.Tensor, gradient: torch.Tensor, shape: tuple[int, ...], place: _Place
) -> Float[torch.Tensor, "b *g"]:
    """Return the map of one text; of slices each has its own mean gradient."""

    def as_tokens(values: torch.Tensor) -> torch.Tensor:
        if values.ndim == 3:
            return values[:, place.prefix :]
        return values.flatten(1, -2) if place.channels_last else values.flatten(2).transpose(1, 2)

    map_ = (as_tokens(activations) * as_tokens(gradient).mean(1, keepdim=True)).sum(2)
    return map_.detach().float().relu().reshape(shape)
