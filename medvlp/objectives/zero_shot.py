"""Scores of images against text prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def opposite(prompt: str) -> str:
    """Return what a prompt is asked against where nobody says what."""
    return f"no {prompt}"


def prompt_logits(
    image: Float[torch.Tensor, "b d"],
    prompts: Float[torch.Tensor, "p d"],
    prompt_class: Int[torch.Tensor, " p"],
    scale: Float[torch.Tensor, ""],
    reduce: Literal["max", "mean"] = "max",
) -> Float[torch.Tensor, "b k"]:
    """Return `scale * cosine` of image and prompt, reduced over the prompts of each class (MedCLIP's classifier).

    Args:
        image: Projected images, of any length.
        prompts: Projected prompts, of any length.
        prompt_class: Class 0 to k-1 of each prompt; every class needs a prompt.
        scale: Factor of the cosines.
        reduce: Maximum or mean over a class's prompts.
    """
    logits = scale * (functional.normalize(image, dim=-1) @ functional.normalize(prompts, dim=-1).T)
    return by_class(logits, prompt_class, reduce)


def by_class(
    logits: Float[torch.Tensor, "b p"], prompt_class: Int[torch.Tensor, " p"], reduce: Literal["max", "mean"]
) -> Float[torch.Tensor, "b k"]:
    """Return the maximum or mean over the prompts of each class; see `prompt_logits`."""
    classes = int(prompt_class.max()) + 1
    columns = [logits[:, prompt_class == k] for k in range(classes)]
    return torch.stack([c.amax(1) if reduce == "max" else c.mean(1) for c in columns], dim=1)


def by_group(
    similarity: Float[torch.Tensor, "b p"], sizes: Sequence[int], reduce: Literal["max", "mean"] = "mean"
) -> Float[torch.Tensor, "b s"]:
    """Return one similarity per group of prompts: the maximum or mean over its columns, which stand side by side.

    Args:
        similarity: Of images and prompts.
        sizes: Prompts of each group, in order; none is 0.
        reduce: Maximum or mean.
    """
    return torch.stack([p.amax(1) if reduce == "max" else p.mean(1) for p in similarity.split(list(sizes), 1)], dim=1)
