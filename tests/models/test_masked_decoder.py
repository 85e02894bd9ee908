"""The pixel decoder: every patch at its own place, visible patches in any order; what is drawn as hidden."""

from __future__ import annotations

import pytest
import torch

from medvlp.errors import UserError
from medvlp.models.masked_decoder import DecoderSizes, PixelDecoder, draw_kept

SIZES = DecoderSizes(dim=16, layers=2, heads=2, activation="gelu", norm_eps=1e-6)


def decoder(**changes: object) -> PixelDecoder:
    torch.manual_seed(0)
    return PixelDecoder(6, (2, 3), 12, DecoderSizes(**{**SIZES.__dict__, **changes})).eval()


def test_a_patch_is_predicted_at_its_place_whatever_the_order_of_the_visible_ones() -> None:
    model, states = decoder(), torch.randn(1, 4, 6)
    order = torch.tensor([0, 2, 3, 1])
    first = model(states, torch.tensor([[4, 0, 2]]))
    second = model(states[:, order], torch.tensor([[0, 2, 4]]))
    assert first.shape == (1, 6, 12)
    torch.testing.assert_close(first, second)


def test_it_is_a_masked_autoencoders_decoder_step_by_step() -> None:
    model, states, keep = decoder(), torch.randn(2, 3, 6), torch.tensor([[4, 1], [0, 5]])
    embedded = model.embed(states)
    rows = []
    for row in range(2):
        patches = [model.mask_token[0, 0]] * 6
        for number, place in enumerate(keep[row].tolist()):
            patches[place] = embedded[row, 1 + number]
        rows.append(torch.stack([embedded[row, 0], *(p + model.positions[i] for i, p in enumerate(patches))]))
    decoded = torch.stack(rows)
    for block in model.blocks:
        decoded = block(decoded)
    torch.testing.assert_close(model(states, keep), model.predict(model.norm(decoded))[:, 1:])


def test_positions_are_sines_and_cosines_of_row_and_column_and_no_weights() -> None:
    model = decoder()
    assert "positions" not in model.state_dict()
    assert model.positions.unique(dim=0).shape == (6, 16)
    torch.testing.assert_close(model.positions.square().sum(1), torch.full((6,), 8.0))
    row_part = model.positions[:, :4]  # the first quarter tells the row, which patches 0 to 2 and 3 to 5 share
    assert row_part.unique(dim=0).shape == (2, 4)
    assert torch.equal(row_part[0], row_part[2])


def test_quick_gelu_is_another_function() -> None:
    states, keep = torch.randn(1, 3, 6), torch.tensor([[4, 1]])
    assert not torch.allclose(decoder()(states, keep), decoder(activation="quick_gelu")(states, keep))


@pytest.mark.parametrize(("share", "kept"), [(0.75, 4), (0.99, 1), (0.0, 16)])
def test_the_share_is_hidden_and_the_rest_kept(share: float, kept: int) -> None:
    keep, hidden = draw_kept(5, 16, share, torch.device("cpu"))
    assert keep.shape == (5, kept)
    assert (hidden.sum(1) == 16 - kept).all()
    assert not hidden.gather(1, keep).any()


def test_every_patch_is_hidden_as_often() -> None:
    torch.manual_seed(0)
    _, hidden = draw_kept(4000, 8, 0.75, torch.device("cpu"))
    torch.testing.assert_close(hidden.float().mean(0), torch.full((8,), 0.75), atol=0.03, rtol=0)


@pytest.mark.parametrize("change", [{"dim": 18}, {"heads": 3}, {"layers": 0}, {"activation": "relu"}])
def test_sizes_that_make_no_decoder_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(UserError):
        DecoderSizes.of({**SIZES.__dict__, **change}, "decoder")
