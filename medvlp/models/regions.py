"""Features of regions of an image: RoIAlign on an early map of a CNN, then the CNN's own last stage and pooling.

Guarantee: the region that is the whole image is pooled like any other; boxes are in pixels of the model input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.tower import Tower
from medvlp.models.vision2d import last_stage
from medvlp.types import Features

if TYPE_CHECKING:
    from jaxtyping import Float


def grid_boxes(size: int, rows: int, columns: int, overlap: float = 0.0) -> Float[torch.Tensor, "r 4"]:
    """Return the boxes (x0, y0, x1, y1) of a grid over a square, row-major.

    Args:
        size: Side of the square in pixels.
        rows: Boxes from top to bottom.
        columns: Boxes from left to right.
        overlap: Share of a box's height and width that it has in common with the next.
    """
    ys, xs = _intervals(size, rows, overlap), _intervals(size, columns, overlap)
    return torch.tensor([[x0, y0, x1, y1] for y0, y1 in ys for x0, x1 in xs])


def _intervals(size: int, number: int, overlap: float) -> list[tuple[float, float]]:
    length = size / (1 + (number - 1) * (1 - overlap))
    return [(n * length * (1 - overlap), n * length * (1 - overlap) + length) for n in range(number)]


def stage_of_regions(tower: Tower) -> nn.Module:
    """Return what a tower does to regions of layer3.

    Raises:
        UserError: The tower does not tap layer3, or has left out what follows.
    """
    stage = last_stage(tower.backbone)
    if stage is None or tower.config.tap != "layer3" or tower.config.truncate:
        raise UserError(
            f"Regions are cut from layer3 of a ResNet, which '{tower.config.name}' does not return.",
            "method.image",
            "Use e.g. resnet50 or resnet50_clip with tap: layer3 and truncate: false.",
        )
    return stage


def region_features(
    tower: Tower,
    features: Features,
    boxes: Float[torch.Tensor, "r 4"] | list[Float[torch.Tensor, "r 4"]],
    size: int,
) -> Float[torch.Tensor, "n d"]:
    """Return the vectors of regions, image by image.

    ViLLA (ICCV 2023, arXiv 2308.11194): RoIAlign (14 x 14) on the map of layer3, the tower's last stage, its pooling.

    Args:
        tower: A ResNet of timm, CLIP's among them, that taps layer3 and keeps what follows.
        features: What it returned.
        boxes: In pixels of the model input; the same for each image, or a list with those of each, also none.
        size: Side of an aligned region in cells of the map.

    Raises:
        UserError: As `stage_of_regions`.
    """
    from torchvision.ops import roi_align

    stage = stage_of_regions(tower)
    height, width = features.grid
    maps = features.tokens.transpose(1, 2).unflatten(2, (height, width))
    owned = [boxes] * len(maps) if isinstance(boxes, torch.Tensor) else boxes
    scale = width / tower.config.input.size
    regions = roi_align(maps, [own.to(maps) for own in owned], size, spatial_scale=scale, aligned=True)
    return tower.backbone.forward_head(stage(regions), pre_logits=True)
