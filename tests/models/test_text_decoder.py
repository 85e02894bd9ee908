"""The captioning decoder: causal, blind to pads, and able to learn."""

from __future__ import annotations

import torch

from medvlp.models.text_decoder import TextDecoder
from medvlp.objectives.captioning import captioning

IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 5, 3, 0, 0]])
MASK = IDS != 0


def decoder() -> TextDecoder:
    torch.manual_seed(0)
    return TextDecoder(12, 0, 6, 4, hidden=16, layers=2, heads=2, dropout=0.0)


def test_a_place_sees_nothing_that_follows_and_pads_change_nothing() -> None:
    model, memory = decoder().eval(), torch.randn(2, 3, 4)
    logits = model(IDS, MASK, memory)
    changed = IDS.clone()
    changed[0, 3] = 4
    other = model(changed, MASK, memory)
    torch.testing.assert_close(other[0, :3], logits[0, :3])
    assert not torch.allclose(other[0, 3], logits[0, 3])
    torch.testing.assert_close(model(IDS[1:, :3], MASK[1:, :3], memory[1:])[0], logits[1, :3], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(IDS, MASK, memory + 1)[0], logits[0])


def test_the_first_loss_is_that_of_a_guess_and_every_parameter_learns() -> None:
    model, memory = decoder(), torch.randn(2, 3, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    values = []
    for _ in range(40):
        value, count = captioning(model(IDS, MASK, memory), IDS, MASK)
        optimizer.zero_grad()
        value.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        optimizer.step()
        values.append(float(value.detach()))
    assert count == 6
    assert abs(values[0] - torch.tensor(12.0).log()) < 0.1
    assert values[-1] < 0.1
