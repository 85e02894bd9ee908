"""Four ranks with DDP give what one process does: local contrast, moments, attributes, self-distillation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medvlp.objectives.momentum import local_nce, momentum_itc
from medvlp.objectives.redundancy import alignment, orthogonality
from medvlp.objectives.regions import attribute_nce
from medvlp.objectives.self_distillation import balanced_targets, dino, ibot, koleo
from tests.objectives.ranks import Found, check_as_one_process, on_ranks, run

ROWS, PATCHES = 8, 3
NAMES = ("local", "itc", "alignment", "orthogonality", "attributes", "dino", "ibot", "koleo")
SPLITS = {"even": [2, 2, 2, 2], "uneven": [3, 1, 2, 2], "with_an_empty_rank": [4, 0, 3, 1]}


class Student(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, 5).double()
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, name: str, data: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        out, scale, teacher = self.linear(data["inputs"]), self.log_scale.exp(), data["teacher"]
        held = 0.0 * scale
        if name == "local":
            return local_nce(out, data["local"], scale, data["mask"])
        if name == "itc":
            queue = torch.linspace(-1, 1, 35, dtype=torch.float64).reshape(7, 5)
            return momentum_itc(out, out.flip(1), teacher, teacher.flip(1), queue, queue.flip(0), scale, 0.4)
        if name == "alignment":
            value, count = alignment(out, teacher)
        elif name == "orthogonality":
            value, count = orthogonality(out)
        elif name == "attributes":
            value, count = attribute_nce(out, data["labels"] == 1, data["labels"] == 0, 0.5)
        elif name == "koleo":
            value, count = koleo(out)
        elif name == "dino":
            targets = balanced_targets(teacher, 0.5)
            value, count = dino(torch.stack([out, out.flip(1), 2 * out]), torch.stack([targets, targets.flip(1)]))
        else:
            tokens = self.linear(data["patches"][data["mask"]])
            value, count = ibot(tokens, balanced_targets(data["local"][data["mask"]], 0.5), data["mask"])
        return value + held, count


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    return {
        "inputs": randn(ROWS, 6),
        "teacher": randn(ROWS, 5),
        "local": randn(ROWS, PATCHES, 5),
        "patches": randn(ROWS, PATCHES, 6),
        "mask": torch.rand(ROWS, PATCHES, generator=generator) < 0.6,
        "labels": torch.randint(-1, 2, (ROWS, 5), generator=generator),
    }


def work(rank: int, model: nn.Module) -> dict[str, Found]:
    return {
        f"{name}/{split}": run(model, name, {key: tensor.split(rows)[rank] for key, tensor in batch().items()})
        for name in NAMES
        for split, rows in SPLITS.items()
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    return on_ranks(Student, work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_equal_one_process(ranks: list[dict[str, Found]], name: str, split: str) -> None:
    alone = run(Student(), name, batch())
    assert alone["linear.weight"].any()
    check_as_one_process([rank[f"{name}/{split}"] for rank in ranks], alone, 1e-9, 1e-8, 1e-11)
