"""Losses of masks against loops over pixels; what is unknown adds nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medvlp.objectives.dense import exclusive_loss, overlapping_loss


def looped(logits: np.ndarray, masks: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Return binary cross-entropy and Dice loss, pixel by pixel."""
    entropy, pixels, dice = 0.0, 0, []
    for k in range(logits.shape[1]):
        common = total = 0.0
        for b in np.flatnonzero(known[:, k]):
            for x, y in zip(logits[b, k].ravel(), masks[b, k].ravel(), strict=True):
                p = 1 / (1 + math.exp(-x))
                entropy -= math.log(p if y else 1 - p)
                pixels += 1
                common, total = common + p * y, total + p + y
        if known[:, k].any():
            dice.append(1 - (2 * common + 1e-5) / (total + 1e-5))
    return entropy / pixels, float(np.mean(dice))


def test_overlapping_labels_are_questions_of_their_own() -> None:
    rng = np.random.default_rng(0)
    logits, masks = rng.normal(size=(3, 2, 4, 5)), rng.integers(0, 2, (3, 2, 4, 5))
    known = np.array([[True, False], [True, True], [False, True]])
    given = torch.tensor(logits), torch.tensor(masks, dtype=torch.uint8), torch.tensor(known)
    entropy, dice = looped(logits, masks, known)
    assert float(overlapping_loss(*given, 1.0, 0.0)[0]) == pytest.approx(entropy)
    assert float(overlapping_loss(*given, 0.0, 1.0)[0]) == pytest.approx(dice)
    value, count = overlapping_loss(*given, 0.3, 2.0)
    assert float(value) == pytest.approx(0.3 * entropy + 2 * dice)
    assert float(count) == 4


def test_what_is_unknown_has_no_gradient_and_nothing_known_is_zero() -> None:
    logits = torch.randn(2, 2, 4, 4, requires_grad=True)
    masks = torch.ones(2, 2, 4, 4, dtype=torch.uint8)
    overlapping_loss(logits, masks, torch.tensor([[True, False], [False, False]]))[0].backward()
    assert logits.grad is not None
    assert logits.grad[0, 0].abs().min() > 0
    assert float(logits.grad.abs().sum()) == pytest.approx(float(logits.grad[0, 0].abs().sum()))
    again = logits.detach().requires_grad_()
    value, count = overlapping_loss(again, masks, torch.zeros(2, 2, dtype=torch.bool))
    value.backward()
    assert (float(value.detach()), float(count)) == (0.0, 0.0)
    assert again.grad is not None
    assert torch.equal(again.grad, torch.zeros_like(again))


def test_exclusive_labels_share_the_pixels_with_the_background() -> None:
    rng = np.random.default_rng(1)
    logits, classes = rng.normal(size=(2, 3, 4, 4)), rng.integers(0, 3, (2, 4, 4))
    masks = np.stack([classes == 1, classes == 2], axis=1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    entropy = np.mean(
        [-math.log(shares[b, classes[b, i, j], i, j]) for b in range(2) for i in range(4) for j in range(4)]
    )
    dice = np.mean(
        [
            1 - (2 * shares[:, k][classes == k].sum() + 1e-5) / (shares[:, k].sum() + (classes == k).sum() + 1e-5)
            for k in (1, 2)
        ]
    )
    given = torch.tensor(logits), torch.tensor(masks, dtype=torch.uint8)
    assert float(exclusive_loss(*given, 1.0, 0.0)[0]) == pytest.approx(entropy)
    assert float(exclusive_loss(*given, 1.0, 1.0)[0]) == pytest.approx(entropy + dice)


def test_half_precision_is_left_for_the_sums() -> None:
    torch.manual_seed(0)
    logits, masks = torch.randn(2, 1, 64, 64), torch.randint(0, 2, (2, 1, 64, 64), dtype=torch.uint8)
    known = torch.ones(2, 1, dtype=torch.bool)
    half, _ = overlapping_loss(logits.bfloat16(), masks, known)
    assert half.dtype == torch.float32
    exact, _ = overlapping_loss(logits.bfloat16().double(), masks, known)
    assert float(half) == pytest.approx(float(exact), abs=1e-5)
