"""Regions: boxes of a grid, the whole image as a region, ragged boxes, towers without layer3."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.regions import grid_boxes, region_features
from medvlp.models.vision2d import ImageTower


def tower(name: str = "resnet10t", **fields: Any) -> ImageTower:
    torch.manual_seed(0)
    given = {"tap": "layer3", "input": {"size": 64, "mean": [0.5], "std": [0.25]}, **fields}
    return ImageTower(ImageTowerConfig.model_validate({"name": name, **given})).eval()


def test_a_grid_covers_the_square_and_neighbours_share_what_they_should() -> None:
    assert grid_boxes(90, 1, 1).tolist() == [[0, 0, 90, 90]]
    assert grid_boxes(90, 2, 3).tolist()[:3] == [[0, 0, 30, 45], [30, 0, 60, 45], [60, 0, 90, 45]]
    boxes = grid_boxes(96, 3, 3, 0.5)
    assert boxes[0].tolist() == [0, 0, 48, 48]
    assert boxes[1].tolist() == [24, 0, 72, 48]
    assert boxes[-1].tolist() == [48, 48, 96, 96]


@pytest.mark.parametrize("name", ["resnet10t", "resnet50_clip"])
def test_the_whole_image_as_a_region_at_the_maps_own_size_is_the_pooled_vector(name: str) -> None:
    model = tower(name, input={"size": 64, "channels": 3, "mean": [0.5], "std": [0.25]})
    with torch.no_grad():
        features = model(torch.randn(2, 3, 64, 64))
        regions = region_features(model, features, grid_boxes(64, 1, 1), 4)
    assert features.grid == (4, 4)
    torch.testing.assert_close(regions, features.pooled, rtol=1e-4, atol=1e-5)


def test_a_region_is_what_the_map_holds_there_and_order_is_by_image() -> None:
    model = tower()
    with torch.no_grad():
        features = model(torch.randn(2, 1, 64, 64))
        together = region_features(model, features, grid_boxes(64, 2, 2), 2)
        maps = features.tokens.transpose(1, 2).unflatten(2, features.grid)
        for number, (row, column) in enumerate([(0, 0), (0, 2), (2, 0), (2, 2)]):
            cells = maps[:, :, row : row + 2, column : column + 2]
            expected = model.backbone.forward_head(model.backbone.layer4(cells), pre_logits=True)
            torch.testing.assert_close(together.unflatten(0, (2, 4))[:, number], expected)


def test_boxes_may_differ_between_images_and_be_none() -> None:
    model = tower()
    with torch.no_grad():
        features = model(torch.randn(2, 1, 64, 64))
        boxes = grid_boxes(64, 2, 2)
        ragged = region_features(model, features, [boxes[:0], boxes[1:3]], 2)
        same = region_features(model, features, boxes, 2).unflatten(0, (2, 4))
    torch.testing.assert_close(ragged, same[1, 1:3])


def test_gradient_reaches_the_tower() -> None:
    model = tower().train()
    region_features(model, model(torch.randn(2, 1, 64, 64)), grid_boxes(64, 2, 2), 2).square().sum().backward()
    assert all(p.grad is not None for p in model.backbone.layer4.parameters())
    assert model.backbone.conv1[0].weight.grad is not None


@pytest.mark.parametrize("fields", [{"tap": None}, {"tap": "layer2"}, {"truncate": True}])
def test_a_tower_without_layer3_or_what_follows_is_refused(fields: dict[str, Any]) -> None:
    model = tower(**fields)
    features = model(torch.randn(1, 1, 64, 64))
    with pytest.raises(UserError, match="layer3"):
        region_features(model, features, grid_boxes(64, 2, 2), 2)
