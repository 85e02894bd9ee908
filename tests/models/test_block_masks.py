"""Masks of hidden patches, and the head with prototypes."""

from __future__ import annotations

import pytest
import torch

from medvlp.models.block_masks import block_masks
from medvlp.models.prototype_head import PrototypeHead


@pytest.mark.parametrize(("images", "grid"), [(8, (6, 6)), (5, (7, 4)), (1, (6, 6)), (0, (6, 6))])
def test_the_number_of_hidden_patches_is_fixed_by_the_size_of_the_batch(images: int, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    masks = [block_masks(images, grid, (0.1, 0.5), 0.5) for _ in range(4)]
    for mask in masks:
        assert mask.shape == (images, grid[0] * grid[1])
        masked = int(images * 0.5)
        expected = [round((0.1 + 0.4 * (n + 0.5) / masked) * grid[0] * grid[1]) for n in range(masked)]
        assert sorted(mask.sum(1).tolist()) == sorted(expected + [0] * (images - masked))
    if images > 1:
        assert not torch.equal(masks[0], masks[1])


def test_hidden_patches_cluster() -> None:
    """Neighbours of a hidden patch are hidden far more often than by chance."""
    torch.manual_seed(0)
    masks = block_masks(64, (12, 12), (0.3, 0.3), 1.0).unflatten(1, (12, 12))
    both = (masks[:, :, 1:] & masks[:, :, :-1]).sum() / masks[:, :, :-1].sum()
    assert both > 0.5


def test_the_head_gives_cosines_whatever_the_length_of_its_prototypes() -> None:
    torch.manual_seed(0)
    head, features = PrototypeHead(6, 8, 4, 5), torch.randn(3, 6)
    before = head(features)
    narrow = head.layers(features)
    expected = torch.stack([torch.cosine_similarity(narrow, p[None]) for p in head.prototypes], dim=1)
    torch.testing.assert_close(before, expected)
    with torch.no_grad():
        head.prototypes.mul_(7)
    torch.testing.assert_close(head(features), before)
