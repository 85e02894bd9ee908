"""What the larger rebuilt models compute, under the names of the reference arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from released_files import image_of
from released_outputs import Arrays, Outputs, image_outputs, text_of

Reference = Mapping[str, np.ndarray]


def _keep(model: Any, folder: Path, reference: Reference) -> Arrays:
    made = image_outputs(model, image_of(folder))
    features = model.encode_text(text_of(reference))
    return made | {"text_hidden": features.tokens, "text_proj": model.project_text(features)}


def _concept(model: Any, folder: Path, reference: Reference) -> Arrays:
    features = model.encode_text(text_of(reference))
    return {
        **image_outputs(model, image_of(folder)),
        "text_pooled": model.head("text").raw(features.pooled),
        "text_proj": model.project_text(features),
        "text_token_proj": model.head("text_tokens")(features.tokens),
        "logit_scale": model.logit_scale,
        "logit_bias": model.bias.detach(),
        "concept_logit_scale": model.concept_logit_scale,
    }


def _rad_dino(model: Any, folder: Path, reference: Reference) -> Arrays:
    made = image_outputs(model, image_of(folder))
    small = image_of(folder, [2, 3, 224, 224])
    by_size = model.encode_image(small)
    return {
        **made,
        "patch_mean": made["tokens"].mean(1),
        "pooled_224_size": by_size.pooled,
        "tokens_224_size": by_size.tokens,
        "pooled_224_scale": model.encode_image(small, "dinov2").pooled,
    }


def _eva(model: Any, folder: Path, reference: Reference) -> Arrays:
    sine, cosine = model.image.backbone.rope.get_embed([32, 32]).chunk(2, dim=-1)
    return {**image_outputs(model, image_of(folder)), "rope_sin": sine[::32], "rope_cos": cosine[::32]}


LARGE: dict[str, Outputs] = {
    "conceptclip": _concept,
    "keep": _keep,
    "llm2clip4cxr_visual": _eva,
    "raddino": _rad_dino,
}
