"""From a spec to an encoder: which loader, with which preprocessing.

Guarantee: a bad spec says what is possible; weights are strict; a random encoder depends on its seed alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from medvlp.config.methods import MethodConfig
from medvlp.config.preprocessing import (
    AnyPreprocessing,
    AnyStored,
    ClipPreprocessing,
    ModelInputConfig,
    Preprocessing,
    StoredImageConfig,
    StoredVideoConfig,
    StoredVolumeConfig,
    VolumePreprocessing,
    read_preprocessing,
)
from medvlp.config.towers import ClipTowerConfig, ImageTowerConfig, VolumeTowerConfig
from medvlp.errors import UserError
from medvlp.methods._artifact import CONFIG, PREPROCESSING, load_model, portable_config
from medvlp.models.device import resolve_device
from medvlp.models.towers import build_tower
from medvlp.models.vision2d import ImageTower, load_timm_weights
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.text_side import TextSide

FORMS = (
    "RUN (a run folder or its model/), zoo:NAME:FILE or NAME:FILE, timm:FOLDER, hf:FOLDER, random:NAME or "
    "random:NAME@SIZE (of videos on each frame), of volumes random:NAME@SIZE/PATCH or random:swin3d@SIZE, random:RUN"
)
SWIN = "swin3d"
RANDOM_NORM = {"mean": (0.5,), "std": (0.25,)}


def full_spec(spec: str) -> str:
    """Return a spec in full: `NAME:FILE` stands for `zoo:NAME:FILE` where NAME is a format and no such path exists."""
    from medvlp.zoo.release import release_names

    name, colon, file = spec.partition(":")
    return f"zoo:{spec}" if colon and file and name in release_names() and not Path(spec).exists() else spec


def load(spec: str, *, stored: AnyStored | None, device: str, seed: int) -> Encoder:
    """See `medvlp.zoo.load_encoder`."""
    device = resolve_device(device)
    spec = full_spec(str(spec))
    kind, colon, rest = spec.partition(":")
    # A path may hold a colon, so an unknown beginning counts as a path if it exists.
    if not colon or Path(spec).exists():
        return _run(Path(spec), device)
    if kind not in ("zoo", "timm", "hf", "random") or not rest:
        raise UserError(f"'{spec}' names no encoder.", "encoder", f"Use one of: {FORMS}.")
    image = stored if isinstance(stored, StoredImageConfig) else None
    if kind == "random":
        return _random(rest, stored, device, seed)
    if kind == "zoo":
        from medvlp.zoo.released_encoder import load_zoo

        return load_zoo(rest, image, device)
    folder = Path(rest)
    if not folder.is_dir():
        raise UserError(f"The folder of '{spec}' does not exist.", folder, "Give a local folder.")
    if kind == "timm":
        return _timm(folder, image, device)
    from medvlp.zoo.hub import load_hub

    return load_hub(folder, image, device)


def _run(path: Path, device: str) -> Encoder:
    if not path.is_dir():
        raise UserError(f"There is no encoder '{path}'.", path.absolute(), f"Use one of: {FORMS}.")
    folder = path if (path / CONFIG).is_file() else path / "model"
    if not (folder / CONFIG).is_file():
        started = (path / "checkpoints").is_dir() or (path / "config.yaml").is_file()
        raise UserError(
            "The run has no finished model." if started else "The folder is neither a run nor a model.",
            path,
            "Run the same `medvlp pretrain` or `finetune` command again: it resumes and writes model/ at its end."
            if started
            else f"Use one of: {FORMS}.",
        )
    name = folder.absolute().parent.name if folder.name == "model" else folder.name
    described = read_json(folder / CONFIG, "a run writes it")
    if "tower" in described:
        from medvlp.zoo.rebuild import fine_tuned_encoder

        return fine_tuned_encoder(folder, described, name, device)
    model = load_model(folder)
    method = model.method
    architecture: dict[str, Any] = {
        "medvlp": portable_config(method).resolved(),
        "vocab_size": method.context.vocab_size,
    }
    text = None
    if model.tokenizer is not None and method.config.text is not None:
        architecture["tokenizer"] = model.tokenizer.hash
        text = TextSide(method, model.tokenizer, method.config.text.max_tokens)
    tower = method.image_encoder
    kind = encoder_class(model.preprocessing)
    encoder = kind(name, tower, tower.dim, model.preprocessing, architecture, text=text, device=device)
    encoder.loaded = strictly(len(method.state_dict()))
    return encoder


def encoder_class(preprocessing: AnyPreprocessing) -> type[Encoder]:
    """Return the class of encoders of what a preprocessing is for."""
    if preprocessing.kind == "volume":
        from medvlp.zoo.volume_encoder import VolumeEncoder

        return VolumeEncoder
    if preprocessing.kind == "video":
        from medvlp.zoo.clip_encoder import ClipEncoder

        return ClipEncoder
    return Encoder


def strictly(count: int) -> tuple[str, ...]:
    """Return the words for a load in which file and model hold the same names and shapes."""
    return (f"{count} tensors, all of the model and all of the file",)


def _random(rest: str, stored: AnyStored | None, device: str, seed: int) -> Encoder:
    if Path(rest).is_dir():
        return _random_run(Path(rest), device, seed)
    name, _, sides = rest.partition("@")
    side, slash, patch = sides.partition("/")
    if slash or name == SWIN:
        taken: dict[str, Any] = {"size": (_side(side, rest, 96, 8),) * 3}
        of_vit = {"name": name, "patch": (_side(patch, rest, 16, 1),) * 3}
        family = {"family": "swin"} if name == SWIN else {"family": "vit", **of_vit}
        volumes = VolumeTowerConfig.model_validate({"kind": "volume", "input": taken, **family})
        how: AnyPreprocessing = VolumePreprocessing(
            stored=stored if isinstance(stored, StoredVolumeConfig) else StoredVolumeConfig(), input=volumes.input
        )
        return _untrained(f"random:{rest}", volumes, how, {"tower": volumes.resolved()}, device, seed)
    if isinstance(stored, StoredVideoConfig):
        frames = {"family": "frames", "name": name, "input": {"size": _side(side, rest, 224, 16), **RANDOM_NORM}}
        clips = ClipTowerConfig.model_validate({"kind": "video", **frames})
        how = ClipPreprocessing(stored=stored, input=clips.input)
        return _untrained(f"random:{rest}", clips, how, {"tower": clips.resolved()}, device, seed)
    channels = 3 if isinstance(stored, StoredImageConfig) and stored.colour == "keep" else 1
    taken = {"size": _side(side, rest, 224, 16), "channels": channels, **RANDOM_NORM}
    config = ImageTowerConfig(name=name, input=ModelInputConfig.model_validate(taken))
    how = Preprocessing(
        stored=stored if isinstance(stored, StoredImageConfig) else StoredImageConfig(), input=config.input
    )
    return _untrained(f"random:{rest}", config, how, {"timm": config.resolved()}, device, seed)


def _random_run(path: Path, device: str, seed: int) -> Encoder:
    folder = path if (path / CONFIG).is_file() else path / "model"
    described = read_json(folder / CONFIG, "a run writes it")
    if "method" not in described:
        raise UserError("Only the tower of a pre-trained run can be drawn at random.", path, "Name such a run.")
    config = MethodConfig.model_validate(described["method"]).image
    preprocessing = read_preprocessing(read_json(folder / PREPROCESSING, "a run writes it"))
    return _untrained(f"random:{path.name}", config, preprocessing, {"tower": config.resolved()}, device, seed)


def _side(text: str, rest: str, default: int, least: int) -> int:
    """Return a number of pixels or voxels of a spec."""
    if text and not text.isdigit():
        raise UserError(f"The size '{text}' is no number.", f"random:{rest}", "Write e.g. random:resnet18@128.")
    side = int(text) if text else default
    if not least <= side <= 2048:
        raise UserError(f"The size {side} is not between {least} and 2048.", f"random:{rest}", "Write e.g. @224.")
    return side


def _untrained(
    shown: str,
    config: ImageTowerConfig | VolumeTowerConfig | ClipTowerConfig,
    preprocessing: AnyPreprocessing,
    architecture: dict[str, Any],
    device: str,
    seed: int,
) -> Encoder:
    """Return an encoder whose weights depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tower = build_tower(config)
    shown += f"#{seed}" if seed else ""
    encoder = encoder_class(preprocessing)(shown, tower, tower.dim, preprocessing, architecture, device=device)
    encoder.loaded = ("drawn at random, from no file",)
    return encoder


