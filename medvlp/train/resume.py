"""Whether a configuration may go on with a checkpoint.

Guarantee: a run goes on only under what decides its weights; where it lives, how far it goes, how it is loaded, logged
and saved may change. Data are compared by their hash, not by their path.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.train import PretrainConfig
from medvlp.config.tree import read_yaml
from medvlp.errors import UserError
from medvlp.store.files import locked
from medvlp.train.checkpoint import Checkpoint

RUNNING = ".running"
"""Folder in `run.dir` that is there while a run is at it."""
FREE = (
    "run.dir",
    "run.name",
    "data.store",
    "data.reports",
    "data.num_workers",
    "data.prefetch",
    "method.image.weights",
    "method.text.folder",
    "train.steps",
    "train.device",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.log_every",
    "train.validate_every",
    "track",
)
"""Keys that may differ. The learning-rate schedule of a longer run is that of its new `train.steps` from there on."""


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep a second run out of `run.dir` while this one is in it: the two would delete each other's checkpoints.

    Raises:
        UserError: Another process is at it, or nothing can be written there.
    """
    new = not folder.exists()
    if not new and not folder.is_dir():
        yield  # `check_free` tells it
        return
    with locked(folder / RUNNING, "this run.dir"):
        try:
            yield
        finally:
            shutil.rmtree(folder / RUNNING, ignore_errors=True)
            if new:
                with suppress(OSError):  # where the run was refused, there is nothing in it
                    folder.rmdir()


def check_free(folder: Path, config: str, model: str, kind: str = "pretrain") -> None:
    """Raise `UserError` if a run that starts anew in `folder` would replace what is there.

    Args:
        folder: `run.dir`; it holds no checkpoint.
        config: File name of a run's configuration.
        model: Folder name of a run's model.
        kind: Kind of configuration that such a run has.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError("run.dir must be a folder, but there is a file of this name.", folder, "Set another run.dir.")
    if (folder / model).exists():
        raise UserError(
            "run.dir holds a model but no checkpoint to go on from; a new run would replace the model.",
            folder / model,
            "Set another run.dir, or move the model away.",
        )
    if (folder / config).exists() and read_yaml(folder / config).get("kind") != kind:
        raise UserError(f"run.dir holds a {config} that is not of a run.", folder / config, "Set another run.dir.")


def check_same_run(config: PretrainConfig | FinetuneConfig, checkpoint: Checkpoint, free: Sequence[str] = FREE) -> None:
    """Raise `UserError` with the differing keys unless `config` may go on with the checkpoint."""
    try:
        before = type(config).model_validate(checkpoint.state["config"]).resolved()
    except (ValidationError, KeyError) as error:
        raise UserError(
            "The checkpoint's configuration cannot be read by this version of medvlp.",
            checkpoint.path,
            "Start a new run with another run.dir.",
        ) from error
    old, new = _leaves(before), _leaves(config.resolved())
    differing = [
        f"{key}: {old.get(key)!r} before, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == one or key.startswith(f"{one}.") for one in free)
    ]
    if differing:
        raise UserError(
            "run.dir holds a run with another configuration:\n    " + "\n    ".join(differing),
            config.run.dir,
            "Set these keys back to resume it, or start a new run with another run.dir.",
        )


def _leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves
