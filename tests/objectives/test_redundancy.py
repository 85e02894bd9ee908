"""M-FLAG's alignment and orthogonality against official values, a loop and the limits of half precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.objectives.redundancy import alignment, orthogonality
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("file", cases("mflag/alignment"), ids=lambda file: file.stem)
def test_alignment_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    value, count = alignment(**inputs)
    assert count == len(inputs["image"])
    check(value, case, inputs)


@pytest.mark.parametrize("file", cases("mflag/orthogonality"), ids=lambda file: file.stem)
def test_orthogonality_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs = {"embedding": case["embedding"].requires_grad_()}
    value, count = orthogonality(inputs["embedding"], divisor=float(case["batch_size"]))
    assert count == len(inputs["embedding"])
    check(value, case, inputs)


@pytest.mark.parametrize("file", cases("mflag/total"), ids=lambda file: file.stem)
def test_both_together_are_the_official_total(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("embedding", "image", "text")}
    aligned, _ = alignment(inputs["image"], inputs["text"])
    value = aligned + orthogonality(inputs["embedding"], divisor=float(case["batch_size"]))[0]
    check(value, case, inputs)


def test_the_divisor_is_the_number_of_rows_unless_given_and_the_moments_are_a_loop() -> None:
    torch.manual_seed(0)
    features = torch.randn(5, 3, dtype=torch.float64)
    expected = 0.0
    for i in range(3):
        for j in range(3):
            moment = sum(float(row[i] * row[j]) for row in features) / 5
            expected += 0.5 * ((moment - 1) ** 2 if i == j else 0.0051 * moment**2)
    assert float(orthogonality(features)[0]) == pytest.approx(expected, rel=1e-12)


def test_large_features_do_not_overflow_under_autocast() -> None:
    features = torch.full((512, 4), 60.0, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        value, _ = orthogonality(features)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(orthogonality(features.double())[0]), rel=1e-5)


def test_an_empty_batch_is_zero_and_unequal_pairs_are_refused() -> None:
    image, text = torch.randn(0, 4, requires_grad=True), torch.randn(0, 4, requires_grad=True)
    for value, count in (alignment(image, text), orthogonality(image)):
        value.backward()
        assert (value.item(), count.item()) == (0.0, 0.0)
    with pytest.raises(ValueError, match="needs pairs"):
        alignment(torch.randn(2, 4), torch.randn(3, 4))
