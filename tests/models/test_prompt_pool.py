"""Prompt pools against PTUnifier's official values, as released and as meant."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.config.towers import ProjectionConfig
from medvlp.errors import UserError
from medvlp.models.projection import Projection
from medvlp.models.prompt_pool import PromptPool, look_up, mean_of_text
from medvlp.objectives.contrastive import info_nce
from tests.objectives.official import cases, check, load


@pytest.mark.parametrize("file", cases("ptunifier/prompt_pool"), ids=lambda file: file.stem)
@pytest.mark.parametrize("legacy", [False, True])
def test_rows_are_the_official_ones_and_only_the_pool_learns(file: Path, legacy: bool) -> None:
    case = load(file)
    pool = PromptPool(*case["pool"].shape, int(case["k"]), legacy_frozen=legacy).double()
    pool.rows.data.copy_(case["pool"])
    query = case["query"].requires_grad_()
    rows = pool(query)
    torch.testing.assert_close(rows, case["rows"])
    torch.testing.assert_close(look_up(query, pool.rows, int(case["k"]))[1], case["index"])
    value = (rows * case["cotangent"]).sum() + 0 * query.sum()
    torch.testing.assert_close(value, case["value" if legacy else "value_fixed"])
    value.backward()
    expected = case["grad_pool" if legacy else "grad_fixed_pool"]
    torch.testing.assert_close(torch.zeros_like(expected) if legacy else pool.rows.grad, expected)
    assert (pool.rows.grad is None) == legacy
    assert query.grad is not None
    assert not query.grad.any()


@pytest.mark.parametrize("file", cases("ptunifier/missing_image"), ids=lambda file: file.stem)
def test_the_query_of_a_missing_image_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs = {"text_embeddings": case["text_embeddings"].requires_grad_()}
    query = mean_of_text(inputs["text_embeddings"], case["mask"].bool())
    torch.testing.assert_close(query, case["query"], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(look_up(query, case["pool"], int(case["k"]))[0], case["rows"])
    check(query.sum(), case, inputs)


@pytest.mark.parametrize("file", cases("ptunifier/itc"), ids=lambda file: file.stem)
def test_contrast_of_one_side_alone_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs = {name: case[name].requires_grad_() for name in ("image", "text")}
    heads = {}
    for side, name in (("vision", "image"), ("language", "text")):
        width = case[name].shape[1]
        projection = Projection(width, ProjectionConfig(dim=width // 2, bias=False))
        heads[name] = torch.nn.Sequential(torch.nn.LayerNorm(width), projection).double()
        places = {"ln.weight": "0.weight", "ln.bias": "0.bias", "proj.weight": "1.layers.weight"}
        for theirs, ours in places.items():
            key = f"head.{side}_{theirs}"
            heads[name].get_parameter(ours).data.copy_(case[key])
            inputs[key] = heads[name].get_parameter(ours)
    value, _ = info_nce(heads["image"](inputs["image"]), heads["text"](inputs["text"]), 1 / case["T"])
    check(value, case, inputs)


def test_a_pool_smaller_than_what_is_asked_of_it_is_refused() -> None:
    with pytest.raises(UserError, match="cannot give 5"):
        PromptPool(4, 8, 5)
