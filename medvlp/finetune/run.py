"""`medvlp finetune`: from a store and an encoder to a model that can be used, with its scores and a report.

Guarantee: a run that is stopped at any moment goes on by the same command and, on the CPU, ends with the same bits.
Test images are looked at when everything is chosen. `model/` appears whole, `result.json` last.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from medvlp.bench.cells import as_json
from medvlp.bench.judged import shown_spec
from medvlp.bench.tracking import metrics_of
from medvlp.config.base import json_sha256
from medvlp.config.finetune import FinetuneConfig
from medvlp.config.tree import read_yaml
from medvlp.errors import UserError
from medvlp.finetune.card import model_card
from medvlp.finetune.notes import sentences
from medvlp.finetune.outcome import Outcome, outcome_of
from medvlp.finetune.report import write_report
from medvlp.finetune.scope import scope_of
from medvlp.finetune.splits import SplitStore, learnt_by_experts, shared_pixels
from medvlp.finetune.task import task_of
from medvlp.models.device import resolve_device
from medvlp.store.files import write_atomic
from medvlp.tasks._experts.prompts import build_experts
from medvlp.tasks._fine_tune import FineTuning, Keeping, seeded
from medvlp.tasks._tuned import TunedModel, save_tuned
from medvlp.tasks.report_generation import decoder_sha256
from medvlp.track import Tracker, open_tracker, run_record
from medvlp.track.base import Status
from medvlp.train.checkpoint import Checkpoint, load_newest
from medvlp.train.interruption import interruption
from medvlp.train.resume import alone_in, check_free, check_same_run
from medvlp.zoo import load_encoder
from medvlp.zoo.rebuild import describe_tower

if TYPE_CHECKING:
    import numpy as np

    from medvlp.tasks.base import Samples

logger = logging.getLogger(__name__)

CHECKPOINTS, MODEL, CONFIG, RESULT, REPORT, PREDICTIONS = (
    "checkpoints",
    "model",
    "config.yaml",
    "result.json",
    "report.html",
    "predictions",
)
SCRATCH = ".tmp"
FREE = (
    "run.dir",
    "run.name",
    "encoder",
    "data.store",
    "data.num_workers",
    "decision",
    "device",
    "checkpoint_every",
    "log_every",
    "bootstrap_resamples",
    "bootstrap_seed",
    "alpha",
    "track",
)
"""Keys that may differ when a run goes on; encoder and store are compared by their hashes."""


@dataclass(frozen=True)
class Finetuned:
    """What a run left: its folder and the rows of `result.json`; `notes` are what has to be known beside the scores."""

    folder: Path
    scores: list[dict[str, Any]]
    notes: list[str]


def finetune(config: FinetuneConfig) -> Finetuned:
    """Fine-tune an encoder on a store, or go on with a run that was stopped.

    `run.dir` gets `config.yaml`, `metrics.jsonl`, `checkpoints/`, and at the end `predictions/`, `model/`,
    `report.html` and `result.json`. A finished run is left as it is; with other settings of decision or bootstrap its
    model is judged again without training.

    Raises:
        UserError: Store, labels or encoder do not fit, `run.dir` holds something else or a run that is going on, or a
            value is not finite.
        KeyboardInterrupt: After Ctrl-C or SIGTERM, when the checkpoint is saved.
    """
    folder = Path(config.run.dir)
    kept = _finished(folder, config)
    if kept is not None:
        logger.info("The run is complete.")
        return kept
    with alone_in(folder):
        return _Run(config, folder).run()


def _finished(folder: Path, config: FinetuneConfig) -> Finetuned | None:
    """Return the result of a run that is complete under this configuration."""
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        same = result["config_sha256"] == _config_sha256(config) and (folder / MODEL).is_dir()
        return Finetuned(folder, result["scores"], result["notes"]) if same else None
    except (OSError, ValueError, KeyError):
        return None


class _Run:
    """One run."""

    def __init__(self, config: FinetuneConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.store = SplitStore(config.data.store)
        _check_kind(folder)
        self.checkpoint = load_newest(folder / CHECKPOINTS)
        if self.checkpoint is None:
            check_free(folder, CONFIG, MODEL, "finetune")
        else:
            check_same_run(config, self.checkpoint, FREE)
        self.store.complete(config.data)
        self.task, about_labels = task_of(config, self.store)
        self.notes = sentences(about_labels)
        self.samples = self.task.samples(self.store)
        self.images = {split: self.task.images(self.store, own) for split, own in self.samples.items()}
        self.notes += [*self.store.warnings, *shared_pixels(self.store, self.images)]
        device = resolve_device(config.device)
        self.encoder = load_encoder(config.encoder, stored=self.store.config, device=device, seed=config.run.seed)
        self.encoder.check_store(self.store)
        if self.encoder.kind == "video" and config.task != "classification":
            raise UserError(
                f"An encoder of clips is fine-tuned to classification, not to {config.task}.",
                "task",
                "Set task=classification, or use an encoder of images on single frames.",
            )
        self.experts = tuple(build_experts(self.task.config.reports.experts, self.encoder.device))
        self.notes += learnt_by_experts(self.experts, self.store)
        self.record = self._record()
        if self.checkpoint is not None:
            self._check_same_data(self.checkpoint)

    def _record(self) -> dict[str, Any]:
        store = self.store
        return {
            "store_hash": store.hash,
            "dataset": store.dataset,
            "encoder": shown_spec(self.config.encoder),
            "encoder_hash": self.encoder.hash,
            "split_rule": store.split_rule,
            "task_hash": json_sha256(self.task.settings("fine_tune")),
            "samples": {name: _counted(samples, self.images[name]) for name, samples in self.samples.items()},
            **({"experts": [expert.hash for expert in self.experts]} if self.experts else {}),
        } | run_record()

    def _check_same_data(self, checkpoint: Checkpoint) -> None:
        before = checkpoint.state["record"]
        kinds = {"samples": "samples", "store_hash": "store", "encoder_hash": "encoder", "task_hash": "task"}
        for name, what in kinds.items():
            if before.get(name) != self.record[name]:
                raise UserError(
                    f"The {what} is not what this run began with.",
                    self.folder,
                    "Give the same store, encoder and decoder, or start a new run with another run.dir.",
                )

    def run(self) -> Finetuned:
        """Train what is left, decide on validation, judge on test, and write everything."""
        config, seed = self.config, self.config.run.seed
        status: Status = "FAILED"
        tracker = self._open_tracker()
        try:
            with interruption() as asked, seeded(seed, str(self.encoder.device)):
                tunable = self.task.tunable(
                    self.encoder, self.store, self.samples["train"], self.samples["val"], seed, config.data.num_workers
                )
                state = {"config": config.resolved(), "record": self.record}
                keeping = Keeping(
                    self.folder / CHECKPOINTS, config.checkpoint_every, config.log_every, state, tracker.log, asked
                )
                tuning = FineTuning(tunable, config.train, seed, keeping, self.checkpoint)
                chosen = tuning.run()
            outcome = outcome_of(config, self.task, tunable, tuning.network, self.samples, self.store)
            self.notes += outcome.notes
            finished = self._finish(outcome, chosen)
            tracker.log({f"test/{name}": value for name, value in metrics_of(outcome.scores).items()}, tuning.step + 1)
            for path in (self.folder / REPORT, self.folder / MODEL / "model_card.md", self.folder / RESULT):
                tracker.artifact(path)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            logger.warning("Stopped, saved in %s. The same command goes on.", self.folder)
            raise
        finally:
            tracker.finish(status)
        return finished

    def _open_tracker(self) -> Tracker:
        config, record = self.config, self.record
        text = yaml.safe_dump(config.resolved(), sort_keys=False, allow_unicode=True)
        write_atomic(self.folder / CONFIG, text.encode(), self.folder / SCRATCH)
        (self.folder / SCRATCH).rmdir()
        tags = {name: str(value) for name, value in record.items() if isinstance(value, str)}
        tags |= {f"version.{name}": value for name, value in record["versions"].items()}
        return open_tracker(
            config.track,
            self.folder,
            name=config.run.name or self.folder.resolve().name,
            params=config.resolved() | {"encoder": record["encoder"]},
            tags=tags | {"medvlp.kind": "finetune", "config_sha256": config.sha256()},
            resume_step=0 if self.checkpoint is None else self.checkpoint.step,
        )

    def _finish(self, outcome: Outcome, chosen: dict[str, Any]) -> Finetuned:
        config, folder = self.config, self.folder
        scratch = folder / SCRATCH
        result = {
            "config_sha256": _config_sha256(config),
            "task": config.task,
            "scores": outcome.scores,
            "subgroups": outcome.subgroups,
            "decisions": [asdict(one) for one in outcome.decisions],
            "balance": outcome.balance,
            "usual": outcome.usual,
            "chosen": chosen,
            "notes": self.notes,
            "record": self.record,
        }
        model = TunedModel(
            self.task.config,
            outcome.network,
            outcome.preprocessing,
            outcome.decisions,
            scope_of(self.store, self.images["train"]),
            {**self.record, "chosen": {name: chosen[name] for name in chosen if name != "history"}},
            self.experts,
        )
        for name, kept in (("val", outcome.validation), ("test", outcome.test)):
            path = folder / PREDICTIONS / f"{name}.parquet"
            path.parent.mkdir(exist_ok=True)
            kept.to_frame().to_parquet(path, index=False)
        card = model_card(config, model, result)
        save_tuned(folder / MODEL, model, describe_tower(self.encoder.image_tower), self.encoder.dim, card)
        write_report(folder / REPORT, config, model, result, outcome, self.store)
        write_atomic(folder / RESULT, as_json(result).encode(), scratch)
        scratch.rmdir()
        return Finetuned(folder, outcome.scores, self.notes)


def _check_kind(folder: Path) -> None:
    file = folder / CONFIG
    if file.is_file() and (kind := read_yaml(file).get("kind")) != "finetune":
        raise UserError(
            f"run.dir holds a run of another kind ({kind}).", folder, "Set another run.dir; encoder= names that run."
        )


def _config_sha256(config: FinetuneConfig) -> str:
    """Return the hash of a configuration, and of the decoder and experts in folders, which it does not name."""
    decoder = decoder_sha256(config.reports)
    hashes = [] if decoder is None else [decoder]
    hashes += [expert.hash for expert in build_experts(config.reports.experts, torch.device("cpu"))]
    return json_sha256([config.sha256(), *hashes]) if hashes else config.sha256()


def _counted(samples: Samples, images: np.ndarray) -> dict[str, Any]:
    patients = len(set(samples.patient_ids))
    return {"samples": len(samples), "images": len(images), "patients": patients, "sha256": samples.sha256}
