"""Terms and figures between two log calls."""

from __future__ import annotations

import pytest
import torch

from medvlp.track.window import NotFiniteError, Window


def term(value: float, count: float = 4.0) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(value), torch.tensor(count)


def test_figures_are_averaged_like_terms_and_add_to_no_loss() -> None:
    window = Window(warn=False)
    for step, accuracy in ((1, 0.5), (2, 1.0)):
        window.add({"overlap": term(2.0), "reg": term(1.0)}, step)
        window.add({"position_accuracy": term(accuracy, 8.0)}, step, in_loss=False)
    metrics = window.close(2)
    assert metrics["loss"] == 3.0
    assert metrics["position_accuracy"] == 0.75
    assert metrics["position_accuracy_count"] == 8.0
    window.add({"overlap": term(1.0)}, 3)
    assert window.close(3) == {"loss": 1.0, "overlap": 1.0, "overlap_count": 4.0}


def test_a_figure_that_is_not_finite_is_found() -> None:
    window = Window(warn=False)
    window.add({"position_accuracy": term(float("nan"))}, 5, in_loss=False)
    with pytest.raises(NotFiniteError, match="position_accuracy"):
        window.close(5)
