"""Boxes of noise, the decoder that fills them, and the vector of all scales."""

from __future__ import annotations

import pytest
import torch

from medvlp.errors import UserError
from medvlp.models.inpainting import VolumeDecoder, cut_out
from medvlp.models.scale_pool import ScalePool


def test_boxes_cover_about_their_share_and_nothing_else_changes() -> None:
    torch.manual_seed(0)
    volumes = torch.full((16, 2, 24, 20, 28), 7.0)
    made = cut_out(volumes, 0.3, (0.1, 0.3))
    changed = made != 7.0
    assert torch.equal(changed[:, 0], changed[:, 1])  # all windows of a place
    share = changed.float().mean().item()
    assert 0.2 < share < 0.3  # boxes overlap
    noise = made[changed]
    assert abs(noise.mean().item()) < 0.02
    assert abs(noise.std().item() - 1) < 0.02
    assert not torch.equal(changed[0], changed[1])
    torch.manual_seed(0)
    assert torch.equal(cut_out(volumes, 0.3, (0.1, 0.3)), made)


def test_the_decoder_gives_a_volume_of_the_size_that_it_was_made_for() -> None:
    decoder = VolumeDecoder(32, (2, 1, 2), (16, 8, 16), 2)
    assert decoder(torch.randn(3, 32, 2, 1, 2)).shape == (3, 2, 16, 8, 16)
    for grid, size in (((2, 2, 2), (16, 16, 8)), ((3, 2, 2), (16, 16, 16)), ((1, 1, 1), (32, 32, 32))):
        with pytest.raises(UserError, match="by doubling"):
            VolumeDecoder(32, grid, size, 1)


@pytest.mark.parametrize("of", ["stages", "blocks"])
def test_the_vector_has_the_width_of_its_scales(of: str) -> None:
    pool = ScalePool(6, 1, of)  # type: ignore[arg-type]
    maps = [torch.randn(2, 6 * 2**level, *[16 // 2**level or 1] * 3) for level in range(5)]
    maps[-1] = torch.randn(2, 96, 2, 1, 1)
    vector = pool(torch.randn(2, 1, 32, 32, 32), maps)
    assert vector.shape == (2, pool.dim)
    assert pool.dim == {"stages": 31 * 6, "blocks": 24 * 6}[of]
    if of == "stages":
        torch.testing.assert_close(vector[:, :6], maps[0].mean((2, 3, 4)))
        torch.testing.assert_close(vector[:, -96:], maps[-1].mean((2, 3, 4)))
    assert ScalePool(48, 1, "blocks").dim == 1152
