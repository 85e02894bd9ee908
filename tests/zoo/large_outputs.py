"""What the larger rebuilt models compute, under the names of the reference arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
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


def _medklip(model: Any, folder: Path, reference: Reference) -> Arrays:
    image, book = model.encode_image(image_of(folder)), torch.from_numpy(reference["in_book"])
    stream = model.streams["finding"]
    output = model.decode(image, {"finding": book}, attention=True)["finding"]
    alone = model.findings(image, model.query(book), attention=True)
    assert torch.equal(alone.logits, output.logits)
    return {
        "tokens": image.tokens,
        "pooled": image.pooled,
        "patch_emb": stream.tokens(image.tokens),
        "queries": model.query(book),
        "query_features": output.features,
        "cl_features": output.projected,
        "logits": output.logits,
        "probability": output.logits.softmax(2)[..., 1],
        "attention_mean": output.attention.mean(0),
        "attention_layers_query20": output.attention[:, :, 20],
    }


def _medslip(model: Any, folder: Path, reference: Reference) -> Arrays:
    image = model.encode_image(image_of(folder))
    names = {"finding": "pathology", "anatomy": "anatomy"}
    books = {own: torch.from_numpy(reference[f"in_{official}_book"]) for own, official in names.items()}
    outputs = model.decode(image, books, attention=True)
    streams = dict(zip(names, model.gate(image.tokens), strict=True))
    made = {"tokens": image.tokens, "pooled": image.pooled, "gate": model.gate.linear(image.tokens)}
    for own, official in names.items():
        output = outputs[own]
        made |= {
            f"patch_emb_{official}": model.streams[own].tokens(streams[own]),
            f"query_features_{official}": output.features,
            f"logits_{official}": output.logits,
            f"probability_{official}": output.logits.softmax(2)[..., 1],
            f"attention_{official}_mean": output.attention.mean(0),
            f"attention_{official}_layers_query20": output.attention[:, :, 20],
            f"cl_{official}": output.projected,
        }
    return made | {"triplet_logits": outputs["anatomy"].features @ outputs["finding"].features.mT}


def _fusion(model: Any, folder: Path, reference: Reference) -> Arrays:
    pixels, batch = image_of(folder), text_of(reference)
    small = model.encode_image(image_of(folder, [2, 3, 224, 224]))
    image, text = model.encode_image(pixels), model.encode_text(batch)
    fused = model.fuse(image, text)
    made = {
        "tokens": image.tokens,
        "pooled": image.pooled,
        "pooled_mean": image.tokens.mean(1),
        "pooled_224": small.pooled,
        "tokens_224": small.tokens,
        "text_cls": text.pooled,
        "fused_text": fused.text,
        "fused_image": fused.image,
        "fused_cls": model.fusion.pool(fused),
        "itm_logits": model.match(fused),
    }
    if "fused_cls_image_only" in reference:
        made["fused_cls_image_only"] = model.fusion.pool(model.fuse_image(pixels))
        made["fused_cls_text_only"] = model.fusion.pool(model.fuse_text(batch))
    return made


LARGE: dict[str, Outputs] = {
    "arl": _fusion,
    "conceptclip": _concept,
    "keep": _keep,
    "llm2clip4cxr_visual": _eva,
    "m3ae": _fusion,
    "medklip": _medklip,
    "medslip": _medslip,
    "ptunifier": _fusion,
    "raddino": _rad_dino,
}
