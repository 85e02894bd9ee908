"""Image-text contrast: InfoNCE, its soft, multi-positive and queue forms, and the pairwise sigmoid of SigLIP.

Guarantee: each function takes features of any length (`sigmoid_pairs`: unit vectors), computes logits and softmax in at
least float32 also under autocast, and returns `(value, count)`. On several ranks `value` is the loss of the local rows
against everybody's, scaled such that its mean over the ranks, and DDP's mean gradient, are those of one process with
the whole batch. `count` is the number of local terms. The factor of the cosines is always given (see `scale`), never
made here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks, nothing, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]


def info_nce(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "b d"],
    scale: Scalar,
    image_weight: float = 0.5,
    as_given: bool = False,
    epsilon: float = 0.0,
    label_smoothing: float = 0.0,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each image against all texts and of each text against all images; row i belongs to row i.

    ConVIRT (arXiv 2010.00747, equations 2 to 4) is `scale = 1/0.1, image_weight = 0.75`; CLIP, and MedCLIP without
    labels ("hard"), is `image_weight = 0.5` with a learnt scale. CT-CLIP (arXiv 2403.17834, as in its official code)
    adds `epsilon = 1e-20` to the exponential of the right answer and to the sum of all, which holds a term below 46;
    here without its overflow at large scales.

    Args:
        image: Projected images, of any length.
        text: Projected texts, of any length.
        scale: Factor of the cosines, 1/T.
        image_weight: Weight of image to text; text to image has the rest.
        as_given: Products instead of cosines: the features are not brought to unit length here.
        epsilon: Added to the exponentials of both logarithms; 0 is none.
        label_smoothing: Share of the target that is spread over all keys alike; not together with `epsilon`.
    """
    _check_pairs("info_nce", image, text)
    prepare = at_least_float32 if as_given else unit
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale = prepare(image), prepare(text), at_least_float32(scale)
        counts = [row[0] for row in gather_counts([len(image)], image.device)]
        total, offset = sum(counts), sum(counts[: rank()])
        if total == 0:
            return nothing(image, text, scale)
        by_image, by_text = _logits(image, text, scale, counts, counts)
        targets = torch.arange(offset, offset + len(image), device=image.device)
        image_term = _summed_nce(by_image, targets, epsilon, label_smoothing)
        text_term = _summed_nce(by_text, targets, epsilon, label_smoothing)
        value = (image_weight * image_term + (1 - image_weight) * text_term) * (world_size() / total)
    return value, count_of(2 * len(image), image)


def shared_text_nce(
    image: Float[torch.Tensor, "b d"],
    text: Float[torch.Tensor, "b*k d"],
    same: Int[torch.Tensor, " b*k"],
    scale: Scalar,
    image_weight: float = 0.5,
) -> tuple[Scalar, Scalar]:
    """`info_nce` where an image may have several texts and share them: what is equal is positive, never negative.

    The mean of `-log softmax` over the positives of a row, as in `multi_positive_nce`, in both directions. With one
    text an image, and none shared, it is `info_nce`.

    Args:
        image: Projected images, of any length.
        text: Projected texts, of any length; rows i * k to (i + 1) * k - 1 belong to image i.
        same: Equal numbers mean equal texts, on all ranks; see `text_numbers`.
        scale: Factor of the cosines.
        image_weight: Weight of image to text; text to image has the rest.
    """
    if len(text) != len(same) or (len(text) % len(image) if len(image) else len(text)):
        raise ValueError(f"{len(image)} images have {len(text)} texts with {len(same)} numbers")
    images = [row[0] for row in gather_counts([len(image)], image.device)]
    texts = [row[0] for row in gather_counts([len(text)], image.device)]
    everyones = gather_with_gradient(same, texts)
    own = everyones.reshape(sum(images), -1) if len(everyones) else everyones[:, None]
    first = sum(images[: rank()])
    of_image = (own[first : first + len(image), :, None] == everyones).any(1)
    of_text = (same[:, None, None] == own).any(2)
    by_image, image_count = multi_positive_nce(image, gather_with_gradient(text, texts), of_image, scale)
    by_text, text_count = multi_positive_nce(text, gather_with_gradient(image, images), of_text, scale)
    return image_weight * by_image + (1 - image_weight) * by_text, image_count + text_count


def text_numbers(texts: Sequence[str], device: torch.device | str = "cpu") -> Int[torch.Tensor, " b"]:
    """Return a number of each text, the same for equal texts on every rank; case and blanks make no difference."""
    spellings = (" ".join(text.lower().split()).encode() for text in texts)
    numbers = [int.from_bytes(sha256(spelling).digest()[:8], "little", signed=True) for spelling in spellings]
    return torch.tensor(numbers, dtype=torch.int64, device=device)


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
        readings = [unit(text)] if text_augmented is None else [unit(text), unit(text_augmented)]
        image, scale = unit(image), at_least_float32(scale)
        counts = gather_counts([len(image), len(text)], image.device)
        image_counts, text_counts = [row[0] for row in counts], [row[1] for row in counts]
        images, texts = sum(image_counts), sum(text_counts)
        if images == 0 or texts == 0:
            return nothing(image, *readings, scale)
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
    return value, count_of(len(image) + len(text), image)


