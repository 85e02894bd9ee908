"""Captioning against a loop, and what is no target."""

from __future__ import annotations

import pytest
import torch

from medvlp.objectives.captioning import captioning


def test_each_place_predicts_the_next_token_and_pads_are_no_target() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 7, (3, 5))
    lengths = [5, 2, 1]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    total, number = torch.zeros((), dtype=torch.float64), 0
    for row, length in enumerate(lengths):
        for place in range(length - 1):
            total, number = total - logits[row, place].log_softmax(0)[ids[row, place + 1]], number + 1
    value, count = captioning(logits, ids, mask)
    assert count == number == 5
    torch.testing.assert_close(value, total / number, rtol=1e-12, atol=0)
    value.backward()
    assert logits.grad is not None
    assert not logits.grad[:, 1:][~mask[:, 1:]].any()


@pytest.mark.parametrize("shape", [(0, 4), (2, 1), (2, 4)])
def test_no_target_is_zero_with_finite_gradients(shape: tuple[int, int]) -> None:
    logits = torch.randn(*shape, 6, requires_grad=True)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:, :1] = True
    value, count = captioning(logits, torch.zeros(shape, dtype=torch.long), mask)
    value.backward()
    assert (float(value.detach()), float(count)) == (0.0, 0.0)
    assert logits.grad is not None
    assert not logits.grad.any()
