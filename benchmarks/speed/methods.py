"""Steps a second and peak memory of pre-training methods at their recipe's scale, CLIP beside open_clip.

A step is forward, backward and optimiser on batches that lie on the device already; the loader has a script of its
own. Towers, objectives and input size are those of `configs/pretrain/NAME.yaml`. CLIP runs beside open_clip's ViT-B-16,
which has the same towers, if `open_clip_torch` is installed; rounds alternate and the median counts. Without a GPU
`--batch 8 --steps 2 --precision fp32` shows that it works; its figures mean nothing there. Writes
`benchmarks/results/methods_speed.json`. With `--cached 32768` one more row: two steps of CLIP at that batch by the
gradient cache, `--part` samples at a time.

    python benchmarks/speed/methods.py [--methods medslip mgca clip] [--batch 256] [--steps 30] [--precision bf16]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medvlp.config.load import load_config
from medvlp.config.train import PretrainConfig
from medvlp.knowledge.books import anatomy_book, finding_book
from medvlp.knowledge.table import ConceptTable
from medvlp.methods import METHODS
from medvlp.methods.base import Method, complete
from medvlp.methods.context import MethodContext
from medvlp.text.tokenizer import Tokenizer
from medvlp.train.grad_cache import GradCache
from medvlp.train.optim import build_optimizer
from medvlp.types import Batch, TextBatch

ROUNDS = 3


def build(name: str, device: torch.device) -> tuple[Method, PretrainConfig]:
    """Return a method at its recipe's scale, untrained."""
    config = load_config(f"configs/pretrain/{name}.yaml", ["data.store=unused", "run.dir=unused"], PretrainConfig)
    words = [note.description for note in finding_book()] + [note.prompt() for note in anatomy_book()]
    concepts = ConceptTable(("a", "b"), np.array([[0], [1]]))
    context = MethodContext.of(Tokenizer.train(words, 2000), ("Finding",), concepts)
    return METHODS.get(name)(config.method, context).to(device).train(), config


def batch_for(method: Method, size: int, device: torch.device) -> Batch:
    """Return random images with random texts of the longest length, and triplets."""
    draw = np.random.default_rng(0)
    config = method.config
    demands = method.demands(complete(config))
    side = config.image.input.size * demands.image_scale
    pixels = torch.from_numpy(draw.integers(0, 256, (size, 1, side, side), dtype=np.uint8))
    batch = Batch(torch.arange(size), pixels, labels=torch.ones(size, len(method.context.label_names)))
    if config.text is not None:
        length = config.text.max_tokens
        ids = torch.from_numpy(draw.integers(5, method.context.vocab_size, (size, length)))
        words = torch.arange(-1, length - 1).repeat(size, 1)
        batch.text = TextBatch(ids, torch.ones_like(ids, dtype=torch.bool), word_ids=words)
    if demands.triplets:
        batch.triplets = torch.from_numpy(draw.integers(-1, 2, (size, 51, 75)).astype(np.int8))
    return batch.to(device)


def step_of(
    module: torch.nn.Module, loss: Callable[[], torch.Tensor], optimizer: Any, bf16: bool
) -> Callable[[], None]:
    """Return one optimiser step."""
    device = next(module.parameters()).device.type

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()

    return step


def measure(step: Callable[[], None], steps: int, device: torch.device) -> dict[str, float]:
    """Return steps a second, and the peak of the device's memory in GiB where it has its own."""
    cuda = device.type == "cuda"
    step()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if cuda:
        torch.cuda.synchronize()
    made = {"steps_per_second": steps / (time.perf_counter() - began)}
    return made | ({"peak_gib": torch.cuda.max_memory_allocated() / 2**30} if cuda else {})


def ours(name: str, size: int, bf16: bool, device: torch.device) -> Callable[[], None]:
    """Return a step of a method of medvlp."""
    method, config = build(name, device)
    batch = batch_for(method, size, device)
    optimizer = build_optimizer(method, config.train.optimizer, method.learning_rate_factors())
    return step_of(method, lambda: torch.stack([v for v, _ in method(batch).values()]).sum(), optimizer, bf16)


def cached_step(size: int, part: int, bf16: bool, device: torch.device) -> Callable[[], None]:
    """Return a step of CLIP on a batch that is larger than memory."""
    method, config = build("clip", device)
    batch = batch_for(method, size, device)
    optimizer = build_optimizer(method, config.train.optimizer, method.learning_rate_factors())
    cache = GradCache(method, part, lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with cache.autocast():
            value = torch.stack([v for v, _ in cache.losses(batch).values()]).sum()
        cache.backward(value)
        optimizer.step()

    return step


def open_clip_step(size: int, bf16: bool, device: torch.device) -> Callable[[], None]:
    """Return a step of open_clip's ViT-B-16 with its own loss."""
    import open_clip
    from open_clip.loss import ClipLoss

    model = open_clip.create_model("ViT-B-16", pretrained=None).to(device).train()
    pixels = torch.randn(size, 3, 224, 224, device=device)
    ids = torch.randint(1, 49000, (size, 77), device=device)
    loss, optimizer = ClipLoss(), torch.optim.AdamW(model.parameters(), lr=1e-5)

    def value() -> torch.Tensor:
        image, text, scale = model(pixels, ids)[:3]
        return loss(image, text, scale)

    return step_of(model, value, optimizer, bf16)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["medslip", "mgca", "clip"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--cached", type=int, help="batch of CLIP by the gradient cache")
    parser.add_argument("--part", type=int, default=512, help="samples at a time of that batch")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/methods_speed.json"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bf16 = given.precision == "bf16"
    made: dict[str, list[dict[str, float]]] = {}
    for _ in range(ROUNDS):
        for name in given.methods:
            made.setdefault(name, []).append(measure(ours(name, given.batch, bf16, device), given.steps, device))
            if name == "clip" and importlib.util.find_spec("open_clip") is not None:
                other = measure(open_clip_step(given.batch, bf16, device), given.steps, device)
                made.setdefault("open_clip ViT-B-16", []).append(other)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or "cpu",
        "batch": given.batch,
        "precision": given.precision,
        "torch": torch.__version__,
        "median": {
            name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in made.items()
        },
    }
    if given.cached:
        step = cached_step(given.cached, given.part, bf16, device)
        result["cached"] = measure(step, 1, device) | {"batch": given.cached, "part": given.part}
        print(json.dumps(result["cached"]))
    given.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["median"], indent=1))


if __name__ == "__main__":
    main()
