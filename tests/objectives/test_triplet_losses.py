"""Losses on ternary matrices against official values, loops over cells, and batches without labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvlp.knowledge.books import finding_names
from medvlp.knowledge.matrix import anatomy_labels as numpy_anatomy_labels
from medvlp.knowledge.matrix import finding_labels as numpy_finding_labels
from medvlp.knowledge.questions import read_question
from medvlp.objectives.triplets import (
    anatomy_labels,
    draw_one,
    draw_others,
    existence_bce,
    existence_ce,
    finding_labels,
    intersection_bce,
    position_contrast,
    prototype_contrast,
)
from tests.objectives.official import cases, check, load
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run

Arrays = dict[str, torch.Tensor]


def several(*objectives: str) -> list[Any]:
    return [case for objective in objectives for case in cases(objective)]


def inputs_of(case: Arrays) -> Arrays:
    return {key: case[key].requires_grad_() for key in case if f"grad_{key}" in case}


def total_of(terms: Arrays, case: Arrays) -> torch.Tensor:
    """Return the sum of the terms, each of which is compared where the case has it."""
    assert terms
    for name, value in terms.items():
        if name in case:
            torch.testing.assert_close(value, case[name], rtol=1e-6, atol=0)
    return torch.stack(list(terms.values())).sum()


@pytest.mark.parametrize("file", several("medslip/exist", "medslip/protocl", "medslip/icl", "medslip/total"))
def test_medslip_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs, matrix, terms = inputs_of(case), case["matrix"], {}
    if "logits_pathology" in case:
        terms["exist_pathology"] = existence_ce(case["logits_pathology"], finding_labels(matrix))[0]
        terms["exist_anatomy"] = existence_ce(case["logits_anatomy"], anatomy_labels(matrix))[0]
    if "proj_pathology" in case:
        for stream, book, positive in (
            ("pathology", "anatomy_book", (matrix == 1).transpose(1, 2)),
            ("anatomy", "pathology_book", matrix == 1),
        ):
            others = case[f"index_{stream}"][..., 1:]
            terms[f"protocl_{stream}"] = prototype_contrast(case[f"proj_{stream}"], case[book], positive, others)[0]
    if "feat_pathology" in case:
        terms["icl"] = intersection_bce(case["feat_anatomy"], case["feat_pathology"], matrix)[0]
    check(total_of(terms, case), case, inputs, absolute=1e-12)


@pytest.mark.parametrize("file", several("medklip/exist", "medklip/position", "medklip/total"))
def test_medklip_is_the_official_one(file: Path) -> None:
    case = load(file)
    inputs, terms = inputs_of(case), {}
    if "logits" in case:
        terms["exist"] = existence_ce(case["logits"], case["label"])[0]
    if "proj" in case:
        chosen = case["index"][..., 0].masked_fill(case["label"] != 1, -1)
        terms["position"] = position_contrast(case["proj"], case["anatomy_book"], chosen, case["index"][..., 1:])[0]
    check(total_of(terms, case), case, inputs, absolute=1e-12)


@pytest.mark.parametrize("file", several("medslip/zero_shot_cxr14", "medklip/zero_shot_cxr14"))
def test_the_labels_of_chestxray14_are_read_as_the_official_code_maps_them(file: Path) -> None:
    labels = "Atelectasis Cardiomegaly Effusion Infiltration Mass Nodule Pneumonia Pneumothorax Consolidation Edema"
    names = [*labels.split(), "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"]
    case = load(file)
    columns = [question.finding for label in names for question in read_question(label)]
    assert columns == case["column_of_class"].tolist()
    torch.testing.assert_close(case["logits"].softmax(2)[:, columns, 1], case["value"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("file", several("medslip/zero_shot_rsna"))
def test_pneumonia_is_the_query_that_the_official_code_reads(file: Path) -> None:
    case = load(file)
    (question,) = read_question("there is pneumonia")
    assert question.finding == finding_names().index("pneumonia") == 20
    torch.testing.assert_close(case["logits"].softmax(2)[:, 20, 1], case["value"][:, 0], rtol=1e-6, atol=0)


def drawn_matrix(batch: int = 3, places: int = 9, findings: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(-1, 2, (batch, places, findings), generator=generator, dtype=torch.int8)


def test_labels_of_streams_are_those_of_the_matrices() -> None:
    matrix = drawn_matrix()
    assert (finding_labels(matrix).numpy() == numpy_finding_labels(matrix.numpy())).all()
    assert (anatomy_labels(matrix).numpy() == numpy_anatomy_labels(matrix.numpy())).all()


def test_contrasts_are_a_loop_over_present_queries_and_leave_out_missing_candidates() -> None:
    torch.manual_seed(0)
    matrix = drawn_matrix()
    matrix[0, :, 1], matrix[1, :, 2] = 1, -1  # a finding at every place, so that nothing is left; one nowhere
    positive = (matrix == 1).transpose(1, 2)
    projected, book = torch.randn(3, 6, 5), torch.randn(9, 5)
    others, chosen = draw_others(positive, 7), draw_one(positive)
    prototypes, positions = [], []
    for b in range(3):
        for q in range(6):
            rows = [a for a in range(9) if matrix[b, a, q] == 1]
            if not rows:
                assert chosen[b, q] == -1
                continue
            assert int(chosen[b, q]) in rows
            rest = [int(row) for row in others[b, q] if row >= 0]
            assert len(set(rest)) == len(rest) == min(7, 9 - len(rows))
            assert not set(rest) & set(rows)
            for kept, first in ((prototypes, book[rows].mean(0)), (positions, book[chosen[b, q]])):
                logits = torch.stack([first, *book[rest]]) @ projected[b, q]
                kept.append(functional.cross_entropy(logits[None], torch.tensor([0])))
    for expected, (value, count) in (
        (prototypes, prototype_contrast(projected, book, positive, others)),
        (positions, position_contrast(projected, book, chosen, others)),
    ):
        torch.testing.assert_close(value, torch.stack(expected).mean())
        assert count == len(expected) > 0


def test_cells_are_a_loop() -> None:
    torch.manual_seed(0)
    matrix, anatomy, finding = drawn_matrix(), torch.randn(3, 9, 4), torch.randn(3, 6, 4)
    expected = [
        functional.binary_cross_entropy_with_logits(anatomy[b, a] @ finding[b, f], matrix[b, a, f].float())
        for b in range(3)
        for a in range(9)
        for f in range(6)
        if matrix[b, a, f] >= 0
    ]
    value, count = intersection_bce(anatomy, finding, matrix)
    torch.testing.assert_close(value, torch.stack(expected).mean())
    assert count == len(expected)


def test_draws_are_even_and_follow_the_generator() -> None:
    positive = torch.zeros(4000, 1, 4, dtype=torch.bool)
    positive[:, :, 0] = True
    torch.manual_seed(5)
    drawn = draw_others(positive, 2)
    assert torch.bincount(drawn.flatten(), minlength=4)[0] == 0
    shares = torch.bincount(drawn.flatten()).float()[1:] / 8000
    assert ((shares - 1 / 3).abs() < 0.03).all()
    torch.manual_seed(5)
    assert torch.equal(drawn, draw_others(positive, 2))
    ones = torch.bincount(draw_one(~positive).flatten()).float()[1:] / 4000
    assert ((ones - 1 / 3).abs() < 0.03).all()


def empty_terms(features: torch.Tensor) -> dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]:
    unlabelled = torch.full((2, 3, 3), -1)
    nothing = unlabelled == 1
    others, book = draw_others(nothing, 7), torch.randn(3, 4)
    return {
        "ce": lambda: existence_ce(features[..., :2], finding_labels(unlabelled)),
        "bce": lambda: existence_bce(features[..., 0], finding_labels(unlabelled)),
        "icl": lambda: intersection_bce(features, features, unlabelled),
        "prototype": lambda: prototype_contrast(features, book, nothing, others),
        "position": lambda: position_contrast(features, book, draw_one(nothing), others),
    }


@pytest.mark.parametrize("name", ["ce", "bce", "icl", "prototype", "position"])
def test_without_labels_a_term_is_zero_with_a_gradient_of_zero(name: str) -> None:
    features = torch.randn(2, 3, 4, requires_grad=True)
    value, count = empty_terms(features)[name]()
    assert (value.item(), count.item()) == (0.0, 0.0)
    value.backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_logits_are_computed_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    matrix, features, book = drawn_matrix(), 9 * torch.randn(3, 6, 32), torch.randn(9, 32)
    positive = (matrix == 1).transpose(1, 2)
    others = draw_others(positive, 7)
    plain = prototype_contrast(features, book, positive, others)[0]
    with torch.autocast("cpu", torch.bfloat16):
        low = prototype_contrast(features, book, positive, others)[0]
        cells = intersection_bce(torch.randn(3, 9, 32), features, matrix)[0]
    assert low == plain
    assert cells.dtype == torch.float32


ROWS = [3, 0, 2, 3]


class Reader(nn.Module):
    """A linear map whose output all losses read, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 4).double()

    def forward(self, name: str, data: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
        out, matrix = self.linear(data["inputs"]), data["matrix"]
        of_place = (matrix == 1).transpose(1, 2)
        finding, place = out[:, :6], out[:, 6:]
        book = torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(9, 4)
        if name == "exist":
            return existence_ce(finding[..., :2], finding_labels(matrix))
        if name == "icl":
            return intersection_bce(place, finding, matrix)
        if name == "position":
            return position_contrast(finding, book, data["chosen"], data["others"])
        return prototype_contrast(finding, book, of_place, data["others"])


def rows_of_ranks() -> Arrays:
    torch.manual_seed(4)
    matrix = drawn_matrix(sum(ROWS))
    positive = (matrix == 1).transpose(1, 2)
    inputs = torch.randn(sum(ROWS), 15, 5, dtype=torch.float64)
    return {"inputs": inputs, "matrix": matrix, "others": draw_others(positive, 3), "chosen": draw_one(positive)}


OBJECTIVES = ("exist", "icl", "prototype", "position")


def work(rank: int, model: nn.Module) -> dict[str, Found]:
    own = {name: tensor.split(ROWS)[rank] for name, tensor in rows_of_ranks().items()}
    return {name: run(model, name, own) for name in OBJECTIVES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return on_ranks(Reader, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_four_ranks_one_of_them_empty_equal_one_process(ranks: list[dict[str, Found]], name: str) -> None:
    alone = run(Reader(), name, rows_of_ranks())
    check_as_one_process([rank[name] for rank in ranks], alone, 1e-12, 1e-9, 1e-12)
