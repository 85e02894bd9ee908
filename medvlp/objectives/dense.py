"""Losses of pixel-wise logits against masks: cross-entropy and Dice.

Guarantee: what is not known of an image adds nothing; float32 at least, whatever the logits come in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8


def overlapping_loss(
    logits: Float[torch.Tensor, "b k h w"],
    masks: UInt8[torch.Tensor, "b k h w"],
    known: Bool[torch.Tensor, "b k"],
    cross_entropy: float = 1.0,
    dice: float = 1.0,
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """Return the loss of one binary question a label, and how many questions are known.

    Binary cross-entropy is averaged over the pixels of known questions; Dice (Milletari et al. 2016, arXiv 1606.04797)
    takes a label's pixels of all images of the batch together, so that images without the structure do not each add a
    loss of nearly 1, and is averaged over the labels with a known question.

    Args:
        logits: Of each label.
        masks: 1 inside.
        known: False leaves an image out of a label's loss.
        cross_entropy: Weight.
        dice: Weight.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    counted = known[:, :, None, None].to(logits.dtype)
    target = masks.to(logits.dtype)
    total = known.sum()
    entropy = functional.binary_cross_entropy_with_logits(logits, target, reduction="none") * counted
    value = cross_entropy * entropy.sum() / (total * logits.shape[2] * logits.shape[3]).clamp(min=1)
    if dice:
        each = _batch_dice(torch.sigmoid(logits) * counted, target * counted)
        asked = known.any(0)
        value = value + dice * (each * asked).sum() / asked.sum().clamp(min=1)
    return value, total.to(logits.dtype)


def exclusive_loss(
    logits: Float[torch.Tensor, "b c h w"],
    masks: UInt8[torch.Tensor, "b k h w"],
    cross_entropy: float = 1.0,
    dice: float = 1.0,
) -> tuple[Float[torch.Tensor, ""], Float[torch.Tensor, ""]]:
    """Return the loss of one class a pixel, and the number of images.

    Cross-entropy over background and labels, averaged over all pixels; Dice over the labels as in `overlapping_loss`.

    Args:
        logits: Background, then each label: c = k + 1.
        masks: 1 inside; no pixel in two of them.
        cross_entropy: Weight.
        dice: Weight.
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    places = torch.arange(1, masks.shape[1] + 1, device=masks.device).view(1, -1, 1, 1)
    value = cross_entropy * functional.cross_entropy(logits, (masks * places).sum(1))
    if dice:
        value = value + dice * _batch_dice(logits.softmax(1)[:, 1:], masks.to(logits.dtype)).mean()
    return value, torch.tensor(float(len(logits)), device=logits.device)


def _batch_dice(
    probabilities: Float[torch.Tensor, "b k h w"], target: Float[torch.Tensor, "b k h w"]
) -> Float[torch.Tensor, " k"]:
    from monai.losses.dice import DiceLoss

    return DiceLoss(batch=True, reduction="none")(probabilities, target).flatten()
