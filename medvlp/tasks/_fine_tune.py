"""Fine-tuning of a network on an encoder's tower, whatever the task.

Guarantee: what a step does is a function of configuration, samples and step: order and augmentation are counted from
(seed, epoch, sample), dropout from (seed, step). So on the CPU a fine-tuning that was stopped at any moment and goes on
from its checkpoint ends with the same bits. The state with the highest score on the validation samples is kept (the
first of equal ones; of the averaged copy where `ema` is set). The given encoder is never changed. A value that is not
finite ends it before anything is kept.
"""

from __future__ import annotations

import copy
import logging
import math
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn

from medvlp.data.counter import MODEL, hash_key
from medvlp.errors import UserError
from medvlp.models.average import Average
from medvlp.progress import progress_bar
from medvlp.text.sides import mirrored_order
from medvlp.track.window import GRADIENT, NotFiniteError, Window
from medvlp.train.checkpoint import Checkpoint, load_newest, save_checkpoint
from medvlp.train.optim import load_optimizer_tensors, optimizer_tensors

if TYPE_CHECKING:
    from medvlp.config.task import FineTuneConfig, PlateauConfig, TaskConfig
    from medvlp.data.loader import Loader
    from medvlp.types import Batch

logger = logging.getLogger(__name__)

EVERY, LEAST_SECONDS = 20, 300.0
"""Steps after which `fine_tuned` looks at the clock, and time between two of its checkpoints."""
Term = tuple[torch.Tensor, torch.Tensor]
"""Value and count of a loss term."""
OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw": (torch.optim.AdamW, {}),
    "adam": (torch.optim.Adam, {}),
    "adam_amsgrad": (torch.optim.Adam, {"amsgrad": True}),
    "sgd": (torch.optim.SGD, {"momentum": 0.9}),
}


class DivergedError(UserError):
    """A fine-tuning that came to numbers that are not finite."""


class Tunable(ABC):
    """What of a fine-tuning belongs to the task: network, training batches, loss, score on validation.

    Attributes:
        network: The encoder's tower under the name `tower`; everything else in it is the head.
        loader: Training batches.
        name: Of the encoder, for the progress bar.
    """

    criterion: ClassVar[str]
    """Name of the score on validation; higher is better."""
    network: nn.Module
    loader: Loader
    name: str

    @abstractmethod
    def terms(self, network: nn.Module, batch: Batch) -> dict[str, Term]:
        """Return value and count of each loss term of a training batch."""

    @abstractmethod
    def validate(self, network: nn.Module) -> float:
        """Return the score on the validation samples."""


@dataclass(frozen=True)
class Keeping:
    """How the state of a fine-tuning is kept so that it can go on, and who hears of its curve.

    Args:
        folder: Folder of checkpoints.
        every: Steps between two checkpoints; one is also written after each validation.
        log_every: Steps between two points of the curve.
        state: Plain JSON values that every checkpoint holds.
        log: Called with metrics and the number of steps done.
        asked: Set to stop after the present step.
        least_seconds: Time between two checkpoints, and before the first; a stop does not wait for it.
    """

    folder: Path
    every: int
    log_every: int
    state: dict[str, Any]
    log: Callable[[dict[str, float], int], None]
    asked: threading.Event
    least_seconds: float = 0.0


def check_finite(values: torch.Tensor, where: str) -> None:
    """Raise `UserError` where what a network gives is not finite.

    Args:
        values: Its output.
        where: What is named.
    """
    if not bool(torch.isfinite(values).all()):
        raise UserError(
            "The network gives numbers that are not finite.",
            where,
            "Check the weights of the encoder, lower the learning rate, or use precision fp32.",
        )


