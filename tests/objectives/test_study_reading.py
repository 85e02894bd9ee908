"""Reading a study by retrieval: the released code of EchoPrime, and what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvlp.objectives.study_reading import nearest_labels, nearest_texts, section_vectors
from tests.objectives.official import RELATIVE_FLOAT32, cases_3d, load

CASES = cases_3d("echoprime/study_aggregation")


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_sections_are_the_official_ones(file: Path) -> None:
    case = load(file)
    made = section_vectors(case["video_embeddings"], case["views"], case["section_weights"])
    for name in ("section_embeddings", "report_section_embeddings"):
        torch.testing.assert_close(made, case[name], rtol=RELATIVE_FLOAT32, atol=2e-7)


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_labels_and_texts_of_neighbours_are_the_official_ones(file: Path) -> None:
    case = load(file)
    sections = section_vectors(case["video_embeddings"], case["views"], case["section_weights"])
    labels, questions = case["candidate_labels"], case["section_of_phenotype"]
    if not sections.any():  # the order of equal similarities decides what the official code reads
        assert nearest_labels(sections[questions], case["candidate_embeddings"], labels).isnan().all()
        return
    for name, own in (("prediction", sections[questions]), ("prediction_legacy", sections[: len(labels)])):
        made = nearest_labels(own, case["candidate_embeddings"], labels, int(case["k"]))
        torch.testing.assert_close(made, case[name], rtol=RELATIVE_FLOAT32, atol=0, equal_nan=True)
    chosen = nearest_texts(sections, case["candidate_embeddings"], case["candidate_has_section"])
    assert torch.equal(chosen, case["report_candidate"])


def test_a_gradient_reaches_clips_and_weights_as_by_hand() -> None:
    torch.manual_seed(0)
    clips = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 5, dtype=torch.float64, requires_grad=True)
    views = torch.tensor([4, 0, 4])
    assert torch.autograd.gradcheck(lambda c, w: section_vectors(c, views, w), (clips, weights))
    by_hand = sum(weights[1, view] * clip for clip, view in zip(clips, views, strict=True))
    torch.testing.assert_close(section_vectors(clips, views, weights)[1], by_hand / by_hand.norm())


def test_what_cannot_be_read_is_not_read() -> None:
    candidates = torch.eye(4)
    labels = torch.tensor([[1.0, torch.nan, 0.0, 0.0], [torch.nan, torch.nan, torch.nan, 1.0], [1.0, 1.0, 1.0, 1.0]])
    sections = torch.stack([torch.tensor([0.9, 0.8, 0.1, 0.0]), torch.tensor([0.9, 0.8, 0.1, 0.0]), torch.zeros(4)])
    made = nearest_labels(sections, candidates, labels, neighbours=2)
    assert made[0] == 1.0
    assert made[1:].isnan().all()
    assert nearest_labels(sections[:1], candidates, labels[:1], neighbours=99)[0] == pytest.approx(1 / 3)
    has = torch.tensor([[False, True, True, True], [False] * 4, [True] * 4])
    assert nearest_texts(sections, candidates, has).tolist() == [1, -1, -1]
