"""What rebuilt released models of volumes compute: every n-th position, under the names of the reference arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from released_files import image_of
from released_outputs import Arrays, text_of
from torch.nn import functional

from medvlp.models.feature_maps import as_map
from medvlp.types import Features
from medvlp.zoo.axes import from_axes, to_axes

Reference = Mapping[str, np.ndarray]
VolumeOutputs = Callable[[Any, Path, Reference], Arrays]


def volumes_of(model: Any, folder: Path, axes: str | None = None) -> torch.Tensor:
    """Return the volumes of a folder, which lie along the axes of the official code, or along others, in RAS."""
    return from_axes(image_of(folder), axes or model.image.config.axes)


def tokens_of(model: Any, features: Features) -> torch.Tensor:
    """Return the tokens in the order of the official code."""
    return to_axes(as_map(features.tokens, features.grid), model.image.config.axes).flatten(2).transpose(1, 2)


def one_by_one(model: Any, pixels: torch.Tensor) -> Features:
    """Return the features of volumes that together would not fit into memory."""
    parts = [model.encode_image(one[None]) for one in pixels]
    return Features(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "pooled")), parts[0].grid
    )


def rows(map_: torch.Tensor, step: int) -> torch.Tensor:
    """Return every n-th position of the first map `[b d i j k]`."""
    return map_[:1].flatten(2).transpose(1, 2)[:, ::step]


def _texts(model: Any, reference: Reference) -> Arrays:
    features = model.encode_text(text_of(reference))
    return {"text_cls": features.tokens[:, 0], "text_proj": model.head("text")(features.pooled)}


def _ctclip(model: Any, folder: Path, reference: Reference) -> Arrays:
    net, turned = model.image.backbone, to_axes(volumes_of(model, folder), model.image.config.axes)
    encoded = torch.cat([net.encode(one[None]) for one in turned])  # one at a time: memory
    codes = net.quantiser.choose(encoded.flatten(0, -2)).view(2, -1)
    stored = torch.from_numpy(reference["codebook_indices"].astype(np.int64))
    sure = torch.from_numpy(reference["code_margin"]) > 1e-5
    assert torch.equal(codes[0][sure], stored[0][sure])
    assert (codes == stored).double().mean() > 0.995
    tokens = net.quantiser.table[stored].view_as(encoded)  # the stored codes, so that the rest is comparable
    mean = tokens.mean(1)
    return {
        "patch_embedding": net.embed(net.patches(turned[:1])).flatten(1, 3)[:, ::256],
        "encoded": encoded[:1].flatten(1, 3)[:, ::128],
        "encoded_t0": encoded[:1, 0].flatten(1, 2)[:, ::16],
        "codebook_indices": stored,
        "code_margin": torch.from_numpy(reference["code_margin"]),
        "tokens": tokens[:1].flatten(1, 3)[:, ::128],
        "pooled_zmean": mean[:1].flatten(1, 2)[:, ::8],
        "proj": functional.normalize(model.image.latent(tokens), dim=1),
        "scale": model.logit_scale,
        **_texts(model, reference),
    }


def _m3d(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels = volumes_of(model, folder)
    features, axes = one_by_one(model, pixels), model.image.config.axes
    states = list(model.image.states(to_axes(pixels[:1], axes)))
    tokens = tokens_of(model, features)
    return {
        "tokens": tokens[:1, ::16],
        "pooled": features.pooled,
        "layer_minus2": states[-2][:1, 1::64],
        "proj": model.project_image(features),
        "proj_tokens": model.head("image")(tokens)[:1, ::64],
        "text_proj": _texts(model, reference)["text_proj"],
    }


def _merlin(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels = volumes_of(model, folder, "RAS")  # the official model puts the slices first
    features = one_by_one(model, pixels)
    own = model.image.maps(to_axes(pixels[:1], model.image.config.axes))
    return {
        "tokens": tokens_of(model, features)[:1, ::4],
        "stage3": rows(own[3], 256),
        "stage1": rows(own[1], 8192),
        "pooled": features.pooled,
        "proj_raw": model.head("image")(features.pooled),
        "proj": model.project_image(features),
        "phenotype_logits": model.head("phenotypes")(features.pooled),
        "map_shape": torch.tensor([1, own[4][0, 0].numel(), own[4].shape[1]]),
        **_texts(model, reference),
    }


def _fvlm(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels, axes = volumes_of(model, folder), model.image.config.axes
    features, turned = one_by_one(model, pixels), to_axes(pixels, axes)
    states = list(model.image.states(turned[:1]))
    flags = np.unpackbits(reference["in_mask_flags"], axis=-1).astype(bool).reshape(2, 4, 7, 16, 11)
    masks = from_axes(torch.from_numpy(flags), axes)
    smaller = model.encode_image(from_axes(turned[:1, :, :96, :256, :320], axes))
    organs = model.organ_states(pixels, masks)
    return {
        "tokens": tokens_of(model, features)[:1, ::8],
        "pooled": features.pooled,
        **{f"block{block}": states[block][:1, ::64] for block in (3, 6, 9)},
        "organ_query_lung": organs[:, 0],
        "proj": model.project_organs(organs),
        "text_proj": model.head("text")(torch.from_numpy(reference["in_text_cls"])),
        "tokens_smaller_input": tokens_of(model, smaller)[:1, ::16],
    }


def _simcrop(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels = volumes_of(model, folder)
    features, net = one_by_one(model, pixels), model.image.backbone
    turned = to_axes(pixels[:1], model.image.config.axes)
    return {
        "patch_embedding": rows(net.patch_embed.proj(turned), 32),
        "tokens": tokens_of(model, features)[:1, ::16],
        "cls": model.encode_image(pixels, "cls").pooled,
        "pooled": features.pooled,
        "pooled_layernorm_without_weights": functional.layer_norm(features.pooled, features.pooled.shape[1:], eps=1e-6),
    }


def _velvet(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels = volumes_of(model, folder)
    features = one_by_one(model, pixels)
    own = model.image.maps(to_axes(pixels, model.image.config.axes))
    return {
        "tokens": tokens_of(model, features)[:1],
        "stage3": rows(own[3], 4),
        "stage2": rows(own[2], 32),
        "stage1": rows(own[1], 512),
        "pooled": features.pooled,
        "proj": model.head("image")(features.pooled),
        "proj_sentence": model.head("sentence")(rows(own[3], 8)),
        "proj_word": model.head("word")(rows(own[2], 128)),
    }


def _voco(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels = volumes_of(model, folder)
    features, tower = one_by_one(model, pixels), model.image
    turned = to_axes(pixels[:1], tower.config.axes)
    states = tower.states(turned)
    blocks = tower.blocks(turned, states)
    head = {name: reference_weight(f"student.layer1.0.{name}") for name in ("weight", "bias")}
    return {
        "tokens": tokens_of(model, features)[:1],
        **{f"stage{n}": rows(states[n], step) for n, step in enumerate((1024, 128, 16, 2))},
        "pooled": features.pooled,
        "encoder10": rows(blocks[4], 1),
        "encoder4": rows(blocks[3], 16),
        "encoder1": rows(blocks[0], 8192),
        "student_linear1": functional.linear(features.pooled, **head),
    }


def reference_weight(name: str) -> torch.Tensor:
    """Return a tensor of VoCo's file that its encoder has no use for."""
    from released_files import tensor_of

    return tensor_of(name, {"weight": [1024, 1152], "bias": [1024]}[name.rpartition(".")[2]], "float32", {})


VOLUMES: dict[str, VolumeOutputs] = {
    "ctclip": _ctclip,
    "fvlm": _fvlm,
    "m3d_clip": _m3d,
    "merlin": _merlin,
    "simcrop": _simcrop,
    "velvet_med": _velvet,
    "voco_b": _voco,
}
