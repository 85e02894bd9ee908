"""The training loop. It knows time, processes and files; the method knows towers and losses.

Guarantee: what a step does is a function of the configuration, the data and the step. Order and changes of samples,
texts, and dropout are counted from (seed, step), never taken from a generator that runs along; so a run that was killed
at any moment and started again by the same command ends, on the CPU, with the same bits, also with other workers.

A contrastive term sees the samples of one micro-batch over all ranks: `batch_size / accumulate` of them.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from medvlp.config.preprocessing import AnyPreprocessing, preprocessing_of
from medvlp.config.train import PretrainConfig
from medvlp.data.counter import MODEL, hash_key
from medvlp.data.pretraining import PretrainData, load_data
from medvlp.data.volume_augment import on_device
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import CONFIG as MODEL_CONFIG
from medvlp.methods._artifact import save_model
from medvlp.methods.base import Method, Progress, Term, complete
from medvlp.methods.context import MethodContext
from medvlp.models.average import Average
from medvlp.models.weights import check_keys, find_weights
from medvlp.progress import progress_bar
from medvlp.store.files import file_sha256
from medvlp.track import Tracker, open_tracker, run_record
from medvlp.track.base import RUN_ID_FILE, Status
from medvlp.track.window import GRADIENT, NotFiniteError, Window
from medvlp.train.checkpoint import Checkpoint, load_newest, save_checkpoint
from medvlp.train.distributed import Processes, processes, shard_like, whole, without_sync, wrap
from medvlp.train.grad_cache import GradCache
from medvlp.train.interruption import interruption
from medvlp.train.lookahead import Lookahead
from medvlp.train.optim import build_optimizer, learning_rate, load_optimizer_tensors, optimizer_tensors
from medvlp.train.resume import alone_in, check_free, check_same_run

logger = logging.getLogger(__name__)

CHECKPOINTS, MODEL_FOLDER, TOKENIZER, CONFIG = "checkpoints", "model", "tokenizer", "config.yaml"


def pretrain(config: PretrainConfig) -> Path:
    """Pre-train a method, or go on with a run that was stopped; under torchrun on several ranks.

    `run.dir` gets `config.yaml`, `metrics.jsonl`, `checkpoints/`, `tokenizer/` and at the end `model/`. A finished run
    is left as it is; with a larger `train.steps` it goes on.

    Args:
        config: The run.

    Returns:
        `run.dir`.

    Raises:
        UserError: Data or method do not fit (nothing is started), `run.dir` holds another run or one that is going on,
            or a loss or a weight is not finite.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is saved.
    """
    with processes(config.train) as where:
        devices = [where.device] if where.device.type == "cuda" else []
        alone = alone_in(config.run.dir) if where.main else nullcontext()
        with alone, torch.random.fork_rng(devices=devices):
            _Training(config, where).run()
    return config.run.dir


class _Training:
    """State of one run in one process."""

    def __init__(self, config: PretrainConfig, where: Processes) -> None:
        self.config, self.where, self.folder = config, where, Path(config.run.dir)
        kind = METHODS.get(config.method.name)
        checkpoint = load_newest(self.folder / CHECKPOINTS)
        if where.share(checkpoint and checkpoint.step) != (checkpoint and checkpoint.step):
            raise UserError("The ranks see different checkpoints.", self.folder, "Put run.dir on a shared file system.")
        if checkpoint is not None:
            check_same_run(config, checkpoint)
        elif where.main:
            check_free(self.folder, CONFIG, MODEL_FOLDER)
        self.data = self._load_data(kind, resumed=checkpoint is not None)
        self.record = self._record(checkpoint)
        self.step = 0 if checkpoint is None else checkpoint.step
        self._seen: dict[int, list[int]] = {}
        torch.manual_seed(_key(config.run.seed))
        table = self.data.table
        tokenizer = None if table is None else table.tokenizer
        context = MethodContext.of(tokenizer, self.data.label_names, self.data.concepts)
        self.method: Method = kind(config.method, context).to(where.device)
        if checkpoint is not None:
            check_keys(self.method.state_dict(), checkpoint.tensors["model"], checkpoint.path)
            self.method.load_state_dict(checkpoint.tensors["model"], strict=True)
        self.module = wrap(self.method, config.train, where)
        self.losses: Callable[..., dict[str, Term]] = self.module
        self.unshared: Callable[..., dict[str, Term]] = self.method
        self.backward: Callable[[torch.Tensor], None] = torch.Tensor.backward
        if config.train.grad_cache is not None:
            cache = GradCache(self.method, config.train.grad_cache, self._autocast)
            self.losses, self.unshared, self.backward = cache.losses, cache.losses, cache.backward
        self.optimizer = build_optimizer(self.method, config.train.optimizer, self.method.learning_rate_factors())
        ahead = config.train.optimizer.lookahead
        self.lookahead = None if ahead is None else Lookahead(self.method, ahead)
        self.average = None if config.train.ema is None else Average(self.method, config.train.ema)
        if checkpoint is not None:
            load_optimizer_tensors(self.optimizer, self.method, checkpoint.tensors["optimizer"])
            for name, copy in self._copies().items():
                saved = checkpoint.tensors[name]
                copy.tensors = {n: shard_like(saved[n], tensor) for n, tensor in copy.tensors.items()}

    def _load_data(self, kind: type[Method], resumed: bool) -> PretrainData:
        """Load the data on rank 0 first: it trains the tokenizer that the others read."""
        options: dict[str, Any] = {
            "demands": kind.demands(complete(self.config.method)),
            "world_size": self.where.world_size,
        }
        for turn in (True, False):
            if self.where.main == turn:
                keep = resumed or not self.where.main
                data = load_data(self.config, tokenizer_folder=self.folder / TOKENIZER, keep_tokenizer=keep, **options)
            self.where.wait()
        return data

    def _record(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        table = self.data.table
        record = {
            "config_sha256": self.config.sha256(),
            "store_hash": self.data.store.hash,
            "data_hash": self.data.hash,
            "tokenizer_hash": None if table is None else table.tokenizer.hash,
            "data": self.data.facts,
            "started_from": self._started_from()
            if checkpoint is None
            else checkpoint.state["record"].get("started_from", {}),
        } | run_record()
        for name in ("data_hash", "tokenizer_hash"):
            if checkpoint is not None and checkpoint.state["record"][name] != record[name]:
                raise UserError(
                    "The store or the reports are not those that this run began with.",
                    self.config.data.store,
                    "Give the same data, or start a new run with another run.dir.",
                )
        return record

    def _started_from(self) -> dict[str, str]:
        """Return the SHA-256 of the weight file that each tower starts from; a fresh tower has none."""
        method = self.config.method
        folders = {"image": method.image.weights, "text": None if method.text is None else method.text.folder}
        return {tower: file_sha256(find_weights(folder)) for tower, folder in folders.items() if folder is not None}

    def run(self) -> None:
        """Train to the last step and write the model."""
        steps = self.config.train.steps
        if self.step >= steps and self.where.share(self._is_complete()):
            logger.info("The run is complete at step %d; a larger train.steps goes on.", self.step)
            return
        if self.step:
            logger.info("Resuming at step %d of %d.", self.step, steps)
        tracker = self._open_tracker() if self.where.main else None
        status: Status = "FAILED"
        try:
            with (
                interruption() as asked,
                progress_bar("Pre-training", self._samples(max(0, steps - self.step)), "samples") as bar,
            ):
                self._train(steps, asked, bar, tracker)
            self._write_model()
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            logger.warning("Stopped at step %d, saved in %s. The same command goes on.", self.step, self.folder)
            raise
        finally:
            if tracker is not None:
                tracker.finish(status)
        logger.info("%d steps done.", steps)

    def _is_complete(self) -> bool:
        """Return whether the model of the newest checkpoint is written: a kill may have come between the two."""
        try:
            model = json.loads((self.folder / MODEL_FOLDER / MODEL_CONFIG).read_text(encoding="utf-8"))
            return bool(model["record"]["step"] == self.step)
        except (OSError, ValueError, KeyError):
            return False

    def _samples(self, steps: int) -> int:
        return steps * self.config.train.batch_size

    def _open_tracker(self) -> Tracker:
        config = self.config
        self.folder.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
        kept = self.folder / CONFIG
        if self.step == 0 and not (kept.exists() and kept.read_text(encoding="utf-8") == text):
            (self.folder / RUN_ID_FILE).unlink(missing_ok=True)  # an attempt of another kind that never got to a step
        part = self.folder / f".{CONFIG}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(kept)
        tags = {name: value for name, value in self.record.items() if isinstance(value, str)}
        tags |= {f"version.{name}": value for name, value in self.record["versions"].items()}
        name = config.run.name or self.folder.resolve().name
        return open_tracker(
            config.track, self.folder, name=name, params=config.resolved(), tags=tags, resume_step=self.step
        )

    def _train(self, steps: int, asked: threading.Event, bar: Any, tracker: Tracker | None) -> None:
        train = self.config.train
        options: dict[str, Any] = {
            "rank": self.where.rank,
            "world_size": self.where.world_size,
            "pin_memory": self.where.device.type == "cuda",
        }
        validation = self.data.loader(self.config, validation=True, **options) if len(self.data.val) else None
        loader = self.data.loader(self.config, **options)
        batches = loader.stream(self.step * train.accumulate)
        self.steps_per_epoch = loader.steps_per_epoch // train.accumulate
        window, waited, began, first = Window(warn=self.where.main), 0.0, time.perf_counter(), self.step
        shown: dict[str, float] = {}
        self.module.train()
        try:
            while self.step < steps:
                waited += self._one_step(batches, steps, window)
                self.step += 1
                bar(train.batch_size, **shown)
                last = self.step == steps
                stop = self._agree(asked.is_set(), self.step % train.log_every == 0)
                save = last or stop or self.step % train.checkpoint_every == 0
                validate = validation is not None and (last or self.step % train.validate_every == 0)
                if save or validate or self.step % train.log_every == 0:
                    metrics = {f"train/{name}": value for name, value in self._close(window).items()}
                    seconds = time.perf_counter() - began
                    metrics |= {
                        "train/lr": learning_rate(train.optimizer, self.step - 1, steps),
                        "train/epoch": self.step * train.accumulate / loader.steps_per_epoch,
                        "train/samples_per_second": self._samples(self.step - first) / seconds,
                        "train/data_wait": waited / seconds,
                    }
                    shown = {"loss": metrics["train/loss"]}
                    if validation is not None and validate:
                        metrics |= self._validate(validation)
                    if tracker is not None:
                        tracker.log(metrics, self.step)
                    if save:
                        self._save()
                    waited, began, first = 0.0, time.perf_counter(), self.step
                if stop and not last:
                    raise KeyboardInterrupt
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _one_step(self, batches: Iterator[Any], steps: int, window: Window) -> float:
        """Do one optimiser step; return the seconds that it waited for data."""
        train, step = self.config.train, self.step
        torch.manual_seed(_key(self.config.run.seed, step, self.where.rank))
        self.method.begin_step(Progress(step, steps, max(1, self.steps_per_epoch)))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(train.optimizer, step, steps) * group["lr_factor"]
        self.optimizer.zero_grad(set_to_none=True)
        waited = 0.0
        for micro in range(train.accumulate):
            began = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - began
            self._seen.setdefault(step + 1, []).extend(batch.index.tolist())
            with without_sync(self.module, skip=micro < train.accumulate - 1):
                with self._autocast():
                    terms = self.losses(on_device(batch, self.where.device))
                    loss = torch.stack([value for value, _ in terms.values()]).sum() / train.accumulate
                self.backward(loss)
            window.add(terms, step + 1)
            window.add(self.method.figures, step + 1, in_loss=False)
        self.method.adjust_gradients()
        if train.optimizer.clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.method.parameters(), train.optimizer.clip_norm)
            window.add({GRADIENT: (whole(norm), torch.ones_like(whole(norm)))}, step + 1)
        self.optimizer.step()
        if self.lookahead is not None:
            self.lookahead.update(self.method, step)
        self.method.end_step()
        if self.average is not None:
            self.average.update(self.method, step)
        return waited

    def _close(self, window: Window) -> dict[str, float]:
        """Return the metrics of a window; where a value is not finite, write down which samples its step had."""
        try:
            return window.close(self.step)
        except NotFiniteError as error:
            file = self.folder / f"not_finite_rank{self.where.rank}.json"
            images = self.data.store.images["image_id"]
            samples = [str(images.iloc[row]) for row in self._seen[error.step]]
            described = {"step": error.step, "term": error.term, "image_ids": samples}
            file.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
            raise UserError(f"{error.what} Its images are listed in {file.name}.", file, error.fix) from error
        finally:
            self._seen.clear()

    def _autocast(self) -> torch.autocast:
        bf16 = self.config.train.precision == "bf16"
        return torch.autocast(self.where.device.type, torch.bfloat16, enabled=bf16)

    @torch.no_grad()
    def _validate(self, loader: Any) -> dict[str, float]:
        """Return the mean losses of the weights in training over the validation images, without augmentation."""
        window = Window(warn=False)
        self.module.eval()
        for batch in loader.epoch(0):
            with self._autocast():
                window.add(self.unshared(on_device(batch, self.where.device)), self.step)
                window.add(self.method.figures, self.step, in_loss=False)
        self.module.train()
        return {f"val/{name}": value for name, value in window.close(self.step).items()}

    def _agree(self, asked: bool, due: bool) -> bool:
        """Return whether to stop: at once in one process, at log steps and if any rank was asked on several."""
        if self.where.world_size == 1:
            return asked
        if not due:
            return False
        flag = torch.tensor(float(asked))
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    def _weights(self) -> dict[str, torch.Tensor]:
        return _whole(self.method.state_dict())

    def _copies(self) -> dict[str, Lookahead | Average]:
        """Return what is kept beside the weights, by its name in a checkpoint; for model/ the last one counts."""
        both = {"lookahead": self.lookahead, "average": self.average}
        return {name: copy for name, copy in both.items() if copy is not None}

    def _save(self) -> None:
        weights = self._weights()
        for name, tensor in weights.items():
            if not tensor.isfinite().all():
                raise NotFiniteError(f"weight '{name}'", self.step)
        tensors = {"model": weights, "optimizer": optimizer_tensors(self.optimizer, self.method)}
        tensors |= {name: _whole(copy.tensors) for name, copy in self._copies().items()}
        state = {
            "config": self.config.resolved(),
            "preprocessing": self._preprocessing().resolved(),
            "record": self.record,
            "rng": {"seed": self.config.run.seed, "scheme": "hash of (stream, seed, step or epoch, sample or rank)"},
        }
        if self.where.main:
            save_checkpoint(self.folder / CHECKPOINTS, self.step, tensors, state, self.config.train.keep_checkpoints)
        self.where.wait()

    def _preprocessing(self) -> AnyPreprocessing:
        return preprocessing_of(self.data.store.config, self.config.method.image.input)

    def _write_model(self) -> None:
        state = self._weights()
        for copy in self._copies().values():
            state |= _whole(copy.tensors)
        if self.where.main:
            table = self.data.table
            save_model(
                self.folder / MODEL_FOLDER,
                self.method,
                preprocessing=self._preprocessing(),
                tokenizer=None if table is None else table.tokenizer,
                record=self.record | {"step": self.step, "averaged": self.average is not None},
                state=state,
            )
        self.where.wait()


def _whole(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors whole on the CPU; all ranks must call."""
    return {name: whole(tensor).detach().cpu() for name, tensor in tensors.items()}


def _key(*parts: int) -> int:
    """Return the seed of initialisation, or of the dropout of a (seed, step, rank)."""
    return int(hash_key(MODEL, len(parts), *parts)[0])
