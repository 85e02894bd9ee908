"""Hand-made batches and small towers of volumes for tests of methods."""

from __future__ import annotations

from typing import Any

import torch

from medvlp.config.methods import MethodConfig
from medvlp.data.demands import Demands
from medvlp.methods import METHODS
from medvlp.methods.base import Method, complete
from medvlp.methods.context import MethodContext
from medvlp.text.masking import whole_unit_mask
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch

TEXTS = (
    "Large left effusion. The heart is of normal size.",
    "No effusion. A nodule in the right upper lobe.",
    "The heart is large. No nodule. No effusion.",
    "No effusion.",
)
SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2], "window_size": [2, 2, 2]}
TEXT = {"hidden": 24, "layers": 2, "heads": 2, "vocab_size": 120, "max_tokens": 48, "dropout": 0.0}


def tokenizer() -> Tokenizer:
    return Tokenizer.train(list(TEXTS), 120)


def method_of(config: dict[str, Any]) -> Method:
    torch.manual_seed(0)
    words = tokenizer() if config.get("text", True) is not None else None
    made = complete(MethodConfig.model_validate(config))
    return METHODS.get(made.name)(made, MethodContext.of(words))


def batch_of(method: Method, rows: int = 4, seed: int = 0) -> Batch:
    """Return a batch that holds what the method demands, drawn at random."""
    draw = torch.Generator().manual_seed(seed)

    def voxels(*shape: int) -> torch.Tensor:
        return torch.randint(-1000, 1000, shape, generator=draw, dtype=torch.int16)

    demands: Demands = method.demands(method.config)
    size = demands.region or method.config.image.input.size
    batch = Batch(torch.arange(rows), voxels(rows, 1, *size))
    views = []
    for number, view in enumerate(demands.volume_views):
        views.append(voxels(rows, view.count, 1, *view.size))
        room = torch.tensor(size) - torch.tensor(view.size) + 1
        starts = (torch.rand(rows, view.count, 3, generator=draw) * room.clamp_min(1)).long()
        batch.extra[f"start_{number}"] = starts
        if view.kind == "inside":
            for row, crop in [(r, c) for r in range(rows) for c in range(view.count)]:
                d, h, w = starts[row, crop].tolist()
                own = batch.pixels[row, :, d : d + view.size[0], h : h + view.size[1], w : w + view.size[2]]
                views[-1][row, crop] = own
    batch.views = tuple(views)
    if demands.reports:
        assert method.config.text is not None
        texts = [TEXTS[row % len(TEXTS)] for row in range(rows)]
        batch.text = method.context.tokenise(texts, method.config.text.max_tokens, demands.sentences)
        if demands.hidden_share:
            import numpy as np

            words = batch.text.word_ids.numpy()
            rng = np.random.default_rng(seed)
            masks = [whole_unit_mask(row, rng, demands.hidden_share, ()) for row in words]
            batch.text.hidden = torch.from_numpy(np.stack(masks))
    return batch
