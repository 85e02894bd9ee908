"""The old merging of patches against the eight neighbours that it reads, and against MONAI's corrected one."""

from __future__ import annotations

import itertools

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2
from torch.nn import functional

from medvlp.models.patch_merging import LegacyPatchMerging


def test_two_neighbours_are_read_twice_and_two_never() -> None:
    torch.manual_seed(0)
    merging = LegacyPatchMerging(3, spatial_dims=3)
    volume = torch.randn(2, 4, 5, 6, 3)
    with torch.no_grad():
        made = merging(volume)
    assert made.shape == (2, 2, 3, 3, 6)
    read = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
    padded = functional.pad(volume, (0, 0, 0, 0, 0, 1))
    for d, h, w in itertools.product(range(2), range(3), range(3)):
        parts = [padded[:, 2 * d + i, 2 * h + j, 2 * w + k] for i, j, k in read]
        with torch.no_grad():
            expected = merging.reduction(merging.norm(torch.cat(parts, dim=1)))
        torch.testing.assert_close(made[:, d, h, w], expected)
    corrected = PatchMergingV2(3, spatial_dims=3)
    corrected.load_state_dict(merging.state_dict())
    with torch.no_grad():
        assert not torch.allclose(corrected(volume), made)
