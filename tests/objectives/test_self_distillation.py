"""DINO, iBOT, Sinkhorn and KoLeo against lightly's modules, loops, and empty cases."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss.dino_loss import DINOLoss
from lightly.loss.ibot_loss import IBOTPatchLoss

from medvlp.objectives.self_distillation import balanced_targets, centred_targets, dino, ibot, koleo


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_dino_is_lightlys_value_and_gradient() -> None:
    teacher, centre = randn(2, 5, 7), randn(1, 7, seed=1)
    ours, theirs = (randn(4, 5, 7, seed=2).requires_grad_() for _ in range(2))
    loss = DINOLoss(7, teacher_temp=0.05, student_temp=0.1).double()
    loss.center.copy_(centre[None])
    expected = loss(list(teacher), list(theirs))
    targets = centred_targets(teacher.flatten(0, 1), centre, 0.05).unflatten(0, (2, 5))
    value, count = dino(ours, targets, 0.1)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    for result, tensor in ((value, ours), (expected, theirs)):
        result.backward()
        assert tensor.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)
    assert count == (2 * 4 - 2) * 5


def test_ibot_is_lightlys_value_and_gradient() -> None:
    hidden = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]).bool()
    teacher, centre = randn(3, 6), randn(1, 6, seed=1)
    ours, theirs = (randn(3, 6, seed=2).requires_grad_() for _ in range(2))
    loss = IBOTPatchLoss(6, teacher_temp=0.05, student_temp=0.1).double()
    loss.center.center.copy_(centre)
    expected = loss(teacher, theirs, hidden.unflatten(1, (2, 2)))
    value, count = ibot(ours, centred_targets(teacher, centre, 0.05), hidden, 0.1)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    value.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-12)
    assert count == 2


def test_sinkhorn_as_in_a_loop_and_uses_all_prototypes_alike() -> None:
    logits = randn(8, 4)
    table = [[math.exp(float(x) / 0.3) for x in row] for row in logits]
    for _ in range(3):
        columns = [sum(row[k] for row in table) for k in range(4)]
        table = [[x / columns[k] for k, x in enumerate(row)] for row in table]
        table = [[x / sum(row) for x in row] for row in table]
    targets = balanced_targets(logits, 0.3)
    torch.testing.assert_close(targets, torch.tensor(table, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(targets.sum(1), torch.ones(8, dtype=torch.float64))
    uneven = logits.div(0.3).softmax(1).sum(0)
    assert (targets.sum(0) - 2).abs().max() < (uneven - 2).abs().max() / 2


def test_koleo_as_in_a_loop() -> None:
    features = randn(5, 3)
    unit = features / features.norm(dim=1, keepdim=True)
    nearest = [min(float((unit[i] - unit[j]).norm()) for j in range(5) if j != i) for i in range(5)]
    value, count = koleo(features)
    assert float(value) == pytest.approx(-sum(math.log(d) for d in nearest) / 5, rel=1e-6)
    assert count == 5


@pytest.mark.parametrize("rows", [0, 1])
def test_koleo_of_a_row_alone_is_nothing(rows: int) -> None:
    features = torch.randn(rows, 3, requires_grad=True)
    value, count = koleo(features)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert features.grad is not None
    assert not features.grad.any()


def test_equal_rows_have_a_finite_spread() -> None:
    features = torch.ones(4, 3, requires_grad=True)
    value, _ = koleo(features)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(features.grad).all()


def test_nothing_hidden_and_an_empty_batch_score_nothing() -> None:
    student = torch.randn(0, 6, requires_grad=True)
    value, count = ibot(student, balanced_targets(torch.randn(0, 6), 0.1), torch.zeros(3, 4, dtype=torch.bool))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    views = torch.randn(3, 0, 6, requires_grad=True)
    value, count = dino(views, torch.randn(2, 0, 6))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)


def test_one_view_of_the_student_is_no_pair_with_itself() -> None:
    value, count = dino(randn(1, 4, 6), randn(1, 4, 6).softmax(-1))
    assert (value.item(), count.item()) == (0.0, 0.0)


def test_bf16_logits_give_the_exact_loss_under_autocast() -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(3, 8, 16).bfloat16(), torch.randn(16, 16).bfloat16()
    hidden = torch.rand(8, 4) < 0.5
    patches = torch.randn(int(hidden.sum()), 16).bfloat16()

    def losses(*tensors: torch.Tensor) -> list[torch.Tensor]:
        views, rows, tokens = tensors
        targets = balanced_targets(rows, 0.5)
        return [
            dino(views, targets.unflatten(0, (2, 8)))[0],
            ibot(tokens, balanced_targets(tokens, 0.5), hidden)[0],
            koleo(rows)[0],
        ]

    exact = losses(student.double(), teacher.double(), patches.double())
    with torch.autocast("cpu", torch.bfloat16):
        low = losses(student, teacher, patches)
    for ours, reference in zip(low, exact, strict=True):
        assert ours.dtype == torch.float32
        assert float(ours) == pytest.approx(float(reference), rel=1e-5)
