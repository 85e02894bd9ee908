"""What a task is: samples of a store, a head fitted on an encoder's features, predictions.

Guarantee: a task computes no score. Labels of test samples never reach `fit`; which samples train a head is a function
of the task, the store, the fraction and the draw, so that all encoders see the same ones.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import numpy as np

from medvlp.errors import UserError
from medvlp.types import Predictions

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import nn

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks._fine_tune import Tunable
    from medvlp.zoo import Encoder

SPLITS = ("train", "val", "test")
ZERO_SHOT = "zero_shot"
FROZEN = "frozen"
"""Protocol that trains what reads the tokens of an encoder, which stays as it is."""
SCORES, SPACE, HEAT_MAPS = "zero-shot scores", "shared space of images and texts", "heat maps"
"""What an encoder with a text side may offer; a task names what its zero-shot protocol needs."""


VOLUMES_AT_ONCE = 16
"""Volumes whose tokens are held at a time: of CT-CLIP's tower 28 MB each."""


class Kept(Protocol):
    """What is kept of the answers to a task; every score is computed from it and nothing else."""

    @property
    def sample_ids(self) -> Sequence[str]:
        """Sample of each row."""

    @property
    def patient_ids(self) -> Sequence[str]:
        """Patient of each row."""

    @property
    def label_names(self) -> Sequence[str]:
        """What is scored one by one, and then as macro mean."""

    def to_frame(self) -> pd.DataFrame:
        """Return the rows as a table."""


@dataclass(frozen=True)
class Samples:
    """Samples of one split. `rows` are positions in the images table; labels are 1, 0 or NaN (left out)."""

    rows: Int[np.ndarray, " n"]
    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    labels: Float[np.ndarray, "n k"]
    subsets: Sequence[Collection[str]] = ()
    """Named subsets of each sample's study, such as train_1; empty where they are not known."""

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Int[np.ndarray, " m"]) -> Samples:
        """Return the samples at these positions, in this order."""
        return replace(
            self,
            rows=self.rows[index],
            sample_ids=[self.sample_ids[i] for i in index],
            patient_ids=[self.patient_ids[i] for i in index],
            labels=self.labels[index],
            subsets=[self.subsets[i] for i in index] if self.subsets else (),
        )

    def predictions(self, scores: Float[np.ndarray, "n k"]) -> Predictions:
        """Join the samples with scores."""
        return Predictions(self.sample_ids, self.patient_ids, self.label_names, self.labels, scores)

    @cached_property
    def sha256(self) -> str:
        """Hash of which samples these are and of their labels."""
        digest = hashlib.sha256("\n".join(self.sample_ids).encode())
        digest.update(np.nan_to_num(self.labels, nan=-2).astype(np.int8).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class Subject:
    """What is judged: features of all images of a store, and the encoder behind them where there is one.

    Args:
        name: Name in tables.
        store: The prepared store.
        load_features: Returns `[n d]`, one row per row of the images table; called when a protocol needs them.
        load_encoder: Returns the encoder; None for features that no encoder made.
        device: Torch device for protocols that train the encoder.
        checkpoints: Folder in which a long training keeps its state, and goes on from it; None keeps nothing.
    """

    name: str
    store: Store
    load_features: Callable[[], Float[np.ndarray, "n d"]]
    load_encoder: Callable[[], Encoder] | None = None
    device: str = "cpu"
    checkpoints: Path | None = None


@dataclass(frozen=True)
class Head:
    """A fitted protocol: predictions for samples, of which only the rows are looked at, and what validation chose.

    `maps` returns the evidence `[b k g w]` of images for each label, larger is more; None where there is none to show.
    """

    predict: Callable[[Samples], Kept]
    best_params: dict[str, Any] = field(default_factory=dict)
    maps: Callable[[Samples], Float[np.ndarray, "b k g w"]] | None = None

    @classmethod
    def of_scores(
        cls,
        score: Callable[[Samples], Float[np.ndarray, "n k"]],
        best_params: dict[str, Any] | None = None,
        maps: Callable[[Samples], Float[np.ndarray, "b k g w"]] | None = None,
    ) -> Head:
        """Return a head that gives each label a probability."""
        return cls(lambda samples: samples.predictions(score(samples)), best_params or {}, maps)


def rows_at_once(encoder: Encoder, images: int) -> int:
    """Return how many rows of a store are encoded together: `images`, or of volumes as many as their tokens allow."""
    return images if encoder.kind == "image" else min(images, VOLUMES_AT_ONCE)


def encoder_of(subject: Subject, protocol: str) -> Encoder:
    """Return the encoder behind a subject.

    Raises:
        UserError: There is none: it is a baseline.
    """
    if subject.load_encoder is None:
        raise UserError(
            f"'{subject.name}' is no encoder.", f"protocol {protocol}", "Use linear_probe, knn or few_shot for it."
        )
    return subject.load_encoder()


class Task(ABC):
    """One kind of task, set up by its configuration."""

    code_version: ClassVar[int]
    """Rises with every change of code that can move a number; part of every cell's hash."""
    scoring: ClassVar[str]
    """Module of `medvlp.metrics` that scores its predictions."""
    protocols: ClassVar[frozenset[str]]
    """Protocols that it can be run by."""
    needs: ClassVar[str]
    """What its zero-shot protocol needs of an encoder: `SCORES`, `SPACE` or `HEAT_MAPS`."""
    asks_where: ClassVar[bool] = False
    """Whether the places of training images, whatever the image, are an answer: the location prior."""

    def __init__(self, config: TaskConfig) -> None:
        self.config = config

    @property
    def rule(self) -> str:
        """Scoring rule of this very task: `scoring`, or one that adds scores to it."""
        return self.scoring

    def for_encoder(self, *names: str) -> Self:
        """Return the task with the settings of an encoder; see `TaskConfig.settings_of`."""
        return type(self)(self.config.settings_of(*names)) if self.config.per_encoder else self

    @property
    def needed(self) -> str:
        """What the zero-shot protocol of this very task needs: `needs`, unless a setting asks for more."""
        return self.needs

    def needed_by(self, protocol: str) -> str:
        """Return what a protocol needs of an encoder beside its features; nothing where these are enough."""
        return self.needed if protocol == ZERO_SHOT else ""

    @abstractmethod
    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the samples of train, val and test.

        Raises:
            UserError: A label is unknown to the store, a split is empty, or no label has both classes in it.
        """

    @abstractmethod
    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return the samples that train a head: a share of all, or `shots` per class where `shots` is above 0."""

    @abstractmethod
    def settings(self, protocol: str) -> dict[str, Any]:
        """Return the settings that decide a protocol's numbers, as JSON types."""

    def network(self, tower: nn.Module, dim: int, taken: ModelInputConfig) -> nn.Module:
        """Return what an encoder is fine-tuned as: its tower, under the name `tower`, and a fresh head.

        Args:
            tower: Module from normalised pixels to `Features`; it is taken as it is, not copied.
            dim: Width of its pooled features.
            taken: Pixels that the encoder takes.

        Raises:
            UserError: Nothing is fine-tuned to a task of this type.
        """
        raise self._no_fine_tuning()

    def rebuilt(self, tower: nn.Module, dim: int, taken: ModelInputConfig, parts: Path) -> nn.Module:
        """Return `network` for weights that were saved, with what `save_parts` wrote.

        Args:
            tower: As for `network`.
            dim: As for `network`.
            taken: Pixels that the network takes.
            parts: Folder that `save_parts` wrote into.
        """
        return self.network(tower, dim, taken)

    def save_parts(self, network: nn.Module, folder: Path) -> None:  # noqa: B027 - most tasks have nothing to write
        """Write what beside weights and configuration decides the answers of a fine-tuned network."""

    def images(self, store: Store, samples: Samples) -> Int[np.ndarray, " m"]:
        """Return the rows of the images table that samples are answered from."""
        return samples.rows

    def tunable(
        self, encoder: Encoder, store: Store, train: Samples, val: Samples, seed: int, num_workers: int = 1
    ) -> Tunable:
        """Return the task's side of a fine-tuning: a fresh network on a copy of the encoder's tower, and its batches.

        Args:
            encoder: Starting point, left as it is.
            store: The prepared store.
            train: Training samples.
            val: Validation samples.
            seed: Seed of order and augmentation; the head is drawn from torch's present generator.
            num_workers: Threads that load.

        Raises:
            UserError: Nothing is fine-tuned to a task of this type.
        """
        raise self._no_fine_tuning()

    def kept(self, tunable: Any, network: nn.Module, samples: Samples) -> Kept:
        """Return what a fine-tuned network answers, as it is kept.

        Args:
            tunable: The side of the fine-tuning that `tunable` gave.
            network: The network, trained.
            samples: What is asked; their labels stand beside the answers.

        Raises:
            UserError: Nothing is fine-tuned to a task of this type.
        """
        raise self._no_fine_tuning()

    def _no_fine_tuning(self) -> UserError:
        return UserError(
            f"A task of type {self.config.type} is not fine-tuned.",
            "task.type",
            "Use classification, segmentation, report_generation or vqa.",
        )

    @abstractmethod
    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Fit a head; hyper-parameters are chosen on `val`."""

    def _trained(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> tuple[Any, Head]:
        """Train what `tunable` gives on the encoder, frozen or not, as the protocol has it.

        Returns:
            The task's side of the training, and the head.

        Raises:
            UserError: The subject is no encoder of what the store holds, or the loss is not finite.
        """
        from medvlp.tasks._fine_tune import fine_tuned, seeded

        encoder = encoder_of(subject, protocol)
        encoder.check_store(subject.store)
        task = self._by(protocol)
        with seeded(seed, str(encoder.device)):
            tunable = task.tunable(encoder, subject.store, train, val, seed)
            tuning, chosen = fine_tuned(tunable, task.config.fine_tune, seed, subject.checkpoints)
        return tunable, Head(lambda samples: self.kept(tunable, tuning.network, samples), chosen)

    def _by(self, protocol: str) -> Self:
        """Return the task with its encoder frozen or not, as a protocol has it."""
        how = self.config.fine_tune.model_copy(update={"freeze_encoder": protocol == FROZEN})
        return type(self)(self.config.model_copy(update={"fine_tune": how}))
