"""End-to-end training of an image tower with a linear head.

Guarantee: deterministic on the CPU given the seed; order and augmentation are functions of (seed, epoch, sample);
unknown labels add nothing to the loss; the epoch with the highest macro AUROC on the validation samples is kept (the
first of equal ones; of the averaged copy where `ema` is set), the given encoder is never changed.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from medvlp.data.loader import ImageLoader
from medvlp.data.transforms import normalise
from medvlp.models.average import Average
from medvlp.progress import progress_bar
from medvlp.tasks.base import Head, Samples

if TYPE_CHECKING:
    from jaxtyping import Float

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.config.task import FineTuneConfig
    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

logger = logging.getLogger(__name__)

CLIP_NORM = 1.0


class _Classifier(nn.Module):
    """An image tower and a linear head on its pooled features."""

    def __init__(self, tower: nn.Module, dim: int, labels: int) -> None:
        super().__init__()
        self.tower = tower
        self.head = nn.Linear(dim, labels)

    def forward(self, pixels: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b k"]:
        return self.head(self.tower(pixels).pooled.float())


def masked_bce(logits: Float[torch.Tensor, "b k"], labels: Float[torch.Tensor, "b k"]) -> Float[torch.Tensor, ""]:
    """Return the binary cross-entropy averaged over known labels; 0 where none is known."""
    known = ~torch.isnan(labels)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def _rate(step: int, warmup: int, total: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _macro_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    values = []
    for column, score in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) == 2:
            values.append(roc_auc_score(column[known], score[known]))
    return float(np.mean(values))


def _score(
    model: _Classifier, store: Store, samples: Samples, config: ModelInputConfig, batch_size: int, device: str
) -> np.ndarray:
    """Return probabilities `[n k]` by the encoder's own preprocessing, without augmentation."""
    model.eval()
    loader = ImageLoader(
        store, samples.rows, batch_size=batch_size, input_size=config.size, seed=0, augment=None, num_workers=1
    )
    with torch.inference_mode():
        parts = [torch.sigmoid(model(normalise(b.pixels.to(device), config)).double()).cpu() for b in loader.epoch(0)]
    return torch.cat(parts).numpy()


def fine_tune(
    encoder: Encoder, store: Store, train: Samples, val: Samples, config: FineTuneConfig, seed: int, device: str
) -> Head:
    """Train encoder and head on the training samples, keep the best epoch.

    AdamW, linear warm-up then cosine by step, gradients clipped to norm 1. Head initialisation and dropout come from
    the seed; torch's global generators are left as they were.

    Args:
        encoder: Starting point; its image tower is copied.
        store: The prepared store.
        train: Training samples.
        val: Validation samples.
        config: Epochs, batch size, rates, averaging, input size, augmentation.
        seed: Seed of order, augmentation, head and dropout.
        device: Torch device.
    """
    fork_devices = [torch.device(device)] if device.startswith("cuda") else []
    size = config.input_size or encoder.preprocessing.input.size
    input_config = encoder.preprocessing.input.model_copy(update={"size": size})
    with torch.random.fork_rng(devices=fork_devices):
        torch.manual_seed(seed)
        model = _Classifier(copy.deepcopy(encoder.image_tower), encoder.dim, train.labels.shape[1]).to(device)
        model.requires_grad_(True)
        average = None if config.ema is None else Average(model, config.ema)
        kept = model if average is None else copy.deepcopy(model)
        optimizer = torch.optim.AdamW(
            [
                {"params": list(model.tower.parameters()), "lr": config.lr * config.encoder_lr_ratio},
                {"params": list(model.head.parameters()), "lr": config.lr},
            ],
            weight_decay=config.weight_decay,
        )
        loader = ImageLoader(
            store,
            train.rows,
            batch_size=config.batch_size,
            input_size=input_config.size,
            seed=seed,
            augment=config.augment,
            num_workers=1,
        )
        total = loader.steps_per_epoch * config.epochs
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, config.warmup_steps, total))
        labels = _labels_by_row(train)
        best_value, best_epoch, best_state = -math.inf, 0, copy.deepcopy(kept.state_dict())
        history: list[dict[str, Any]] = []
        step = 0
        with progress_bar(f"fine-tune {encoder.name}", total, "steps") as advance:
            for epoch in range(config.epochs):
                model.train()
                losses = []
                for batch in loader.epoch(epoch):
                    optimizer.zero_grad(set_to_none=True)
                    logits = model(normalise(batch.pixels.to(device), input_config))
                    loss = masked_bce(logits, labels[batch.index].to(device))
                    loss.backward()
                    nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
                    optimizer.step()
                    schedule.step()
                    if average is not None:
                        average.update(model, step)
                    step += 1
                    losses.append(float(loss.detach()))
                    advance(1, loss=losses[-1])
                if average is not None:
                    kept.load_state_dict(model.state_dict() | average.tensors)
                value = _macro_auroc(val.labels, _score(kept, store, val, input_config, config.batch_size, device))
                history.append({"epoch": epoch, "loss": float(np.mean(losses)), "val_auroc": value})
                logger.info("fine-tune epoch %d: loss %.4f, val AUROC %.4f", epoch, history[-1]["loss"], value)
                if value > best_value:
                    best_value, best_epoch, best_state = value, epoch, copy.deepcopy(kept.state_dict())
        kept.load_state_dict(best_state)

    def score(samples: Samples) -> np.ndarray:
        return _score(kept, store, samples, input_config, config.batch_size, device)

    return Head.of_scores(score, {"epoch": best_epoch, "val_auroc": best_value, "history": history})


def _labels_by_row(samples: Samples) -> Float[torch.Tensor, "r k"]:
    """Return a table from position in the images table to labels."""
    table = torch.full((int(samples.rows.max()) + 1, samples.labels.shape[1]), float("nan"))
    table[torch.from_numpy(samples.rows)] = torch.from_numpy(samples.labels).float()
    return table