def _timm(folder: Path, stored: StoredImageConfig | None, device: str) -> Encoder:
    described = read_json(folder / "config.json", "timm's save_for_hf writes it")
    if not isinstance(described.get("architecture"), str):
        raise UserError("The config.json names no timm architecture.", folder, "Use hf:FOLDER for transformers models.")
    trained = {**described, **described.get("pretrained_cfg", {})}
    arguments = dict(described.get("model_args") or {})
    arguments.pop("num_classes", None)
    if described.get("global_pool"):
        arguments.setdefault("global_pool", described["global_pool"])
    channels, *sides = trained.get("input_size", (3, 224, 224))
    channels, sides = arguments.pop("in_chans", channels), arguments.pop("img_size", sides)
    # A size may be one number or two; of two that differ the model input cannot be square.
    side = sides[0] if isinstance(sides, list | tuple) and len(set(sides)) == 1 else sides
    input_config = model_input(side, trained.get("mean", ()), trained.get("std", ()), folder, channels)
    config = ImageTowerConfig(name=described["architecture"], input=input_config)
    with torch.random.fork_rng(devices=[]):
        tower = ImageTower(config, arguments)
    read = load_timm_weights(tower.backbone, folder)
    preprocessing = Preprocessing(
        stored=stored or stored_for(input_config.size, trained.get("interpolation", "")), input=input_config
    )
    architecture: dict[str, Any] = {"timm": config.resolved(), "model_args": arguments}
    encoder = Encoder(f"timm:{folder.name}", tower, tower.dim, preprocessing, architecture, device=device)
    changed = {"fitted to the model": read["adapted"], "left out, the classifier": read["dropped"]}
    lines = (f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in changed.items() if names)
    encoder.loaded = (f"{len(tower.backbone.state_dict())} tensors, all of the model", *lines)
    return encoder


