"""A fine-tuned model on disk: encoder, head, preprocessing, and what turns its numbers into answers.

Guarantee: the folder alone rebuilds the model on any machine, appears whole or not at all, and holds no pickle and no
path. Weights are loaded key by key. Probabilities and answers are those that were validated: same preprocessing,
calibration and thresholds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from scipy.special import expit
from torch import nn

from medvlp.config.base import json_sha256
from medvlp.config.preprocessing import read_preprocessing
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.models.device import resolve_device
from medvlp.models.weights import check_keys, read_state, state_sha256
from medvlp.store.files import atomic_folder, file_sha256
from medvlp.tasks import TASKS
from medvlp.tasks._answerer import Answerer
from medvlp.tasks._experts.prompts import build_experts
from medvlp.tasks._report_writer import ReportWriter
from medvlp.zoo.rebuild import CONFIG, ENCODER, PREPROCESSING, rebuild_tower

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from medvlp.tasks._experts.base import Expert

FORMAT = 1
HEAD, DECISIONS, CARD = "head.safetensors", "decisions.json", "model_card.md"
DECIDING = (PREPROCESSING, DECISIONS, ENCODER, HEAD)
"""Files of which the description has the SHA-256: with another one, answers are not those that were validated."""
EXPERTS = "experts"
"""Folder of the models of a writer's experts, each under its number."""
TOWER = "tower."
_COPY = "Copy the model folder again."


@dataclass(frozen=True)
class Decision:
    """From the logit of one label to its probability, `sigmoid(slope · logit + intercept)`, and to yes or no.

    `threshold` is compared with the probability (`>=` is yes); None where validation had no positive to choose it by.
    """

    label: str
    slope: float = 1.0
    intercept: float = 0.0
    threshold: float | None = None

    def probabilities(self, logits: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return calibrated probabilities."""
        return expit(self.slope * logits + self.intercept)

    def positive(self, probabilities: Float[np.ndarray, " n"]) -> Bool[np.ndarray, " n"] | None:
        """Return which probabilities reach the threshold; None where there is none."""
        return None if self.threshold is None else probabilities >= self.threshold


@dataclass(frozen=True)
class Scope:
    """What the training images were, as far as their data set says it; an empty field is not known."""

    modalities: tuple[str, ...] = ()
    views: tuple[str, ...] = ()
    body_parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class TunedModel:
    """A fine-tuned network with all that its use needs; `record` says how it was made."""

    task: TaskConfig
    network: nn.Module
    preprocessing: Any
    """That of images, or of volumes."""
    decisions: tuple[Decision, ...]
    scope: Scope
    record: dict[str, Any] = field(default_factory=dict)
    experts: tuple[Expert, ...] = ()
    """Of a writer of reports, in the order in which they speak."""

    @property
    def label_names(self) -> list[str]:
        """Names of the questions."""
        return [label.name for label in self.task.labels]

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.network.parameters()).device

    @property
    def hash(self) -> str:
        """SHA-256 over weights, preprocessing, calibration and thresholds, or words and answers of texts."""
        return json_sha256(
            {
                "weights": state_sha256(self.network.state_dict()),
                "preprocessing": self.preprocessing.resolved(),
                "decisions": [asdict(decision) for decision in self.decisions],
                "task": self.task.resolved(),
            }
            | self._words
        )

    @property
    def _words(self) -> dict[str, str]:
        if isinstance(self.network, ReportWriter):
            experts = {f"expert_{number}": one.hash for number, one in enumerate(self.experts)}
            return {"tokens": self.network.tokens.hash, **experts}
        if isinstance(self.network, Answerer) and self.network.words is not None:
            learnt = self.network.learnt
            answers = json_sha256([learnt.closed, learnt.open, learnt.wordings])
            return {"tokens": self.network.words.hash, "answers": answers}
        return {}


def calibrated(decisions: Sequence[Decision], logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return the probability of every label."""
    return np.stack([one.probabilities(logits[:, k]) for k, one in enumerate(decisions)], axis=1)


def save_tuned(folder: Path, model: TunedModel, tower: dict[str, Any], dim: int, card: str) -> None:
    """Write a model folder; one that exists is replaced at the end.

    Args:
        folder: Target.
        model: The model, on any device.
        tower: Description of the encoder's tower, as it was before it got a head; see `zoo.rebuild`.
        dim: Width that the tower pools to.
        card: The model card, in Markdown.
    """
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.network.state_dict().items()}
    encoder = {name.removeprefix(TOWER): value for name, value in state.items() if name.startswith(TOWER)}
    head = {name: value for name, value in state.items() if not name.startswith(TOWER)}
    described = {
        "format": FORMAT,
        "task": model.task.resolved(),
        "tower": tower,
        "dim": dim,
        "scope": asdict(model.scope),
        "hash": model.hash,
        "record": model.record,
        "experts": [expert.hash for expert in model.experts],
    }
    with atomic_folder(folder) as part:
        TASKS.get(model.task.type)(model.task).save_parts(model.network, part)
        for number, expert in enumerate(model.experts):
            expert.save(part / EXPERTS / str(number))
        (part / DECISIONS).write_text(_json([asdict(one) for one in model.decisions]), encoding="utf-8")
        (part / PREPROCESSING).write_text(model.preprocessing.model_dump_json(indent=2) + "\n", encoding="utf-8")
        (part / CARD).write_text(card, encoding="utf-8")
        for name, tensors in ((ENCODER, encoder), (HEAD, head)):
            save_file(tensors, part / name)
            (part / name).chmod((part / CARD).stat().st_mode)  # safetensors writes for the owner alone
        files = {name: file_sha256(part / name) for name in DECIDING}
        (part / CONFIG).write_text(_json(described | {"files": files}), encoding="utf-8")


