"""Four ranks with DDP give what one process does: sigmoids, several positives, groups, concepts, prefixes, organs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvlp.objectives.concept_alignment import region_concept_alignment
from medvlp.objectives.contrastive import multi_positive_nce, shared_text_nce, sigmoid_pairs
from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank
from medvlp.objectives.group_metric import group_metric
from medvlp.objectives.matryoshka import over_prefixes
from medvlp.objectives.organ_contrast import organ_contrast
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run

ROWS, SIZE = 8, 2
NAMES = (
    "sigmoid",
    "book",
    "gathered",
    "groups",
    "hardest_groups",
    "concepts",
    "prefixes",
    "shared",
    "several",
    "organs",
)
SPLITS = {"even": [2, 2, 2, 2], "uneven": [4, 0, 2, 2]}
RELATED = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1]]).bool()


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 5).double(), nn.Linear(7, 5).double()
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))
        self.bias = nn.Parameter(torch.tensor(-2.0, dtype=torch.float64))

    def forward(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        image, text, scale = self.image(data["images"]), self.text(data["texts"]), self.log_scale.exp()
        unused = sum(0.0 * tensor.sum() for tensor in (image, text, scale, self.bias))
        value, count = getattr(self, f"_{name}")(data, image, text, scale)
        return value + unused, count

    def _sigmoid(self, data, image, text, scale):
        return sigmoid_pairs(functional.normalize(image, dim=1), functional.normalize(text, dim=1), scale, self.bias)

    def _book(self, data, image, text, scale):
        book = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(3, 5)
        return multi_positive_nce(image, book, data["positives"][:, :3], scale)

    def _gathered(self, data, image, text, scale):
        return multi_positive_nce(image, gather_with_gradient(text), data["positives"], scale)

    def _groups(self, data, image, text, scale, variant="lhp-hn"):
        groups = len(image) // SIZE
        first = sum(row[0] for row in gather_counts([groups], image.device)[: rank()])
        return group_metric(image, text, RELATED[first : first + groups], scale, variant)

    def _hardest_groups(self, data, image, text, scale):
        return self._groups(data, image, text, scale, "hp-lhn")

    def _concepts(self, data, image, text, scale):
        tokens = self.text(data["tokens"])
        return region_concept_alignment(self.image(data["patches"]), tokens, data["spans"], scale, self.bias)

    def _prefixes(self, data, image, text, scale):
        return over_prefixes(lambda *sides: sigmoid_pairs(*sides, scale, self.bias), (image, text), [2, 5], [1.0, 0.5])

    def _shared(self, data, image, text, scale):
        return shared_text_nce(image, text, data["wordings"], scale)

    def _several(self, data, image, text, scale):
        texts, numbers = self.text(data["tokens"][:, :2]).flatten(0, 1), data["several"].flatten()
        return shared_text_nce(image, texts, numbers, scale)

    def _organs(self, data, image, text, scale):
        sides = self.image(data["patches"]), self.text(data["tokens"][:, :3])
        flags = data["organs"]
        return organ_contrast(*sides, flags[..., 0] > 0, flags[..., 1] > 0, flags[..., 2] > 0, flags[..., 3], scale)


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    spans = torch.tensor([[[1, 3], [2, 4]], [[-1, -1], [-1, -1]], [[0, 1], [-1, -1]], [[1, 2], [-1, -1]]]).repeat(
        2, 1, 1
    )
    return {
        "images": randn(ROWS, 6),
        "texts": randn(ROWS, 7),
        "patches": randn(ROWS, 3, 6),
        "tokens": randn(ROWS, 4, 7),
        "spans": spans,
        "positives": torch.rand(ROWS, ROWS, generator=generator) < 0.3,
        "wordings": torch.tensor([1, 2, 1, 3, 2, 4, 1, 5]),
        "several": torch.tensor([[1, 2], [2, 3], [4, 4], [5, 1], [6, 7], [7, 3], [8, 1], [9, 9]]),
        "organs": torch.randint(0, 2, (ROWS, 3, 4), generator=generator) * torch.tensor([1, 1, 1, 3])
        + torch.arange(ROWS)[:, None, None] % 4 * torch.tensor([0, 0, 0, 1]),
    }


def work(number: int, model: nn.Module) -> dict[str, Found]:
    return {
        f"{name}/{split}": run(model, name, {key: tensor.split(rows)[number] for key, tensor in batch().items()})
        for name in NAMES
        for split, rows in SPLITS.items()
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return on_ranks(Towers, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_equal_one_process(ranks: list[dict[str, Found]], name: str, split: str) -> None:
    alone = run(Towers(), name, batch())
    assert alone["image.weight"].any()
    check_as_one_process([rank[f"{name}/{split}"] for rank in ranks], alone, 1e-9, 1e-8, 1e-11)