def target_ce(
    query: Float[torch.Tensor, "b d"],
    keys: Float[torch.Tensor, "k d"],
    targets: Float[torch.Tensor, "b k"],
    scale: Scalar,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each query over all keys against its row of a target matrix; one direction.

    Args:
        query: Of any length; on several ranks the local ones.
        keys: Of any length, the same on every rank: a book, or `gather_with_gradient` of everybody's.
        targets: Not negative; each row is brought to the sum 1, a row of zeros is left out.
        scale: Factor of the cosines.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, keys, scale = unit(query), unit(keys), at_least_float32(scale)
        if len(keys) == 0:
            return mean_over_ranks(*nothing(query, keys, scale))
        targets = at_least_float32(targets)
        mass = targets.sum(1)
        shares = targets / torch.where(mass > 0, mass, 1.0)[:, None]
        total = -(shares * (scale * (query @ keys.T)).log_softmax(1)).sum()
        return mean_over_ranks(total, (mass > 0).sum().float())


def multi_positive_nce(
    query: Float[torch.Tensor, "b d"],
    keys: Float[torch.Tensor, "k d"],
    positives: Bool[torch.Tensor, "b k"],
    scale: Scalar,
) -> tuple[Scalar, Scalar]:
    """InfoNCE with several positives: the mean of `-log softmax` over the positives of a query, over all keys.

    The outer form of Khosla et al. (arXiv 2004.11362, equation 2). A query without a positive is left out; see
    `target_ce` for what the keys are on several ranks.
    """
    return target_ce(query, keys, positives.to(query.dtype), scale)


def queue_nce(
    query: Float[torch.Tensor, "b d"],
    keys: Float[torch.Tensor, "b d"],
    queue: Float[torch.Tensor, "q d"],
    scale: Scalar,
    teacher_query: Float[torch.Tensor, "b d"] | None = None,
    alpha: float = 0.0,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each query over a teacher's keys of the batch and of earlier ones; one direction.

    ALBEF (arXiv 2107.07651, equations 1 and 6, as in its official code): the target of row i is
    `alpha * softmax(scale * teacher_query_i . keys) + (1 - alpha) * one-hot(i)`. ALBEF's loss is the mean of image to
    text and text to image; TCL's terms within a modality have `alpha = 0`.

    Args:
        query: Of any length.
        keys: The teacher's features of the other side of the same rows; no gradient.
        queue: The teacher's features of earlier batches, the same on every rank; no gradient.
        scale: Factor of the cosines; its gradient does not pass through the targets.
        teacher_query: The teacher's features of this side; needed where `alpha` is above 0.
        alpha: Share of the teacher's soft targets.
    """
    _check_pairs("queue_nce", query, keys)
    if alpha and teacher_query is None:
        raise ValueError("queue_nce needs teacher_query for soft targets")
    with torch.autocast(query.device.type, enabled=False):
        query, scale = unit(query), at_least_float32(scale)
        counts = [row[0] for row in gather_counts([len(query)], query.device)]
        if sum(counts) == 0:
            return nothing(query, scale)
        offset = sum(counts[: rank()])
        with torch.no_grad():
            candidates = torch.cat([gather_with_gradient(unit(keys), counts), unit(queue)])
            own = torch.arange(offset, offset + len(query), device=query.device)
            targets = (1 - alpha) * functional.one_hot(own, len(candidates)).to(query.dtype)
            if alpha and teacher_query is not None:
                targets = targets + alpha * (scale * (unit(teacher_query) @ candidates.T)).softmax(1)
        total = -(targets * (scale * (query @ candidates.T)).log_softmax(1)).sum()
    return total * (world_size() / sum(counts)), count_of(len(query), query)


def sigmoid_pairs(
    image: Float[torch.Tensor, "b d"], text: Float[torch.Tensor, "b d"], scale: Scalar, bias: Scalar
) -> tuple[Scalar, Scalar]:
    """Binary cross-entropy of every image with every text, summed and divided by the number of images.

    SigLIP (arXiv 2303.15343, algorithm 1): `-1/b sum_ij log sigmoid(y_ij (scale * cos_ij + bias))`, y 1 for pairs and
    -1 for all others. `count` is the number of local images times that of all texts.

    Args:
        image: Projected images, of any length.
        text: Projected texts; row i belongs to image i.
        scale: Factor of the cosines.
        bias: Added to all logits; SigLIP starts from -10, as nearly all pairs are negative.
    """
    _check_pairs("sigmoid_pairs", image, text)
    with torch.autocast(image.device.type, enabled=False):
        image, text, scale, bias = (at_least_float32(tensor) for tensor in (image, text, scale, bias))
        counts = [row[0] for row in gather_counts([len(image)], image.device)]
        total, offset = sum(counts), sum(counts[: rank()])
        if total == 0:
            return nothing(image, text, scale, bias)
        logits = scale * (image @ gather_with_gradient(text, counts).T) + bias
        signs = torch.full_like(logits, -1.0)
        signs[:, offset : offset + len(image)].fill_diagonal_(1.0)
        value = -functional.logsigmoid(signs * logits).sum() * (world_size() / total)
    return value, count_of(len(image) * total, image)


def _summed_nce(logits: torch.Tensor, targets: torch.Tensor, epsilon: float, smoothing: float) -> torch.Tensor:
    if epsilon and smoothing:
        raise ValueError("info_nce takes epsilon or label_smoothing, not both")
    if not epsilon:
        return functional.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    own = logits.gather(1, targets[:, None])[:, 0]
    floor = logits.new_tensor(math.log(epsilon))
    return (torch.logaddexp(logits.logsumexp(1), floor) - torch.logaddexp(own, floor)).sum()


def _check_pairs(name: str, first: torch.Tensor, second: torch.Tensor) -> None:
    if len(first) != len(second):
        raise ValueError(f"{name} needs pairs, got {len(first)} images and {len(second)} texts")


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
