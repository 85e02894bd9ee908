"""Four ranks with DDP give the loss and the gradients of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvlp.objectives.contrastive import info_nce, soft_label_ce
from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.scale import clamped_scale
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run

CASES = {
    # name: (objective, images per rank, texts per rank)
    "pairs": ("info_nce", [2, 2, 2, 2], [2, 2, 2, 2]),
    "unequal_pairs": ("info_nce", [3, 1, 2, 2], [3, 1, 2, 2]),
    "soft": ("soft_label", [2, 2, 2, 2], [3, 3, 3, 3]),
    "unequal_texts": ("soft_label", [2, 2, 2, 2], [5, 0, 3, 1]),
    "a_rank_without_images": ("soft_label", [3, 0, 2, 1], [2, 2, 2, 2]),
    "no_texts": ("soft_label", [2, 2, 2, 2], [0, 0, 0, 0]),
}


class Towers(nn.Module):
    """Two linear towers and a learnt scale, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(7, 5).double(), nn.Linear(6, 5).double()
        self.log_scale = nn.Parameter(torch.tensor([1.5], dtype=torch.float64))

    def forward(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        scale = clamped_scale(self.log_scale, 0.0, 4.6052)
        image, text = self.image(data["images"]), self.text(data["texts"])
        if name == "info_nce":
            return info_nce(image, text, scale, 0.75)
        augmented = self.text(data["texts"] + 0.3)
        return soft_label_ce(image, text, data["image_labels"], data["text_labels"], scale, augmented)


def batch(images: int, texts: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": torch.randn(images, 7, dtype=torch.float64, generator=generator),
        "texts": torch.randn(texts, 6, dtype=torch.float64, generator=generator),
        "image_labels": torch.randint(-1, 2, (images, 3), generator=generator).double(),
        "text_labels": torch.randint(-1, 2, (texts, 3), generator=generator).double(),
    }


def share(data: dict[str, torch.Tensor], images: list[int], texts: list[int], rank: int) -> dict[str, torch.Tensor]:
    return {name: tensor.split(images if name.startswith("image") else texts)[rank] for name, tensor in data.items()}


def work(rank: int, model: nn.Module) -> dict[str, Found]:
    results = {}
    for name, (objective, images, texts) in CASES.items():
        data = batch(sum(images), sum(texts))
        results[name] = run(model, objective, share(data, images, texts, rank))
    results["rows"] = {"all": gather_with_gradient(torch.full((rank, 2), float(rank)))}
    return results


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return on_ranks(Towers, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", list(CASES))
def test_four_ranks_equal_one_process(ranks: list[dict[str, Found]], name: str) -> None:
    objective, images, texts = CASES[name]
    alone = run(Towers(), objective, batch(sum(images), sum(texts)))
    assert alone["log_scale"].any() == (name != "no_texts")
    check_as_one_process([rank[name] for rank in ranks], alone, 1e-12, 1e-9, 1e-12)


def test_rows_come_in_rank_order_and_empty_ranks_are_fine(ranks: list[dict[str, Found]]) -> None:
    for rank in ranks:
        assert rank["rows"]["all"][:, 0].tolist() == [1.0, 2.0, 2.0, 3.0, 3.0, 3.0]


def test_gather_is_the_identity_in_one_process() -> None:
    tensor = torch.randn(3, 2)
    assert gather_with_gradient(tensor) is tensor
