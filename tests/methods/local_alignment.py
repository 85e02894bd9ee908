"""Small methods and batches for the tests of local alignment."""

from __future__ import annotations

from typing import Any

import torch

from medvlp.config.methods import MethodConfig
from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.types import Batch, TextBatch, TextFeatures

SIZE, VOCABULARY = 64, 40
RESNET: dict[str, Any] = {
    "name": "resnet10t",
    "args": {"channels": [8, 8, 16, 16], "stem_width": 8, "zero_init_last": False},
    "input": {"size": SIZE, "mean": [0.4], "std": [0.2]},
}
VIT: dict[str, Any] = {
    "name": "vit_tiny_patch16_224",
    "args": {"embed_dim": 16, "depth": 2, "num_heads": 2},
    "input": {"size": SIZE, "mean": [0.4], "std": [0.2]},
}
TEXT = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 64, "max_tokens": 12, "dropout": 0.0}
IDS = torch.tensor([[2, 7, 8, 9, 10, 3], [2, 11, 3, 0, 0, 0], [2, 12, 13, 14, 3, 0], [2, 9, 15, 3, 0, 0]])
WORD_IDS = torch.tensor([[-1, 0, 1, 1, 2, -1], [-1, 0, -1, -1, -1, -1], [-1, 0, 0, 1, -1, -1], [-1, 0, 1, -1, -1, -1]])


def method(name: str, image: dict[str, Any], *, text: dict[str, Any] | None = None, **fields: Any) -> Method:
    torch.manual_seed(0)
    given = {"name": name, "image": image, "text": {**TEXT, **(text or {})}, "projection": {"dim": 8}, **fields}
    return METHODS.get(name)(MethodConfig.model_validate(given), MethodContext(VOCABULARY, 0))


def texts(rows: int = 4, pads: int = 0) -> TextBatch:
    ids = torch.nn.functional.pad(IDS[:rows], (0, pads))
    words = torch.nn.functional.pad(WORD_IDS[:rows], (0, pads), value=-1)
    return TextBatch(ids, ids != 0, word_ids=words)


def batch(rows: int = 4, pads: int = 0, views: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(1)
    study = torch.randint(0, 256, (rows, max(1, views), 1, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    given = Batch(torch.arange(rows), study[:, 0], text=texts(rows, pads))
    given.study = study if views else None
    return given


def encode(model: Method) -> Any:
    """Prompts "0", "1", ... are the rows of `texts`, counted from the end for their opposites "no 0", "no 1", ..."""

    def prompts(rows: Any) -> TextFeatures:
        chosen = torch.tensor([-1 - int(row[3:]) if row.startswith("no ") else int(row) for row in rows])
        given = texts()
        return model.encode_text(TextBatch(given.ids[chosen], given.mask[chosen], word_ids=given.word_ids[chosen]))

    return prompts


def train_one_step(model: Method, given: Batch) -> None:
    model.train()
    sum(value for value, _ in model(given).values()).backward()


def without_gradient(model: Method) -> list[str]:
    """Names of trainable parameters that got none, or only zeros."""
    return [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
