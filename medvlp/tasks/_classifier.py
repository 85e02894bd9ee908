"""The network that a classification is fine-tuned as: an encoder's tower and a linear head on its pooled features.

Guarantee: whatever the head, there is one logit per label; of two exclusive classes it is the difference of both, whose
binary cross-entropy is the cross-entropy of the two and whose sign is their argmax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from sklearn.metrics import f1_score, roc_auc_score
from torch import nn

from medvlp.data.inputs import InputLoader
from medvlp.data.transforms import normalise
from medvlp.data.volume_augment import on_device
from medvlp.tasks._fine_tune import DivergedError, Term, Tunable, check_sides
from medvlp.tasks.base import Samples

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.config.classification import ClassificationConfig
    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store
    from medvlp.types import Batch
    from medvlp.zoo import Encoder


INITIAL_DEVIATION = 2e-5
F1_DECIMALS = 4
"""Of the F1 that chooses: BenchX rounds to 0.01 %, and of equal ones the first is kept."""


class Classifier(nn.Module):
    """An image tower and a linear head.

    Args:
        tower: Module from normalised pixels to `Features`.
        dim: Width of its pooled features.
        labels: Number of questions.
        config: Form and beginning of the head.
        frozen: The tower has no gradient and stays in evaluation mode.
    """

    def __init__(
        self, tower: nn.Module, dim: int, labels: int, config: ClassificationConfig, frozen: bool = False
    ) -> None:
        super().__init__()
        self.frozen, self.exclusive = frozen, config.classes == "exclusive"
        self.tower = tower.requires_grad_(not frozen)
        self.norm = nn.LayerNorm(dim, eps=1e-6) if config.norm else nn.Identity()
        self.head = nn.Linear(dim, 2 if self.exclusive else labels)
        if config.init == "truncated_normal":
            nn.init.trunc_normal_(self.head.weight, std=INITIAL_DEVIATION)

    def forward(self, pixels: Float[torch.Tensor, "b c h w"]) -> Float[torch.Tensor, "b k"]:
        """Return the logit of every question."""
        pooled = self.tower(pixels).pooled
        with torch.autocast(pooled.device.type, enabled=False):
            logits = self.head(self.norm(pooled.float()))
            return logits[:, 1:] - logits[:, :1] if self.exclusive else logits

    def train(self, mode: bool = True) -> Classifier:
        """Switch to training mode; a frozen tower stays in evaluation mode."""
        super().train(mode)
        self.tower.train(mode and not self.frozen)
        return self


class ClassifierTuning(Tunable):
    """Fine-tuning of a copy of an encoder with a fresh head, by binary cross-entropy on known labels.

    Args:
        network: Classifier on a copy of the encoder's tower.
        encoder: Where it comes from.
        store: The prepared store.
        train: Training samples.
        val: Validation samples.
        task: Head, batch size, input, augmentation.
        seed: Seed of order and augmentation.
        num_workers: Threads of the loaders.
    """

    criterion: ClassVar[str] = "auroc"

    def __init__(
        self,
        network: Classifier,
        encoder: Encoder,
        store: Store,
        train: Samples,
        val: Samples,
        task: TaskConfig,
        seed: int,
        num_workers: int = 1,
    ) -> None:
        self.network, self.name, self.store, self.val = network, encoder.name, store, val
        self.device = encoder.device
        config = task.fine_tune
        self.batch_size, self.num_workers = config.batch_size, num_workers
        self.input = model_input(task, encoder.preprocessing.input)
        check_sides(task)
        self.loader = InputLoader(
            store,
            train.rows,
            batch_size=config.batch_size,
            taken=self.input,
            seed=seed,
            augment=config.augment,
            keep_last=config.last_batch == "keep",
            num_workers=num_workers,
        )
        self._labels = _labels_by_row(train)

    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return the binary cross-entropy averaged over known labels, and their number."""
        labels = self._labels[batch.index].to(self.device)
        logits = network(normalise(on_device(batch, self.device).pixels, self.input))
        return {"bce": (masked_bce(logits, labels), (~labels.isnan()).sum())}

    def validate(self, network: nn.Module) -> float:
        """Return the score on validation."""
        scores = self.logits(network, self.val)
        if not np.isfinite(scores).all():
            raise DivergedError(
                "The network gives numbers that are not finite on the validation images.",
                self.name,
                "Check the weights of the encoder, lower the learning rate, or use precision fp32.",
            )
        return self.score(self.val.labels, scores)

    def score(self, labels: Float[np.ndarray, "n k"], logits: Float[np.ndarray, "n k"]) -> float:
        """Return the macro AUROC over the labels of which validation has both classes."""
        return macro_auroc(labels, logits)

    def logits(self, network: nn.Module, samples: Samples) -> Float[np.ndarray, "n k"]:
        """Return logits by the encoder's own preprocessing, without augmentation."""
        loader = InputLoader(
            self.store,
            samples.rows,
            batch_size=self.batch_size,
            taken=self.input,
            seed=0,
            augment=None,
            num_workers=self.num_workers,
        )
        return np.concatenate([logits_of(network, batch.pixels, self.input, self.device) for batch in loader.epoch(0)])


