"""Four ranks with DDP give what one process does: local contrast, moments, attributes, self-distillation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from medvlp.objectives.momentum import local_nce, momentum_itc
from medvlp.objectives.redundancy import alignment, orthogonality
from medvlp.objectives.regions import attribute_nce
from medvlp.objectives.self_distillation import balanced_targets, dino, ibot, koleo

RANKS, ROWS, PATCHES = 4, 8, 3
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


def run(model: nn.Module, name: str, data: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value, count = model(name, data)
    value.backward()
    grads = {key.removeprefix("module."): p.grad.clone() for key, p in model.named_parameters()}
    return {"value": value.detach(), "count": count, **grads}


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    model = nn.parallel.DistributedDataParallel(Student())
    results = {
        f"{name}/{split}": run(model, name, {key: tensor.split(rows)[rank] for key, tensor in batch().items()})
        for name in NAMES
        for split, rows in SPLITS.items()
    }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder: Path = tmp_path_factory.mktemp("ranks")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "medvlp.objectives.self_distillation"])
    mp.start_processes(work, args=(str(folder),), nprocs=RANKS, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("split", list(SPLITS))
@pytest.mark.parametrize("name", NAMES)
def test_four_ranks_equal_one_process(ranks: list[dict[str, dict[str, torch.Tensor]]], name: str, split: str) -> None:
    alone = run(Student(), name, batch())
    results = [rank[f"{name}/{split}"] for rank in ranks]
    torch.testing.assert_close(torch.stack([r["value"] for r in results]).mean(), alone["value"], rtol=1e-9, atol=0)
    assert sum(float(r["count"]) for r in results) == float(alone["count"])
    assert alone["linear.weight"].any()
    for key in ("linear.weight", "linear.bias", "log_scale"):
        for result in results:
            torch.testing.assert_close(result[key], alone[key], rtol=1e-8, atol=1e-11)