def load_tuned(path: Path, device: str = "cpu") -> TunedModel:
    """Rebuild a fine-tuned model, in evaluation mode.

    Args:
        path: `run.dir` of a fine-tuning, or its `model/`.
        device: A torch device, or `auto`.

    Raises:
        UserError: There is no fine-tuned model, it is unfinished or damaged, or another version wrote it.
    """
    where = torch.device(resolve_device(device))
    folder = _find(Path(path))
    described = _read_json(folder / CONFIG)
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        fix = "Use the version of medvlp that wrote it, or fine-tune again."
        raise UserError(f"The model has format {found!r}, this version reads {FORMAT}.", folder, fix)
    for name, digest in described.get("files", {}).items():  # models of older versions do not have them
        if (folder / name).is_file() and file_sha256(folder / name) != digest:
            raise UserError("The file is not the one that was validated with this model.", folder / name, _COPY)
    try:
        task = TaskConfig.model_validate(_with_experts(described["task"], folder))
        preprocessing = read_preprocessing(_read_json(folder / PREPROCESSING))
        decisions = tuple(Decision(**one) for one in _read_json(folder / DECISIONS))
        scope = Scope(**{name: tuple(values) for name, values in described["scope"].items()})
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"The model is damaged: {error}", folder, _COPY) from error
    if decisions and [one.label for one in decisions] != [label.name for label in task.labels]:
        raise UserError("The labels of the decisions are not those of the model.", folder / DECISIONS, _COPY)
    tower, dim = rebuild_tower(described["tower"])
    taken: Any = preprocessing.input
    network = TASKS.get(task.type)(task).rebuilt(tower, dim, taken, folder)
    state = {TOWER + name: value for name, value in read_state(folder / ENCODER).items()} | read_state(folder / HEAD)
    check_keys(network.state_dict(), state, folder)
    network.load_state_dict(state, strict=True)
    experts = tuple(build_experts(task.reports.experts, where))
    if [expert.hash for expert in experts] != described.get("experts", []):
        raise UserError("An expert of the model is not the one that it was trained with.", folder / EXPERTS, _COPY)
    return TunedModel(task, network.to(where).eval(), preprocessing, decisions, scope, described["record"], experts)


def model_files(path: Path) -> list[Path]:
    """Return the files of a model that says findings or outlines structures.

    Args:
        path: `run.dir` of a fine-tuning, or its `model/`.

    Raises:
        UserError: There is no model.
    """
    return [_find(Path(path)) / name for name in (CONFIG, PREPROCESSING, DECISIONS, CARD, ENCODER, HEAD)]


def _with_experts(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the description of a task whose experts are those that lie in the model's folder."""
    experts = task["reports"].get("experts")
    if not experts:
        return task
    places = [folder / EXPERTS / str(number) for number in range(len(experts["use"]))]
    for one, place in zip(experts["use"], places, strict=True):
        if one["name"] == "tuned" and not place.is_dir():
            raise UserError("The model of an expert is missing.", place, _COPY)
    use = [one | ({"run": place} if place.is_dir() else {}) for one, place in zip(experts["use"], places, strict=True)]
    return task | {"reports": task["reports"] | {"experts": experts | {"use": use}}}


def _find(path: Path) -> Path:
    if not path.exists():
        raise UserError("There is no such run.", path, "Give the run.dir of `medvlp finetune`.")
    folder = path if (path / CONFIG).is_file() else path / "model"
    if (folder / HEAD).is_file():
        return folder
    if (folder / CONFIG).is_file():
        raise UserError(
            "This is an encoder without a head: it answers no question.",
            path,
            f"Fine-tune it first: medvlp finetune configs/finetune/classification.yaml encoder={path} ...",
        )
    if (path / "config.yaml").is_file():
        raise UserError("The run has no finished model.", path, "Run the same `medvlp finetune` command again.")
    raise UserError("This is no run of fine-tuning.", path, "Give the run.dir of `medvlp finetune`.")


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The model file cannot be read: {error}", file, _COPY) from error


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
