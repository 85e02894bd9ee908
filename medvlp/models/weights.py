"""Weight files: where they lie, how they are read, and whether every key is accounted for.

Guarantee: no foreign code runs (safetensors, or pickles with `weights_only=True`), and a key that is missing, left over
or of another shape is an error that names it.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from medvlp.errors import UserError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
WRAPPERS = ("state_dict", "model", "model_state_dict", "network_weights", "net")
MAX_KEYS_SHOWN = 8
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


class _Inert:
    """Stands for an object of foreign code beside the tensors: holds nothing, does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *_: object, **__: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


class _InertDict:
    """As `_Inert`, of a kind of dictionary, whose items torch adds one by one."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


def read_state(file: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file, on the CPU.

    A pickle may wrap them once, under one of the names of `WRAPPERS`. Objects beside them (such as hyper-parameters of
    a training framework) are not made: something without behaviour takes their place.

    Raises:
        UserError: Unreadable, or something else among the tensors.
    """
    return _read(file, "cpu")


def read_shapes(file: Path) -> dict[str, torch.Size]:
    """Return the shapes of the tensors of a weight file without reading their values.

    Raises:
        UserError: As `read_state`.
    """
    return {name: tensor.shape for name, tensor in _read(file, "meta").items()}


def _read(file: Path, device: str) -> dict[str, torch.Tensor]:
    try:
        state = _load_safetensors(file, device) if file.suffix == ".safetensors" else _load_pickle(file, device)
    except Exception as error:  # of a broken pickle any kind may come
        raise UserError(*_refusal(error, file)) from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if not isinstance(state, Mapping):
        raise UserError("The weight file holds no mapping of names to tensors.", file, "Save its state dict.")
    others = sorted(
        str(name) for name, value in state.items() if not (isinstance(value, torch.Tensor) and isinstance(name, str))
    )
    if others:
        raise UserError(
            f"The weight file holds more than tensors by name {_shown(others)}.", file, "Save its state dict alone."
        )
    return dict(state)


def _load_safetensors(file: Path, device: str) -> dict[str, torch.Tensor]:
    from safetensors import safe_open
    from safetensors.torch import load_file

    if device != "meta":
        return load_file(file, device)
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in names}


def _load_pickle(file: Path, device: str) -> Any:
    import pickle

    try:
        return torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(file)
        except ValueError:  # older than torch's zip format
            foreign = []
        if not foreign:
            raise error
    inert: list[Any] = [(_InertDict if name.lower().endswith("dict") else _Inert, name) for name in foreign]
    with torch.serialization.safe_globals(inert):
        return torch.load(file, map_location=device, weights_only=True)


def _refusal(error: Exception, file: Path) -> tuple[str, Path, str]:
    """Return what, where and fix; torch's own messages begin with advice to switch the check off."""
    lines = [line.strip().removeprefix("WeightsUnpickler error: ") for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "GLOBAL" in line or line.startswith("Can only")]
    if any("is blocked" in line for line in telling):
        return (
            f"The weight file asks to run code: {telling[0]}",
            file,
            "Do not load it by other means either; get the weights from a source that you trust.",
        )
    if telling:
        return (
            f"The weight file holds objects that are not made here: {telling[0]}",
            file,
            "Where the file was made, save its state dict alone, by safetensors.torch.save_file.",
        )
    reason = lines[0] if lines and not lines[0].startswith("Weights only load failed") else "it is no checkpoint"
    return f"The weight file cannot be read: {reason}", file, "Fetch it again, or convert it to safetensors."


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds floating-point numbers, one for each place: a copy changes no other kind rightly.

    Integers (of a quantised model) would be taken for weights, and complex numbers would lose a part.
    """
    return tensor.dtype in FLOATS and tensor.layout == torch.strided


def check_keys(own: Mapping[str, torch.Tensor], given: Mapping[str, torch.Tensor], file: Path) -> None:
    """Raise `UserError` unless `given` has exactly the keys and shapes of `own`, and weights that `is_plain`."""
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
    shared = sorted(own.keys() & given.keys())
    if odd := [key for key in shared if own[key].is_floating_point() and not is_plain(given[key])]:
        problems.append(f"no plain floating-point numbers {_shown(odd)}")
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