class F1ClassifierTuning(ClassifierTuning):
    """As its base, judged as BenchX judges two classes: by the F1 of the label where its logit is the larger one."""

    criterion: ClassVar[str] = "f1"

    def score(self, labels: Float[np.ndarray, "n k"], logits: Float[np.ndarray, "n k"]) -> float:
        """Return the F1 of the one label, rounded; 0 where it is never called."""
        known = ~np.isnan(labels[:, 0])
        return round(float(f1_score(labels[known, 0] == 1, logits[known, 0] > 0, zero_division=0)), F1_DECIMALS)


def model_input(task: TaskConfig, given: ModelInputConfig) -> ModelInputConfig:
    """Return what a classifier takes: the encoder's own input with the side, mean and deviation that the task sets."""
    changes: dict[str, Any] = {"size": task.fine_tune.input_size or given.size}
    config = task.classification
    if config.mean is not None and config.std is not None:
        changes |= {"mean": (config.mean,), "std": (config.std,)}
    return given.model_copy(update=changes)


@torch.inference_mode()
def logits_of(
    network: nn.Module, pixels: Int[torch.Tensor, "b k s s"], config: ModelInputConfig, device: torch.device
) -> Float[np.ndarray, "b k"]:
    """Return the logits of stored squares, resized already, in double precision."""
    network.eval()
    return network(normalise(pixels.to(device), config)).double().cpu().numpy()


def masked_bce(logits: Float[torch.Tensor, "b k"], labels: Float[torch.Tensor, "b k"]) -> Float[torch.Tensor, ""]:
    """Return the binary cross-entropy averaged over known labels; 0 where none is known."""
    known = ~torch.isnan(labels)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(0.0), reduction="none")
    return torch.where(known, losses, 0.0).sum() / known.sum().clamp(min=1)


def macro_auroc(labels: Float[np.ndarray, "n k"], scores: Float[np.ndarray, "n k"]) -> float:
    """Return the mean AUROC over the labels with both classes; NaN where there is none."""
    values = []
    for column, score in zip(labels.T, scores.T, strict=True):
        known = ~np.isnan(column)
        if len(np.unique(column[known])) == 2:
            values.append(roc_auc_score(column[known], score[known]))
    return float(np.mean(values)) if values else float("nan")


def _labels_by_row(samples: Samples) -> Float[torch.Tensor, "r k"]:
    """Return a table from position in the images table to labels."""
    table = torch.full((int(samples.rows.max()) + 1, samples.labels.shape[1]), float("nan"))
    table[torch.from_numpy(samples.rows)] = torch.from_numpy(samples.labels).float()
    return table