def read_json(file: Path, origin: str) -> dict[str, Any]:
    """Return the mapping of a JSON file of a model folder.

    Raises:
        UserError: Missing or unreadable; `origin` says where the file comes from.
    """
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"The model folder has no {file.name}.", file.parent, f"Put it there: {origin}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"The file cannot be read: {error}", file, "Fetch the model folder again.") from error
    if not isinstance(described, dict):
        raise UserError("The file holds no mapping.", file, "Fetch the model folder again.")
    return described


def model_input(size: Any, mean: Any, std: Any, folder: Path, channels: Any = 3) -> ModelInputConfig:
    """Return the model input of a foreign encoder, its own mean and deviation kept."""
    try:
        return ModelInputConfig(size=size, channels=channels, mean=tuple(mean), std=tuple(std))
    except (TypeError, ValueError) as error:
        raise UserError(
            f"The folder's preprocessing cannot be used: {error}", folder, "Mend mean, std and size there."
        ) from error


def stored_for(size: int, interpolation: str) -> StoredImageConfig:
    """Return how files become squares for a foreign encoder: padded, at its own size, by its filter if we have it."""
    known = interpolation if interpolation in ("bilinear", "bicubic", "lanczos") else "area"
    return StoredImageConfig.model_validate({"size": size, "interpolation": known})
