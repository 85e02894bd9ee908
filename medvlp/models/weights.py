"""Weight files: where they lie, how they are read, and whether every key is accounted for.

Guarantee: no foreign code runs (safetensors, or pickles with `weights_only=True`), and a key that is missing, left over
or of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch

from medvlp.errors import UserError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
MAX_KEYS_SHOWN = 8


def find_weights(path: Path) -> Path:
    """Return the weight file of a folder (safetensors first), or the file itself.

    Raises:
        UserError: There is none.
    """
    if path.is_file():
        return path
    for name in WEIGHT_FILES:
        if (path / name).is_file():
            return path / name
    what = "has no weight file" if path.is_dir() else "does not exist"
    raise UserError(f"The weights folder {what}.", path, f"Put {' or '.join(WEIGHT_FILES)} there.")


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file, on the CPU.

    A pickle may wrap them once, under `state_dict` or `model`.

    Raises:
        UserError: Unreadable, or more than tensors inside.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The weight file cannot be read: {reason}", file, "Convert it to safetensors, or fetch it again."
        ) from error
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError("The weight file holds more than tensors.", file, "Save its state dict alone, as safetensors.")
    return dict(state)


def check_keys(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], file: Path) -> None:
    """Raise `UserError` unless `given` has exactly the keys and shapes of `own`."""
    problems = []
    if missing := sorted(own.keys() - given.keys()):
        problems.append(f"missing {_shown(missing)}")
    if unexpected := sorted(given.keys() - own.keys()):
        problems.append(f"unexplained {_shown(unexpected)}")
    shapes = [
        f"{key} {list(given[key].shape)} instead of {list(own[key].shape)}"
        for key in sorted(own.keys() & given.keys())
        if own[key].shape != given[key].shape
    ]
    if shapes:
        problems.append(f"other shapes {_shown(shapes)}")
    if problems:
        raise UserError(
            f"The weights do not fit the model: {'; '.join(problems)}.",
            file,
            "Give the weights of exactly this architecture and input size.",
        )


def _shown(keys: list[str]) -> str:
    more = f" and {len(keys) - MAX_KEYS_SHOWN} more" if len(keys) > MAX_KEYS_SHOWN else ""
    return f"({len(keys)}): {', '.join(keys[:MAX_KEYS_SHOWN])}{more}"


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
