"""VoCo's overlap labels and losses against official values, a count of voxels, and loops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.objectives import context_position
from medvlp.objectives.context_position import (
    overlap_labels,
    position_accuracy,
    position_terms_v1,
    position_terms_v2,
)
from tests.objectives.official import cases_3d, load

VERSIONS = {"voco_v1": (position_terms_v1, 16), "voco_v2": (position_terms_v2, 9)}
FILES = [(name, file) for name in VERSIONS for file in cases_3d(f"{name}/loss")]
LABELS = [(name, file) for name in VERSIONS for file in cases_3d(f"{name}/overlap_labels")]


def name_of(value: object) -> str:
    return value.stem if isinstance(value, Path) else str(value)


@pytest.mark.parametrize(("name", "file"), FILES, ids=name_of)
def test_terms_are_the_official_ones(name: str, file: Path) -> None:
    terms, bases = VERSIONS[name]
    case = load(file)
    volumes, crops, _ = case["labels"].shape
    names = ("x_student", "x_teacher", "bases_student", "bases_teacher")
    inputs = {key: case[key].requires_grad_() for key in names}
    shaped = [inputs[key].unflatten(0, (volumes, crops if key[0] == "x" else bases)) for key in names]
    found = terms(*shaped, case["labels"])
    for key, (value, count) in found.items():
        torch.testing.assert_close(value, case[key], rtol=1e-6, atol=1e-12)
        assert count == volumes
    total = torch.stack([value for value, _ in found.values()]).sum()
    torch.testing.assert_close(total, case["loss"], rtol=1e-6, atol=0)
    total.backward()
    for key in ("x_student", "bases_student"):
        torch.testing.assert_close(inputs[key].grad, case[f"grad_{key}"], rtol=1e-6, atol=1e-10)
    assert inputs["x_teacher"].grad is None
    assert inputs["bases_teacher"].grad is None


@pytest.mark.parametrize(("name", "file"), LABELS, ids=name_of)
def test_labels_are_the_official_ones(name: str, file: Path) -> None:
    case = load(file)
    side, grid = int(case["roi"]), int(case["max_roi"]) // int(case["roi"])
    labels = overlap_labels(case["centers"] - side // 2, (side, side), (grid, grid))
    torch.testing.assert_close(labels, case["labels"], rtol=1e-6, atol=1e-12)


def test_labels_are_a_count_of_voxels() -> None:
    """Also of base crops that are no squares, and of crops that leave the region."""
    rng = np.random.default_rng(0)
    for sides, grid in (((4, 6), (3, 2)), ((5, 5), (2, 4))):
        region = np.zeros((sides[0] * grid[0], sides[1] * grid[1]), int)
        for i, j in np.ndindex(*grid):
            region[i * sides[0] : (i + 1) * sides[0], j * sides[1] : (j + 1) * sides[1]] = 1 + i * grid[1] + j
        padded = np.pad(region, 8)
        for start in rng.integers(-3, np.array(region.shape) - np.array(sides) + 4, (20, 2)):
            a, b = start + 8
            inside = padded[a : a + sides[0], b : b + sides[1]]
            counted = [(inside == 1 + k).mean() for k in range(grid[0] * grid[1])]
            found = overlap_labels(torch.from_numpy(start)[None], sides, grid)[0]
            np.testing.assert_allclose(found.numpy(), counted, atol=1e-12)


def test_accuracy_counts_crops_that_find_a_base_of_the_largest_overlap() -> None:
    bases = torch.eye(4)[None]
    labels = torch.tensor([[[0.5, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4], [1.0, 0, 0, 0]]])
    crops = torch.eye(4)[None, [1, 3, 2]]
    value, count = position_accuracy(crops, bases, labels)
    assert (float(value), float(count)) == (pytest.approx(2 / 3), 3.0)


def test_one_training_step_moves_the_student_towards_its_place() -> None:
    torch.manual_seed(0)
    crops, bases = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 9, 8)
    labels = overlap_labels(torch.randint(0, 9, (2, 3, 2)), (4, 4), (3, 3))
    for terms in (position_terms_v1, position_terms_v2):
        before = terms(crops, crops, bases, bases, labels)
        loss = torch.stack([value for value, _ in before.values()]).sum()
        (gradient,) = torch.autograd.grad(loss, crops)
        after = terms(crops - 0.05 * gradient, crops, bases, bases, labels)
        assert torch.stack([value for value, _ in after.values()]).sum() < loss


def test_terms_stay_finite_where_rounding_makes_a_cosine_larger_than_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a device may that sums in another order, when two volumes look alike."""
    monkeypatch.setattr(context_position, "unit", lambda vectors: functional.normalize(vectors, dim=-1) * 1.00001)
    vector = torch.randn(8)
    crops, bases = vector.expand(2, 3, 8).clone().requires_grad_(), vector.expand(2, 9, 8)
    labels = overlap_labels(torch.randint(0, 9, (2, 3, 2)), (4, 4), (3, 3))
    for terms in (position_terms_v1, position_terms_v2):
        found = terms(crops, crops, bases, bases, labels)
        total = torch.stack([value for value, _ in found.values()]).sum()
        (gradient,) = torch.autograd.grad(total, crops)
        assert total.isfinite()
        assert gradient.isfinite().all()
