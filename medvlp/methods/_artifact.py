"""The saved model: a folder that alone rebuilds method, preprocessing and tokenizer on any machine.

Guarantee: the folder appears whole or not at all; no path of the training machine is in what decides the model; loading
is strict, key by key. What only training needs (a teacher, queues) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.methods import MethodConfig
from medvlp.config.preprocessing import AnyPreprocessing, read_preprocessing
from medvlp.errors import UserError
from medvlp.store.files import atomic_folder

if TYPE_CHECKING:
    import torch

    from medvlp.methods.base import Method
    from medvlp.text.tokenizer import Tokenizer

FORMAT = 2
WEIGHTS, CONFIG, PREPROCESSING, TOKENIZER = "model.safetensors", "config.json", "preprocessing.json", "tokenizer"


@dataclass(frozen=True)
class LoadedModel:
    """A method in evaluation mode, without its `training_parts`, and all that its inputs need.

    `record` says how it was made.
    """

    method: Method
    preprocessing: AnyPreprocessing
    tokenizer: Tokenizer | None
    label_names: tuple[str, ...]
    record: dict[str, Any] = field(default_factory=dict)


def save_model(
    folder: Path,
    method: Method,
    *,
    preprocessing: AnyPreprocessing,
    tokenizer: Tokenizer | None,
    record: dict[str, Any],
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a model folder; one that exists is replaced at the end.

    Args:
        folder: Target.
        method: The method, on any device.
        preprocessing: From an image file to the tensor that the method takes.
        tokenizer: The tokenizer of its text tower.
        record: How it was made (config hash, store hash, step, ...), kept as given.
        state: Weights to write instead of the method's own, e.g. an average.

    Raises:
        ValueError: `preprocessing` is not the one that the method normalises by.
    """
    if preprocessing.input != method.config.image.input:
        raise ValueError("the saved preprocessing must have the model input of the method")
    with atomic_folder(folder) as part:
        _write(part, method, preprocessing, tokenizer, record, state)


def _write(
    part: Path,
    method: Method,
    preprocessing: AnyPreprocessing,
    tokenizer: Tokenizer | None,
    record: dict[str, Any],
    state: dict[str, torch.Tensor] | None,
) -> None:
    from safetensors.torch import save_file

    tensors = method.state_dict() if state is None else state
    tensors = _of_use(tensors, method)
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, part / WEIGHTS)
    described = {
        "format": FORMAT,
        "method": portable_config(method).resolved(),
        **method.context.to_json(),
        "record": record,
    }
    (part / CONFIG).write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (part / WEIGHTS).chmod((part / CONFIG).stat().st_mode)  # safetensors writes for the owner alone
    (part / PREPROCESSING).write_text(preprocessing.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(part / TOKENIZER)


def portable_config(method: Method) -> MethodConfig:
    """Return the method's config with towers described by themselves instead of by local folders."""
    config = method.config
    image = config.image.model_copy(update={"weights": None})
    if config.text is None or method.text_encoder is None:
        return config.model_copy(update={"image": image})
    text = config.text.model_copy(update={"folder": None, "architecture": method.text_encoder.architecture})
    return config.model_copy(update={"image": image, "text": text})


def load_model(folder: Path, device: str | torch.device = "cpu") -> LoadedModel:
    """Rebuild a saved model, in evaluation mode.

    Raises:
        UserError: No model folder, another format, or weights that do not fit key by key.
    """
    import torch

    from medvlp.methods import METHODS
    from medvlp.methods.context import MethodContext
    from medvlp.models.weights import check_keys, read_state

    folder = Path(folder)
    described = _read_json(folder / CONFIG)
    if described.get("format") != FORMAT:
        raise UserError(
            f"The model has format {described.get('format')!r}, this version of medvlp reads {FORMAT}.",
            folder,
            "Save the model again with this version, or use the version that wrote it.",
        )
    preprocessing = read_preprocessing(_read_json(folder / PREPROCESSING))
    config = MethodConfig.model_validate(described["method"])
    tokenizer = None
    if (folder / TOKENIZER).is_dir():
        from medvlp.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.from_folder(folder / TOKENIZER)
    context = MethodContext.from_json(described, tokenizer)
    with torch.random.fork_rng(devices=[]):
        method = METHODS.get(config.name)(config, context)
    state = _of_use(read_state(folder / WEIGHTS), method)
    method.drop_training_parts()
    check_keys(method.state_dict(), state, folder / WEIGHTS)
    method.load_state_dict(state, strict=True)
    return LoadedModel(method.to(device).eval(), preprocessing, tokenizer, context.label_names, described["record"])


def _of_use(state: Mapping[str, torch.Tensor], method: Method) -> dict[str, torch.Tensor]:
    """Return the tensors that are not of `training_parts`; folders of earlier versions hold these, too."""
    return {name: tensor for name, tensor in state.items() if name.partition(".")[0] not in method.training_parts}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("This is no model folder.", f"{file} is missing", "Give the folder model/ of a run.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The model file cannot be read: {error}", file, "Save the model again.") from error
