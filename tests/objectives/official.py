"""Reading the reference values of official implementations, all cases of an objective at a time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

RELATIVE = 1e-6
RELATIVE_FLOAT32 = 2e-6
"""Where the official code computes in single precision."""
ROUNDING = 1e-12
"""A loss near 0 is a difference of numbers near 1 in the official code."""


def cases(objective: str) -> list[Any]:
    """Return the case files of `method/objective`; one test that is skipped where the references are missing."""
    return _cases("losses2d", objective)


def cases_3d(objective: str) -> list[Any]:
    """Return the case files of an objective of volumes or video, likewise."""
    return _cases("losses3d", objective)


def _cases(folder: str, objective: str) -> list[Any]:
    beside = Path(os.environ.get("MEDVLP_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")).parent / "oracles"
    files = sorted((Path(os.environ.get("MEDVLP_ORACLES", beside)) / folder / objective).glob("case_*.npz"))
    missing = pytest.param(Path("missing"), marks=pytest.mark.skip(reason="reference values are missing"))
    return list(files) or [missing]


def load(file: Path) -> dict[str, torch.Tensor]:
    """Return the arrays of a case as tensors."""
    with np.load(file) as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def check(
    value: torch.Tensor,
    case: Mapping[str, torch.Tensor],
    inputs: Mapping[str, torch.Tensor],
    fixed: bool = False,
    absolute: float = 1e-10,
    name: str = "value",
) -> None:
    """Compare the value, and the gradient with respect to each input; every stored gradient must be among them."""
    suffix, prefix = ("_fixed", "grad_fixed_") if fixed else ("", "grad_")
    torch.testing.assert_close(value, case[f"{name}{suffix}"], rtol=RELATIVE, atol=ROUNDING)
    value.backward()
    stored = {key.removeprefix(prefix) for key in case if key.startswith(prefix)}
    if not fixed:
        stored = {name for name in stored if not name.startswith("fixed_")}
    assert stored <= set(inputs)
    for name in stored:
        tensor, expected = inputs[name], case[f"{prefix}{name}"]
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad.reshape(expected.shape), expected, rtol=RELATIVE, atol=absolute)
