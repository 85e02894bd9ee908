"""Contrast of views, quarter turns and inpainting against official values and plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medvlp.objectives.volume_views import inpainting_l1, nt_xent, turn_ce, turned
from tests.objectives.official import cases_3d, check, load


@pytest.mark.parametrize("file", cases_3d("velvet/nt_xent"), ids=lambda file: file.stem)
def test_nt_xent_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("view1", "view2")}
    # The temperature is told in words only: 0.5, in one case 0.1.
    value, count = min(
        (nt_xent(inputs["view1"], inputs["view2"], torch.tensor(1 / t).double()) for t in (0.5, 0.1)),
        key=lambda result: abs(float(result[0].detach()) - float(case["loss"])),
    )
    assert count == 2 * len(case["view1"])
    check(value, case, inputs, name="loss")


def test_nt_xent_is_a_loop_and_does_not_overflow() -> None:
    rng = np.random.default_rng(1)
    views = rng.standard_normal((6, 4))
    unit = views / np.linalg.norm(views, axis=1, keepdims=True)
    scores = np.exp(unit @ unit.T / 0.1)
    losses = [-np.log(scores[i, (i + 3) % 6] / (scores[i].sum() - scores[i, i])) for i in range(6)]
    first, second = torch.from_numpy(views).chunk(2)
    assert float(nt_xent(first, second, torch.tensor(10.0))[0]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert nt_xent(first.float(), second.float(), torch.tensor(1e5))[0].isfinite()
    assert nt_xent(first[:0], second[:0], torch.tensor(1.0))[1] == 0


@pytest.mark.parametrize("file", cases_3d("velvet/rotation"), ids=lambda file: file.stem)
def test_turns_and_their_loss_are_the_official_ones(file: Path) -> None:
    case = load(file)
    for number, turns in enumerate(case["labels"].chunk(2)):
        assert torch.equal(turned(case["volume"], turns), case[f"rotated{number + 1}"])
    logits = case["logits"].requires_grad_()
    value, count = turn_ce(logits, case["labels"])
    assert count == len(logits)
    check(value, case, {"logits": logits}, name="loss")


def test_turns_follow_numpy_in_any_plane() -> None:
    volumes = np.random.default_rng(0).standard_normal((4, 1, 3, 2, 3))
    found = turned(torch.from_numpy(volumes), torch.arange(4), (-1, -3))
    for k in range(4):
        np.testing.assert_array_equal(found[k].numpy(), np.rot90(volumes[k], k, axes=(3, 1)))
    assert turned(torch.zeros(0, 1, 2, 2, 2), torch.zeros(0, dtype=torch.long)).shape == (0, 1, 2, 2, 2)


def test_inpainting_is_the_mean_absolute_error() -> None:
    torch.manual_seed(0)
    made, volumes = torch.randn(2, 1, 3, 3, 3), torch.randn(2, 1, 3, 3, 3)
    value, count = inpainting_l1(made, volumes)
    assert float(value) == pytest.approx(np.abs(made.numpy() - volumes.numpy()).mean(), rel=1e-6)
    assert count == 2
