"""The averaged teacher and the queue: exact numbers, nothing moves by itself, state round-trips."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.queue import FeatureQueue
from medvlp.models.teacher import Teacher


def students() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"tower": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)), "head": nn.Linear(4, 2)}


def test_the_teacher_starts_equal_and_trails_by_the_moving_average() -> None:
    modules = students()
    teacher = Teacher(modules)
    expected = {key: tensor.clone() for key, tensor in modules["tower"].state_dict().items()}
    for step in range(3):
        with torch.no_grad():
            for parameter in modules["tower"].parameters():
                parameter.add_(1.0 + step)
        modules["tower"].train()(torch.randn(8, 3))
        teacher.update(modules, 0.9)
        for key, tensor in modules["tower"].state_dict().items():
            expected[key] = 0.9 * expected[key] + 0.1 * tensor if tensor.is_floating_point() else tensor.clone()
    for key, tensor in teacher["tower"].state_dict().items():
        torch.testing.assert_close(tensor, expected[key])
    assert int(teacher["tower"][1].num_batches_tracked) == 3


def test_the_teacher_stays_in_evaluation_mode_without_gradient_and_keeps_its_weights_in_a_forward_pass() -> None:
    teacher = Teacher(students())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    nn.ModuleList([teacher]).train()
    before = {key: tensor.clone() for key, tensor in teacher.state_dict().items()}
    inputs = torch.randn(8, 3)
    torch.testing.assert_close(teacher["tower"](inputs), teacher["tower"](inputs), rtol=0, atol=0)
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_the_teacher_shares_no_memory_with_the_student_and_its_state_round_trips() -> None:
    modules = students()
    teacher, other = Teacher(modules), Teacher(students())
    with torch.no_grad():
        modules["head"].weight.zero_()
    assert teacher["head"].weight.any()
    teacher.update(modules, 0.5)
    other.load_state_dict(teacher.state_dict(), strict=True)
    for key, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[key])


def test_the_queue_is_first_in_first_out_for_batches_of_any_size() -> None:
    queue, expected = FeatureQueue(5, 2), []
    for number in (2, 2, 3, 1, 5):
        rows = torch.randn(number, 2)
        queue.enqueue(rows)
        expected = [*expected, *rows.tolist()][-5:]
        kept = queue.features.tolist()
        assert all(row in kept for row in expected)
    assert sorted(expected) == sorted(queue.features.tolist())
    assert int(queue.place) == 13 % 5


def test_a_new_queue_holds_random_unit_vectors_and_its_state_round_trips() -> None:
    torch.manual_seed(0)
    queue, other = FeatureQueue(6, 4), FeatureQueue(6, 4)
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(6))
    queue.enqueue(torch.randn(4, 4))
    other.load_state_dict(queue.state_dict(), strict=True)
    rows = torch.randn(3, 4)
    queue.enqueue(rows)
    other.enqueue(rows)
    assert torch.equal(queue.features, other.features)
    assert torch.equal(queue.place, other.place)


def test_a_batch_larger_than_the_queue_is_refused() -> None:
    with pytest.raises(UserError, match="does not fit"):
        FeatureQueue(3, 2).enqueue(torch.randn(4, 2))
