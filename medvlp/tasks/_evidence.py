"""Grad-CAM of the logit of a linear head: what in an image speaks for a label, by a probe or a fine-tuned network.

Guarantee: the map is that of the very number that is shown beside it, on the grid of the tower, which covers the square
evenly; see `medvlp.models.grad_cam`. No weight is changed.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.models.grad_cam import grad_cam

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Shaped

    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.tasks._classifier import Classifier
    from medvlp.types import Features
    from medvlp.zoo import Encoder

AT_ONCE = 8


def probe_evidence(
    encoder: Encoder, pixels: Shaped[np.ndarray, "b s s *c"], directions: Float[np.ndarray, "k d"]
) -> Float[np.ndarray, "b k g w"]:
    """Return the evidence for each label of a probe on pooled features.

    Args:
        encoder: Its tower made the features.
        pixels: Stored squares.
        directions: Slope of each label's logit in the pooled features.

    Raises:
        UserError: The tower cannot be looked into.
    """
    slopes = torch.from_numpy(directions).float().to(encoder.device)
    return _evidence(encoder.image_tower, lambda features: features.pooled, slopes, pixels, encoder.preprocessing.input)


def tuned_evidence(
    network: Classifier, pixels: Shaped[np.ndarray, "b s s *c"], taken: ModelInputConfig
) -> Float[np.ndarray, "b k g w"]:
    """Return the evidence for each label of a fine-tuned classifier, for pixels as in `probe_evidence`."""
    network.eval()
    device = next(network.parameters()).device

    def logits(features: Features) -> torch.Tensor:
        found = network.head(network.norm(features.pooled.float()))
        return found[:, 1:] - found[:, :1] if network.exclusive else found

    labels = 1 if network.exclusive else network.head.out_features
    return _evidence(network.tower, logits, torch.eye(labels, device=device), pixels, taken)


def _evidence(
    tower: Any,
    answer: Callable[[Features], torch.Tensor],
    slopes: Float[torch.Tensor, "k d"],
    pixels: np.ndarray,
    taken: ModelInputConfig,
) -> Float[np.ndarray, "b k g w"]:
    tap, found = getattr(tower.config, "tap", None), []
    for start in range(0, len(pixels), AT_ONCE):
        squares = to_tensor(resize_pixels(pixels[start : start + AT_ONCE], taken.size)).to(slopes.device)
        encode = partial(tower, normalise(squares, taken))
        found.append(grad_cam(tower.backbone, encode, answer, slopes, tap).cpu().numpy())
    return np.concatenate(found)
