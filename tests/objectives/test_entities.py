"""Questions about entities against ARL's official values; no entity, no sample."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medvlp.objectives.entities import entity_bce, named
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("file", cases("arl/align"), ids=lambda file: file.stem)
def test_alignment_is_the_official_arl(file: Path) -> None:
    case = load(file)
    heads = [name for name in case if name.startswith("head.")]
    inputs = {name: case[name].requires_grad_() for name in ("image", "text", "entities", *heads)}

    def head(side: str, vectors: torch.Tensor) -> torch.Tensor:
        for layer in ("linear1", "linear2"):
            name = f"head.{side}_{layer}"
            vectors = functional.linear(vectors, inputs[f"{name}.weight"], inputs[f"{name}.bias"]).relu()
        return vectors

    image, image_count = entity_bce(head("img", inputs["image"]), inputs["entities"], case["image_labels"])
    text, _ = entity_bce(head("txt", inputs["text"]), inputs["entities"], case["text_labels"])
    assert image_count == case["image_labels"].numel()
    check(image + text, case, inputs)


def test_named_marks_each_row_once_and_ignores_empty_places() -> None:
    concepts = torch.tensor([[2, 0, 2], [-1, -1, -1], [3, -1, 1]])
    assert named(concepts, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 1]]
    assert named(torch.zeros(2, 0, dtype=torch.long), 3).tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(("rows", "entities"), [(0, 3), (3, 0)])
def test_nothing_to_ask_is_zero(rows: int, entities: int) -> None:
    vectors = torch.randn(rows, 4, requires_grad=True)
    value, count = entity_bce(vectors, torch.randn(entities, 4), torch.zeros(rows, entities))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert vectors.grad is not None
    assert not vectors.grad.any()
