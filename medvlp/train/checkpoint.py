"""Checkpoints: safetensors and one JSON file in a folder that appears whole or not at all.

Guarantee: a checkpoint is written beside its place, flushed to the disk and renamed, so a kill at any moment leaves the
one before; each file's SHA-256 is in `state.json`, and a damaged checkpoint is passed over with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medvlp.errors import UserError
from medvlp.store.files import file_sha256

logger = logging.getLogger(__name__)

FORMAT = 1
STATE = "state.json"
_PREFIX = "step_"


class DamagedError(UserError):
    """A checkpoint is not as it was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as read: tensors by part (`model`, `optimizer`, `average`) and the JSON state."""

    path: Path
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return int(self.state["step"])


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, dict[str, torch.Tensor]], state: dict[str, Any], keep: int
) -> Path:
    """Write a checkpoint and remove all but it and the `keep - 1` before it.

    Args:
        folder: Folder of checkpoints.
        step: Optimiser steps done.
        tensors: Part -> name -> whole tensor on any device.
        state: Plain JSON values; `step`, `format` and `files` are added.
        keep: Number of checkpoints kept, this one included.

    Raises:
        UserError: The disk is full or cannot be written; the checkpoints before are untouched.
    """
    target = folder / f"{_PREFIX}{step:09d}"
    part = folder / f".{target.name}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in folder.glob(".*.part"):
            shutil.rmtree(stale)
        part.mkdir()
        files = {}
        for name, values in tensors.items():
            file = part / f"{name}.safetensors"
            save_file({key: value.detach().cpu().contiguous().clone() for key, value in values.items()}, file)
            files[file.name] = file_sha256(file)
        written = {"format": FORMAT, "step": step, "files": files} | state
        (part / STATE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        for file in part.iterdir():
            file.chmod((part / STATE).stat().st_mode)  # safetensors writes for the owner alone
            _flush(file)
        _flush(part)
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(
            f"The checkpoint of step {step} cannot be written: {error}.",
            folder,
            "Free some space or mend the access rights, then run the same command again; it resumes.",
        ) from error
    found = list_checkpoints(folder)
    upto = found.index(target) + 1
    for old in found[: max(0, upto - keep)] + found[upto:]:  # later ones were damaged: the run went on from before them
        shutil.rmtree(old)
    return target


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoint folders, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def load_newest(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint that is undamaged; None where there is none.

    Raises:
        UserError: One that may be good cannot be read here: going on from before it would remove it.
    """
    for path in reversed(list_checkpoints(folder)):
        try:
            return read_checkpoint(path)
        except DamagedError as error:
            logger.warning("%s %s It is passed over.", error.what, error.where)
    return None


def read_checkpoint(path: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        DamagedError: A file is missing or damaged.
        UserError: It is of another format, or the file system refuses to read it.
    """
    fix = "Delete it; the run resumes from the one before."
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
        if state["format"] != FORMAT:
            raise UserError(
                f"The checkpoint has format {state['format']}, not {FORMAT}.", path, "Use the version that wrote it."
            )
        tensors = {}
        for name, digest in state["files"].items():
            if file_sha256(path / name) != digest:
                raise DamagedError(f"The checkpoint is damaged: {name} has another SHA-256 than recorded.", path, fix)
            tensors[name.removesuffix(".safetensors")] = load_file(path / name)
    except (FileNotFoundError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DamagedError(f"The checkpoint is damaged: {error!r}.", path, fix) from error
    except OSError as error:
        raise UserError(f"The checkpoint cannot be read: {error}.", path, f"Mend that, or give it up. {fix}") from error
    return Checkpoint(path, tensors, state)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