def check_sides(task: TaskConfig) -> None:
    """Raise `UserError` where images are mirrored and a label names a side: they then show the other one."""
    if not task.fine_tune.augment.mirrors:
        return
    names = (name for label in task.labels for name in (label.name, label.positive, *label.regions))
    sided = next((name for name in names if mirrored_order([name]) == [None]), None)
    if sided is not None:
        raise UserError(
            f"augment.flip swaps the sides of an image, and the label '{sided}' names one.",
            f"task {task.name}",
            "Leave augment.flip out.",
        )


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Draw from a generator of this seed; torch's global generators are left as they were."""
    devices = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class FineTuning:
    """Adam or SGD by the configuration, a linear warm-up, then a cosine, a line, or by validation; gradients clipped.

    Args:
        tunable: What is trained.
        config: Length, rates, averaging.
        seed: Seed of dropout.
        keeping: Checkpoints and curve; None keeps nothing.
        checkpoint: State to go on from.
    """

    def __init__(
        self,
        tunable: Tunable,
        config: FineTuneConfig,
        seed: int,
        keeping: Keeping | None = None,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self.tunable, self.config, self.seed, self.keeping = tunable, config, seed, keeping
        self.network = tunable.network
        self.device = next(self.network.parameters()).device
        self.per_epoch = tunable.loader.steps_per_epoch
        self.total = config.steps or config.epochs * self.per_epoch
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, torch.Tensor] = {}
        self._epoch_loss = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._window = Window()
        self._saved_at = time.monotonic()
        if checkpoint is not None:
            self.network.load_state_dict(checkpoint.tensors["model"], strict=True)
        kind, options = OPTIMIZERS[config.optimizer]
        self.optimizer = kind(self._groups(), lr=config.lr, weight_decay=config.weight_decay, **options)
        self.average = None if config.ema is None else Average(self.network, config.ema)
        self.judged = self.network if self.average is None else copy.deepcopy(self.network)
        if checkpoint is not None:
            self._resume(checkpoint)

    def _groups(self) -> list[dict[str, Any]]:
        tower = {id(parameter) for parameter in self.network.get_submodule("tower").parameters()}
        trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        of_tower = [parameter for parameter in trained if id(parameter) in tower]
        head = [parameter for parameter in trained if id(parameter) not in tower]
        groups = [{"params": of_tower, "lr_factor": self.config.encoder_lr_ratio}, {"params": head, "lr_factor": 1.0}]
        return [group for group in groups if group["params"]]

    def _resume(self, checkpoint: Checkpoint) -> None:
        tensors, state = checkpoint.tensors, checkpoint.state
        load_optimizer_tensors(self.optimizer, self.network, tensors["optimizer"])
        if self.average is not None:
            self.average.tensors = {name: value.to(self.device) for name, value in tensors["average"].items()}
        self.best, self.step, self.history = tensors.get("best", {}), checkpoint.step, state["history"]
        self._epoch_loss += torch.tensor(state["epoch_loss"], dtype=torch.float64, device=self.device)

    @property
    def best_epoch(self) -> int:
        """Place in `history` of the state that is kept."""
        values = [entry[f"val_{self.tunable.criterion}"] for entry in self.history]
        return values.index(max(values))

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or `patience` validations brought nothing better."""
        patience = self.config.patience
        tired = bool(patience and self.history) and len(self.history) - 1 - self.best_epoch >= (patience or 0)
        return self.step >= self.total or tired

    def run(self) -> dict[str, Any]:
        """Train what is left, put the best state into `network`, and return what validation chose.

        Raises:
            UserError: A value is not finite, or a checkpoint cannot be written.
            KeyboardInterrupt: The stop that was asked for, when the checkpoint is written.
        """
        with progress_bar(f"fine-tune {self.tunable.name}", self.total - self.step, "steps") as advance:
            batches = self.tunable.loader.stream(self.step)
            began, first = time.perf_counter(), self.step
            shown: dict[str, float] = {}
            self.network.train()
            try:
                while not self.finished:
                    self._one_step(next(batches))
                    self.step += 1
                    advance(1, **shown)
                    stop = self.keeping is not None and self.keeping.asked.is_set()
                    seconds = time.perf_counter() - began
                    metrics = self._after_step((self.step - first) / seconds * self.tunable.loader.batch_size, stop)
                    if metrics is not None:
                        shown = {"loss": metrics["train/loss"]}
                        began, first = time.perf_counter(), self.step
                    if stop and not self.finished:
                        raise KeyboardInterrupt
            finally:
                batches.close()  # type: ignore[attr-defined]
        self.network.load_state_dict(self.best)
        best = self.history[self.best_epoch]
        return {name: best[name] for name in best if name != "loss"} | {"history": self.history}

    def _rate(self, step: int) -> float:
        config = self.config
        if config.schedule == "legacy_cosine":
            assert config.legacy_total is not None
            return legacy_rate(step, config.warmup_steps, config.legacy_total)
        if config.schedule != "plateau":
            return rate(step, config.warmup_steps, self.total, config.schedule)
        warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
        return warmup * plateau_factor(
            [entry[f"val_{self.tunable.criterion}"] for entry in self.history], config.plateau
        )

    def _one_step(self, batch: Batch) -> None:
        config = self.config
        torch.manual_seed(int(hash_key(MODEL, 2, self.seed, self.step)[0]))
        rate = config.lr * self._rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            terms = self.tunable.terms(self.network, batch)
            loss = torch.stack([value for value, _ in terms.values()]).sum()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm or math.inf)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.network, self.step)
        self._window.add({**terms, GRADIENT: (norm, torch.ones_like(norm))}, self.step + 1)
        self._epoch_loss += torch.stack([loss.detach().double(), torch.ones((), dtype=torch.float64).to(loss.device)])

    def _judged_after(self, step: int) -> bool:
        """Return whether validation follows a step; by epochs the last step needs it only if there was none before."""
        every, last = self.config.validate_epochs, step == self.total
        if every is None:
            return last or step % (self.config.validate_every or self.per_epoch) == 0
        epoch, rest = divmod(step, self.per_epoch)
        beyond = epoch - (self.config.first_validation or every)
        return (rest == 0 and beyond >= 0 and beyond % every == 0) or (last and not self.history)

    def _after_step(self, speed: float, stop: bool) -> dict[str, float] | None:
        """Validate, log and save where it is time to; return the metrics where there are any."""
        keeping, step = self.keeping, self.step
        judge = self._judged_after(step)
        save = keeping is not None and (stop or ((judge or step % keeping.every == 0) and self._is_time(keeping)))
        if not (judge or save or (keeping is not None and step % keeping.log_every == 0)):
            return None
        try:
            metrics = {f"train/{name}": value for name, value in self._window.close(step).items()}
        except NotFiniteError as error:
            fix = "Lower lr, or use precision fp32, then run again: the last good checkpoint is kept."
            raise DivergedError(error.what, f"fine-tuning of {self.tunable.name}", fix) from error
        metrics |= {
            "train/lr": self.config.lr * self._rate(step - 1),
            "train/epoch": step / self.per_epoch,
            "train/samples_per_second": speed,
        }
        if judge:
            metrics[f"val/{self.tunable.criterion}"] = self._judge()
        if keeping is not None:
            keeping.log(metrics, step)
            if save:
                self._save(keeping)
        return metrics

    def _is_time(self, keeping: Keeping) -> bool:
        return time.monotonic() - self._saved_at >= keeping.least_seconds

    def _judge(self) -> float:
        """Score the network, or its average, on validation; keep it where it is better than all before."""
        if self.average is not None:
            self.judged.load_state_dict(self.network.state_dict() | self.average.tensors)
        value, criterion = self.tunable.validate(self.judged), f"val_{self.tunable.criterion}"
        if math.isnan(value):
            raise UserError(
                f"The {self.tunable.criterion} on validation has no value.",
                f"fine-tuning of {self.tunable.name}",
                "Give validation samples of both classes.",
            )
        self.network.train()
        total, steps = self._epoch_loss.tolist()
        self._epoch_loss.zero_()
        epoch = (self.step - 1) // self.per_epoch
        self.history.append({"epoch": epoch, "step": self.step, "loss": total / steps, criterion: value})
        logger.info("fine-tune epoch %d: loss %.4f, val %s %.4f", epoch, total / steps, self.tunable.criterion, value)
        if self.best_epoch == len(self.history) - 1:
            self.best = _to_cpu(self.judged.state_dict())
        return value

    def _save(self, keeping: Keeping) -> None:
        tensors = {
            "model": self.network.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.network),
        }
        if self.best:
            tensors["best"] = self.best
        if self.average is not None:
            tensors["average"] = self.average.tensors
        state = {"history": self.history, "epoch_loss": self._epoch_loss.tolist()} | keeping.state
        save_checkpoint(keeping.folder, self.step, tensors, state, keep=1)
        self._saved_at = time.monotonic()


def fine_tuned(
    tunable: Tunable, config: FineTuneConfig, seed: int, checkpoints: Path | None
) -> tuple[FineTuning, dict[str, Any]]:
    """Train to the end and return what validation chose; see `FineTuning`.

    Args:
        tunable: What is trained.
        config: Length, rates, averaging.
        seed: Seed of dropout.
        checkpoints: Folder of this training alone, in which one that takes long keeps its state and goes on from it.
    """
    keeping = checkpoint = None
    if checkpoints is not None:
        checkpoint = load_newest(checkpoints)
        keeping = Keeping(
            checkpoints, EVERY, sys.maxsize, {}, lambda metrics, step: None, threading.Event(), LEAST_SECONDS
        )
    tuning = FineTuning(tunable, config, seed, keeping, checkpoint)
    return tuning, tuning.run()


def rate(step: int, warmup: int, total: int, schedule: Literal["cosine", "linear"]) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine or a line to 0."""
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, total - warmup)
    return 1 - share if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * share))


def legacy_rate(step: int, warmup: int, total: int) -> float:
    """Return the factor of the learning rate as BenchX has it (`WarmupCosineScheduler`): its cosine has no end.

    Faults: the first step has rate 0; behind `total` the rate climbs again, to 1 at twice the way; steps are counted,
    so that the factor at an epoch depends on label fraction and batch size.
    """
    if step < warmup:
        return step / warmup
    return max(0.0, 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))))


def plateau_factor(values: Sequence[float], config: PlateauConfig) -> float:
    """Return the factor of the learning rate after these scores on validation, higher being better."""
    shown = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        shown, "max", config.factor, config.patience, threshold_mode="abs", min_lr=config.min_ratio
    )
    for value in values:
        schedule.step(value)
    return float(shown.param_groups[0]["lr"])


def _to_cpu(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
