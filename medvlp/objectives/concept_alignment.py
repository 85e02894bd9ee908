"""ConceptCLIP: concepts of a caption matched with the image patch that shows them best, and its zero-shot rule.

Guarantee: pads and captions without concept add nothing; a concept is matched with the images of all ranks, and the
mean over ranks of the value, and DDP's mean gradient, are those of one process with the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import at_least_float32, count_of, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    Scalar = Float[torch.Tensor, ""]


def region_concept_alignment(
    image_tokens: Float[torch.Tensor, "b p d"],
    text_tokens: Float[torch.Tensor, "b l d"],
    spans: Int[torch.Tensor, "b s 2"],
    scale: Scalar,
    bias: Scalar,
) -> tuple[Scalar, Scalar]:
    """Binary cross-entropy of every image with every concept, summed and divided by the number of concepts.

    RC-Align of ConceptCLIP (arXiv 2501.15579, as in its official code): concept k is the mean of its tokens, brought to
    length 1; `s(b, k) = max_p (scale * cos(patch_bp, k) + bias)`; `-log sigmoid(s)` where k is named in the caption of
    image b, `-log sigmoid(-s)` elsewhere.

    Args:
        image_tokens: Of any length.
        text_tokens: Row i belongs to image i.
        spans: Tokens (first, last + 1) of each concept, the class token counted; -1 where a text has fewer.
        scale: Factor of the cosines.
        bias: Added to all logits.

    Returns:
        Value, and the number of concepts of the local texts.
    """
    device = image_tokens.device
    with torch.autocast(device.type, enabled=False):
        patches, scale, bias = unit(image_tokens), at_least_float32(scale), at_least_float32(bias)
        texts, concepts = span_means(at_least_float32(text_tokens), spans)
        counts = gather_counts([len(patches), len(concepts)], device)
        image_counts, concept_counts = ([row[side] for row in counts] for side in (0, 1))
        offset, total = sum(image_counts[: rank()]), sum(concept_counts)
        everyones = gather_with_gradient(unit(concepts), concept_counts)
        owners = gather_with_gradient(texts + offset, concept_counts)
        if total == 0:
            return nothing(patches, concepts, scale, bias)
        best = torch.einsum("bpd,kd->bkp", patches, everyones).max(2).values
        own = owners == torch.arange(offset, offset + len(patches), device=device)[:, None]
        logits = scale * best + bias
        value = -functional.logsigmoid(torch.where(own, logits, -logits)).sum() * (world_size() / total)
    return value, count_of(len(concepts), patches)


def span_means(
    tokens: Float[torch.Tensor, "b l d"], spans: Int[torch.Tensor, "b s 2"]
) -> tuple[Int[torch.Tensor, " k"], Float[torch.Tensor, "k d"]]:
    """Return the row of the text and the mean token of every span; spans that are not there are left out.

    Args:
        tokens: Token features.
        spans: (first, last + 1), -1 where there is none.
    """
    position = torch.arange(tokens.shape[1], device=tokens.device)
    inside = (position >= spans[..., :1]) & (position < spans[..., 1:])
    real = (spans[..., 0] >= 0) & inside.any(2)
    means = torch.einsum("bsl,bld->bsd", inside.to(tokens.dtype), tokens) / inside.sum(2).clamp_min(1)[..., None]
    return real.nonzero()[:, 0], means[real]


def top_patch_logits(
    image_tokens: Float[torch.Tensor, "b p d"], texts: Float[torch.Tensor, "k d"], scale: Scalar, top: int
) -> Float[torch.Tensor, "b k"]:
    """Return the mean of the `top` largest `scale * cosine` over the patches, for each text.

    Args:
        image_tokens: Of any length.
        texts: Unit vectors.
        scale: Factor of the cosines.
        top: Patches; at most all.
    """
    cosines = torch.einsum("bpd,kd->bkp", unit(image_tokens), texts)
    return scale * cosines.topk(min(top, cosines.shape[2]), dim=2).values.mean(2)
