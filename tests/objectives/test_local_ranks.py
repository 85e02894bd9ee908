"""Four ranks give the losses and gradients of local alignment that one process has, also with unequal batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvlp.objectives.captioning import captioning
from medvlp.objectives.prototypes import sinkhorn, swapped_prediction
from medvlp.objectives.sentence_patches import sentence_patch_nce
from medvlp.objectives.token_alignment import token_alignment
from medvlp.objectives.token_max import token_max_nce
from medvlp.objectives.volume_views import nt_xent
from medvlp.objectives.word_region import unit_word_region_nce, word_region_nce
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run

OBJECTIVES = (
    *("token_alignment", "swapped_prediction", "word_region", "token_max", "captioning"),
    *("unit_word_region", "sentence_patches", "nt_xent"),
)
LENGTHS = torch.tensor([4, 1, 6, 0, 3, 2, 5, 2])
SHARES = {"equal": [2, 2, 2, 2], "unequal": [3, 1, 4, 0]}


class Towers(nn.Module):
    """Linear towers and prototypes, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(7, 5).double(), nn.Linear(6, 5).double()
        self.prototypes = nn.Parameter(torch.randn(9, 5).double())

    def forward(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        value, count = self.loss(name, data)
        return value + sum(parameter.sum() for parameter in self.parameters()) * 0.0, count

    def loss(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        image, text, mask = self.image(data["images"]), self.text(data["texts"]), data["mask"]
        if name == "token_alignment":
            everywhere = torch.ones(image.shape[:2], dtype=torch.bool)
            return token_alignment(text, image, data["weights"], mask, everywhere)
        if name == "swapped_prediction":
            return swapped_prediction(image[:, 0], text[:, 0], self.prototypes)
        if name == "word_region":
            return word_region_nce(image, text, mask, at_once=3)
        if name == "unit_word_region":
            return unit_word_region_nce(image, text, mask, reduce="mean")
        if name == "sentence_patches":
            return sentence_patch_nce(image, text, mask, data["ids"], torch.tensor(5.0).double(), 0.5)
        if name == "nt_xent":
            return nt_xent(image[:, 0], text[:, 0], torch.tensor(2.0).double())
        if name == "token_max":
            return token_max_nce(image, text, mask, torch.tensor(8.0).double(), top_k=2, at_once=3)
        return captioning(text, data["ids"], mask)


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(8, 4, 7, dtype=torch.float64, generator=generator),
        "texts": torch.randn(8, 6, 6, dtype=torch.float64, generator=generator),
        "mask": torch.arange(6) < LENGTHS[:, None],
        "weights": torch.rand(8, 6, dtype=torch.float64, generator=generator),
        "ids": torch.randint(0, 5, (8, 6), generator=generator),
    }


def share(data: dict[str, torch.Tensor], counts: list[int], rank: int) -> dict[str, torch.Tensor]:
    """A rank's rows, padded as far as its own longest text needs."""
    own = {name: tensor.split(counts)[rank] for name, tensor in data.items()}
    longest = max(2, int(own["mask"].sum(1).max()) if len(own["mask"]) else 0)
    return {name: tensor if name == "images" else tensor[:, :longest] for name, tensor in own.items()}


def work(rank: int, model: nn.Module) -> dict[str, Found]:
    results = {
        f"{name} {counts}": run(model, name, share(batch(), SHARES[counts], rank))
        for name in OBJECTIVES
        for counts in SHARES
    }
    scores = batch()["images"][:, 0].tanh()
    for per_rank in (False, True):
        codes = sinkhorn(scores.split(SHARES["unequal"])[rank], per_rank=per_rank)
        results[f"codes {per_rank}"] = {"codes": codes}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return on_ranks(Towers, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("counts", list(SHARES))
@pytest.mark.parametrize("name", OBJECTIVES)
def test_four_ranks_equal_one_process(ranks: list[dict[str, Found]], name: str, counts: str) -> None:
    alone = run(Towers(), name, batch())
    assert alone["count"] > 0
    check_as_one_process([rank[f"{name} {counts}"] for rank in ranks], alone, 1e-10, 1e-8, 1e-12)


def test_assignments_are_balanced_over_all_ranks_unless_asked_otherwise(ranks: list[dict[str, Found]]) -> None:
    scores, counts = batch()["images"][:, 0].tanh(), SHARES["unequal"]
    together = torch.cat([rank["codes False"]["codes"] for rank in ranks])
    torch.testing.assert_close(together, sinkhorn(scores), rtol=1e-10, atol=1e-14)
    for rank, own in zip(ranks, scores.split(counts), strict=True):
        torch.testing.assert_close(rank["codes True"]["codes"], sinkhorn(own), rtol=1e-10, atol=1e-14)
