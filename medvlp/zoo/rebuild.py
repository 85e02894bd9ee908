"""An image tower as data: what builds it again anywhere, without the run, file or folder it came from.

Guarantee: a tower that is described, built and filled with its own weights gives the same features to the bit. Nothing
in a description names a machine, and nothing in it is evaluated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from medvlp.config.preprocessing import read_preprocessing
from medvlp.config.towers import AnyTowerConfig, ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models import towers
from medvlp.models.tower import Tower
from medvlp.models.vision2d import ImageTower
from medvlp.models.weights import check_keys, read_state
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.hub import HubTower
from medvlp.zoo.load import encoder_class, strictly
from medvlp.zoo.release import AnyImageConfig, ClipImageConfig, ImageConfig, VolumeImageConfig
from medvlp.zoo.released_towers import build_tower

CONFIG, ENCODER, PREPROCESSING = "config.json", "encoder.safetensors", "preprocessing.json"
"""Files of a fine-tuned model that rebuild its encoder."""


def describe_tower(tower: nn.Module) -> dict[str, Any]:
    """Return what `rebuild_tower` builds the tower from, its weights still to be filled in, as JSON types.

    Raises:
        UserError: The tower is of a kind that medvlp cannot build by itself.
    """
    if isinstance(tower, ImageTower):
        config = tower.config.model_copy(update={"weights": None, "freeze": False})
        return {"kind": "timm", "config": config.resolved(), "keep_embedding": tower.keep_embedding}
    if isinstance(tower, Tower):
        config = tower.config.model_copy(update={"weights": None, "freeze": False})
        return {"kind": config.kind, "config": config.resolved()}
    config = getattr(tower, "config", None)
    if isinstance(config, ImageConfig | VolumeImageConfig | ClipImageConfig):
        return {"kind": "released", "config": config.resolved(), "view": str(tower.view)}
    if isinstance(tower, HubTower):
        fields = tower.model.config.to_dict()
        kept = {name: value for name, value in fields.items() if name not in ("_name_or_path", "transformers_version")}
        return {"kind": "transformers", "config": kept, "pools": getattr(tower.model, "pooler", None) is not None}
    raise UserError(
        f"An image tower of the class {type(tower).__name__} cannot be saved apart from its method.",
        "encoder",
        "Use an encoder whose tower is one of medvlp's own.",
    )


def rebuild_tower(described: dict[str, Any]) -> tuple[nn.Module, int]:
    """Return a tower from its description, in evaluation mode, its weights still random, and the width it pools to."""
    kind, config = described["kind"], described["config"]
    tower: Any
    with torch.random.fork_rng(devices=[]):
        if kind == "timm":
            tower = ImageTower(ImageTowerConfig.model_validate(config))
            tower.keep_embedding = described["keep_embedding"]
        elif kind in ("volume", "video"):
            tower = towers.build_tower(TypeAdapter(AnyTowerConfig).validate_python(config))
        elif kind == "released":
            tower = build_tower(TypeAdapter(AnyImageConfig).validate_python(config))
            tower.view = described["view"]
        else:
            tower = HubTower(_transformer(config))
            if not described["pools"]:
                tower.model.pooler = None
    return tower.eval(), tower.dim


def _transformer(fields: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(**fields)
    model = AutoModel.from_config(config, trust_remote_code=False)
    return getattr(model, "vision_model", model)


def fine_tuned_encoder(folder: Path, described: dict[str, Any], name: str, device: str) -> Encoder:
    """Return the encoder of a fine-tuned model, its head left out.

    Args:
        folder: The model folder.
        described: Its `config.json`.
        name: In tables.
        device: Torch device.
    """
    tower, dim = rebuild_tower(described["tower"])
    state = read_state(folder / ENCODER)
    check_keys(tower.state_dict(), state, folder / ENCODER)
    tower.load_state_dict(state, strict=True)
    try:
        preprocessing = read_preprocessing(json.loads((folder / PREPROCESSING).read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"The preprocessing cannot be read: {error}", folder / PREPROCESSING, "Copy the model folder again."
        ) from error
    kind = encoder_class(preprocessing)
    encoder = kind(name, tower, dim, preprocessing, {"fine_tuned": described["tower"]}, device=device)
    encoder.loaded = strictly(len(state))
    return encoder
