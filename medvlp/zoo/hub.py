"""Vision models of transformers from a local folder, as image towers."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medvlp.config.preprocessing import Preprocessing, StoredImageConfig
from medvlp.errors import UserError
from medvlp.models.feature_maps import Maps, as_map, channel_norm, one_per_stride, plain_levels, without_grid
from medvlp.models.text_families import check_hub_loading
from medvlp.types import Features
from medvlp.zoo.encoder import Encoder
from medvlp.zoo.load import model_input, read_json, stored_for

if TYPE_CHECKING:
    from jaxtyping import Float

PROCESSOR = "preprocessor_config.json"
RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Numbers that a preprocessor_config.json holds (Pillow's)."""
LEFT_OVER = ("classifier.", "pooler.", "position_ids", "decoder.", "mask_token")
"""Parts that an image tower has no use for: heads, poolers, the decoder and mask token of masked pre-training."""


class HubTower(nn.Module):
    """A transformers vision model as image tower; tokens without class and register tokens.

    `pooled` is the model's own pooled output where its weights hold one, else the class token or the mean of
    the tokens.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        config = model.config
        self.dim: int = getattr(config, "hidden_size", 0) or config.hidden_sizes[-1]
        self.patch: int | None = getattr(config, "patch_size", None)

    def forward(self, pixels: Float[torch.Tensor, "b c h w"]) -> Features:
        """Return the features of normalised pixels."""
        output = self.model(pixel_values=pixels)
        states = output.last_hidden_state
        pooled = getattr(output, "pooler_output", None)
        if states.ndim == 4:
            grid = (states.shape[2], states.shape[3])
            tokens = states.flatten(2).transpose(1, 2)
            return Features(tokens, tokens.mean(1) if pooled is None else pooled.flatten(1), grid)
        grid = self._grid(pixels, states.shape[1])
        prefix = states.shape[1] - grid[0] * grid[1]
        tokens = states[:, prefix:]
        if pooled is None:
            pooled = states[:, 0] if prefix else tokens.mean(1)
        return Features(tokens, pooled, grid)

    def feature_maps(self, pixels: Float[torch.Tensor, "b c h w"]) -> Maps:
        """Return the maps of normalised pixels, from shallow to deep; see `models.feature_maps`.

        Position tables are resized by the model's own rule.

        Raises:
            UserError: The model does not give its hidden states.
        """
        takes = inspect.signature(self.model.forward).parameters
        options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in takes else {}
        with _kept_stages(self.model) as stages:
            output = self.model(pixel_values=pixels, output_hidden_states=True, **options)
        states, last = output.hidden_states, output.last_hidden_state
        if not states:
            raise without_grid(type(self.model).__name__)
        if last.ndim == 4:
            return [*one_per_stride(list(states))[:-1], last]
        grid = self._grid(pixels, last.shape[1])
        if stages:
            squares = [as_map(each, [round(each.shape[1] ** 0.5)] * 2) for each in stages]
            return [*map(channel_norm, squares[:-1]), as_map(last, grid)]
        blocks, places = [*states[1:-1], last], grid[0] * grid[1]
        return [as_map(blocks[level][:, -places:], grid) for level in plain_levels(len(blocks))]

    def set_input_size(self, side: int) -> None:
        """Do nothing: transformers' models take any size."""

    def _grid(self, pixels: torch.Tensor, tokens: int) -> tuple[int, int]:
        if self.patch is not None and (pixels.shape[2] // self.patch) * (pixels.shape[3] // self.patch) <= tokens:
            return pixels.shape[2] // self.patch, pixels.shape[3] // self.patch
        # A hierarchical model (Swin): no prefix tokens, square input.
        side = round(tokens**0.5)
        return side, side


@contextmanager
def _kept_stages(model: Any) -> Iterator[list[torch.Tensor]]:
    """Keep what the stages of a hierarchical transformer (Swin) give before they are reduced; nothing of others."""
    kept: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    stages = getattr(getattr(model, "encoder", None), "layers", [])
    handles = [stage.blocks[-1].register_forward_hook(keep) for stage in stages if hasattr(stage, "blocks")]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def load_hub(folder: Path, stored: StoredImageConfig | None, device: str) -> Encoder:
    """Return the encoder of a transformers folder; see `medvlp.zoo.load_encoder`."""
    from transformers import AutoModel

    processor = read_json(folder / PROCESSOR, "transformers' image processor writes it")
    try:
        model, info = AutoModel.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            dtype=torch.float32,
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"The model cannot be loaded: {str(error).splitlines()[0]}",
            folder,
            "The folder needs config.json and model.safetensors of a transformers vision model.",
        ) from error
    check_hub_loading(info, folder, LEFT_OVER)
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", "") != "pixel_values":
        raise UserError("This is no vision model.", folder, "Give the folder of a model that takes pixel_values.")
    if any(".pooler." in f".{key}" for key in info["missing_keys"]):
        model.pooler = None
    tower = HubTower(model)
    input_config = model_input(_side(processor), *processor_norm(processor), folder)
    interpolation = RESAMPLING.get(processor.get("resample", -1), "")
    preprocessing = Preprocessing(stored=stored or stored_for(input_config.size, interpolation), input=input_config)
    fields = model.config.to_dict()
    architecture: dict[str, Any] = {
        "transformers": {k: v for k, v in fields.items() if k not in ("_name_or_path", "transformers_version")}
    }
    encoder = Encoder(f"hf:{folder.name}", tower, tower.dim, preprocessing, architecture, device=device)
    left = sorted(info["unexpected_keys"])
    more = f"{len(left)} left out, no part of an image tower: {', '.join(left[:4])}"
    encoder.loaded = (f"{len(model.state_dict())} tensors, all of the model", *([more] if left else []))
    return encoder


def _side(processor: dict[str, Any]) -> int:
    """Return the side of the model input: the crop where there is one, else the resize."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or 224
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge") or 224
    return int(size)


def processor_norm(processor: dict[str, Any]) -> tuple[Any, Any]:
    """Return mean and standard deviation of an image processor's configuration."""
    if not processor.get("do_normalize", True):
        return (0.0,), (1.0,)
    return processor.get("image_mean", (0.5,)), processor.get("image_std", (0.5,))
