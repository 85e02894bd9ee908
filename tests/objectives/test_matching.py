"""Which pairs matching asks about, how often, and what the loss of the answers is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from medvlp.objectives.matching import (
    hard_negatives,
    hardness,
    itm,
    match_score,
    replacements,
    same_texts,
    with_mismatches,
)
from medvlp.objectives.terms import unit
from tests.objectives.official import cases_3d, check, load


def test_itm_is_cross_entropy_over_pairs_and_the_score_is_the_log_odds() -> None:
    torch.manual_seed(0)
    logits, matched = torch.randn(6, 2, dtype=torch.float64), torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    value, count = itm(logits, matched)
    torch.testing.assert_close(value, functional.cross_entropy(logits, matched.long()))
    assert count == 6
    odds = logits.softmax(1)
    torch.testing.assert_close(match_score(logits), (odds[:, 1] / odds[:, 0]).log())


def test_itm_of_no_pair_is_zero() -> None:
    logits = torch.randn(0, 2, requires_grad=True)
    value, count = itm(logits, torch.zeros(0, dtype=torch.bool))
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)


def test_texts_are_the_same_token_by_token_pads_aside() -> None:
    ids = torch.tensor([[2, 5, 3, 0], [2, 5, 3, 9], [2, 5, 3, 9], [2, 5, 3, 7]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    expected = torch.eye(4).bool()
    expected[0, 1] = expected[1, 0] = True
    assert torch.equal(same_texts(ids, mask), expected)


def test_half_of_the_rows_get_a_mismatch_and_every_other_row_is_as_likely() -> None:
    torch.manual_seed(0)
    same = torch.eye(5).bool()
    same[0, 1] = same[1, 0] = True
    drawn, asked = torch.zeros(5, 5), torch.zeros(5)
    for _ in range(2000):
        index, matched = replacements(same)
        assert (~matched).sum() == 3
        assert torch.equal(index[matched], torch.arange(5)[matched])
        assert not same[torch.arange(5), index][~matched].any()
        drawn[torch.arange(5)[~matched], index[~matched]] += 1
        asked += ~matched
    torch.testing.assert_close(asked / 2000, torch.full((5,), 0.6), atol=0.05, rtol=0)
    for row in range(5):
        others = ~same[row]
        torch.testing.assert_close(
            drawn[row, others] / asked[row], (1 / others.sum()).expand(others.sum()), atol=0.06, rtol=0
        )


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_rows_without_a_possible_mismatch_keep_their_own(rows: int) -> None:
    index, matched = replacements(torch.ones(rows, rows).bool())
    assert torch.equal(index, torch.arange(rows))
    assert matched.all()


def test_hard_negatives_are_drawn_by_the_softmax_of_the_similarity() -> None:
    torch.manual_seed(0)
    similarity = torch.tensor([[9.0, 1.0, 2.0, 0.0]]).expand(20000, -1)
    excluded = torch.tensor([[True, False, False, False]]).expand(20000, -1)
    index, found = hard_negatives(similarity, excluded)
    assert found.all()
    weights = similarity[0].softmax(0) + 1e-4
    weights[0] = 0
    torch.testing.assert_close(torch.bincount(index, minlength=4) / 20000, weights / weights.sum(), atol=0.015, rtol=0)


def test_a_row_without_any_mismatch_is_told() -> None:
    excluded = torch.tensor([[True, True], [True, False]])
    index, found = hard_negatives(torch.randn(2, 2), excluded)
    assert found.tolist() == [False, True]
    assert index[1] == 1
    assert hard_negatives(torch.randn(0, 0), torch.zeros(0, 0).bool())[1].shape == (0,)


@pytest.mark.parametrize("file", cases_3d("velvet/matching"), ids=lambda file: file.stem)
def test_weights_pairs_and_loss_are_the_official_velvet_med(file: Path) -> None:
    case = load(file)
    same = torch.eye(len(case["vis_embed"]), dtype=torch.bool)
    cosines = unit(case["txt_embed"]) @ unit(case["vis_embed"]).T / case["temperature"]
    for similarity, name in ((cosines, "text_to_image"), (cosines.T, "image_to_text")):
        torch.testing.assert_close(hardness(similarity, same, 0.0), case[f"weights_{name}"], rtol=1e-6, atol=1e-300)
    there = torch.ones(len(same), dtype=torch.bool)
    wrong_image, wrong_text = case["negative_image_for_text"], case["negative_text_for_image"]
    of_image, of_text, matched = with_mismatches(wrong_image, there, wrong_text, there)
    assert matched.long().tolist() == case["target"].tolist()
    names = ("text_hidden", "image_hidden", "head_weight", "head_bias")
    inputs = {name: case[name].requires_grad_() for name in names}
    seen = case["attention_mask"][of_text].double()[..., None]
    text = (inputs["text_hidden"][of_text] * seen).sum(1) / seen.sum(1)
    fused = (text + 2 * inputs["image_hidden"][of_image].mean(1)).tanh()
    logits = functional.linear(fused, inputs["head_weight"], inputs["head_bias"])
    torch.testing.assert_close(logits, case["logits"], rtol=1e-6, atol=1e-12)
    still = {name: case[name].requires_grad_() for name in ("vis_embed", "txt_embed", "temperature")}
    value, count = itm(logits, matched)
    assert count == 3 * len(same)
    check(value + 0 * sum(part.sum() for part in still.values()), case, {**inputs, **still}, name="loss")


def test_without_a_least_weight_a_sharp_softmax_still_draws_a_mismatch() -> None:
    similarity = torch.tensor([[0.0, -500.0, -900.0], [0.0, 0.0, 0.0], [-900.0, -500.0, 0.0]])
    index, found = hard_negatives(similarity, torch.eye(3, dtype=torch.bool), 0.0)
    assert found.all()
    assert (index != torch.arange(3)).all()
