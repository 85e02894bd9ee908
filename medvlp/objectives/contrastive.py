"""Image-text contrast: InfoNCE with one positive each, and soft-label cross-entropy over a target matrix.

Guarantee: each function normalises its inputs, computes logits and softmax in at least float32 also under autocast, and
returns `(value, count)`. On several ranks `value` is the loss of the local rows against everybody's, scaled such that
its mean over the ranks, and DDP's mean gradient, are those of one process with the whole batch. `count` is the number
of local cross-entropy terms.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[torch.Tensor, ""]


def info_nce(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "b d"],
    scale: Scalar,
    image_weight: float = 0.5,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each image against all texts and of each text against all images; row i belongs to row i.

    ConVIRT (arXiv 2010.00747, equations 2 to 4) is `scale = 1/0.1, image_weight = 0.75`; CLIP, and MedCLIP without
    labels ("hard"), is `image_weight = 0.5` with a learnt scale.

    Args:
        image: Projected images, of any length.
        text: Projected texts, of any length.
        scale: Factor of the cosines, 1/T.
        image_weight: Weight of image to text; text to image has the rest.
    """
    if len(image) != len(text):
        raise ValueError(f"info_nce needs pairs, got {len(image)} images and {len(text)} texts")
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = _unit(image), _unit(text), _at_least_float32(scale)
        counts = [row[0] for row in gather_counts([len(image)], image.device)]
        total, offset = sum(counts), sum(counts[: rank()])
        if total == 0:
            return _nothing(image, text, scale)
        by_image, by_text = _logits(image, text, scale, counts, counts)
        targets = torch.arange(offset, offset + len(image), device=image.device)
        image_term = functional.cross_entropy(by_image, targets, reduction="sum")
        text_term = functional.cross_entropy(by_text, targets, reduction="sum")
        value = (image_weight * image_term + (1 - image_weight) * text_term) * (world_size() / total)
    return value, _count(2 * len(image), image)


def soft_label_ce(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "t d"],
    image_labels: Float[torch.Tensor, "b k"],
    text_labels: Float[torch.Tensor, "t k"],
    scale: Scalar,
    text_augmented: Float[torch.Tensor, "t d"] | None = None,
    target_scale: float = 1.0,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy against soft targets from the similarity of labels; images and texts need not be paired.

    MedCLIP (arXiv 2210.10163, equations 2 to 5, as in its official code): the targets of image i are
    `softmax_j(image_labels_i . text_labels_j)`, those of text j the softmax over images; the mean of both directions.
    A label that is not mentioned (NaN) counts 0 in the similarity, as an absent one does; uncertain is -1. An image or
    text without any label gets uniform targets.

    Args:
        image: Projected images, of any length.
        text: Projected texts, of any length.
        image_labels: 1, 0, -1 or NaN.
        text_labels: The same columns.
        scale: Factor of the cosines.
        text_augmented: A second reading of the same texts; the two losses are averaged.
        target_scale: Factor of the label similarities before their softmax; MedCLIP has 1, larger is sharper.
    """
    if text_augmented is not None and len(text_augmented) != len(text):
        raise ValueError(f"{len(text_augmented)} augmented texts do not belong to {len(text)} texts")
    with torch.autocast(image.device.type, enabled=False):
        readings = [_unit(text)] if text_augmented is None else [_unit(text), _unit(text_augmented)]
        image, scale = _unit(image), _at_least_float32(scale)
        counts = gather_counts([len(image), len(text)], image.device)
        image_counts, text_counts = [row[0] for row in counts], [row[1] for row in counts]
        images, texts = sum(image_counts), sum(text_counts)
        if images == 0 or texts == 0:
            return _nothing(image, *readings, scale)
        of_image = image_labels.nan_to_num(0.0).to(image.dtype) * target_scale
        of_text = text_labels.nan_to_num(0.0).to(image.dtype)
        image_targets = (of_image @ gather_with_gradient(of_text, text_counts).T).softmax(1)
        text_targets = (of_text @ gather_with_gradient(of_image, image_counts).T).softmax(1)
        value = scale.new_zeros(())
        for reading in readings:
            by_image, by_text = _logits(image, reading, scale, image_counts, text_counts)
            image_term = functional.cross_entropy(by_image, image_targets, reduction="sum") / images
            text_term = functional.cross_entropy(by_text, text_targets, reduction="sum") / texts
            value = value + 0.5 * (image_term + text_term) * world_size() / len(readings)
    return value, _count(len(image) + len(text), image)


def _logits(
    image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, image_counts: list[int], text_counts: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return local images against all texts `[b T]` and local texts against all images `[t B]`."""
    if world_size() == 1:
        logits = scale * (image @ text.T)
        return logits, logits.T
    everyones_text = gather_with_gradient(text, text_counts)
    everyones_image = gather_with_gradient(image, image_counts)
    return scale * (image @ everyones_text.T), scale * (text @ everyones_image.T)


def _unit(tensor: torch.Tensor) -> torch.Tensor:
    return functional.normalize(_at_least_float32(tensor), dim=-1)


def _at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _nothing(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    zero = torch.stack([tensor.sum() * 0.0 for tensor in inputs]).sum()
    return zero, _count(0, zero)


def _count(number: int, like: torch.Tensor) -> torch.Tensor:
    return torch.full((), float(number), device=like.device)
