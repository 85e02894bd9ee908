"""Contrasts of clips and texts: MIL-NCE over several candidate texts, and the terms of SurgVLP.

Guarantee: products, logits and softmax are at least float32 also under autocast; each function returns `(value, count)`
and on several ranks a value whose mean over the ranks is that of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from medvlp.objectives.contrastive import info_nce
from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import at_least_float32, count_of, mean_of, nothing
from medvlp.objectives.volume_views import nt_xent

if TYPE_CHECKING:
    from jaxtyping import Float

    Scalar = Float[torch.Tensor, ""]


def mil_nce(
    clip: Float[torch.Tensor, "b d"], texts: Float[torch.Tensor, "b k d"], twice: bool = False
) -> tuple[Scalar, Scalar]:
    """MIL-NCE (Miech et al., arXiv 1912.06430): the texts of a clip are candidates, any of which may belong to it.

    With x the plain products, the value is the mean over clips i of the log of `sum exp x_ijk` over all texts plus
    `sum exp x_jik` over all clips, less the log of `sum_k exp x_iik`.

    Args:
        clip: Projected clips, of the length that they have: there is no temperature.
        texts: Projected candidates of each clip.
        twice: Count the pairs of clip i with its own texts in both sums, as the code of PeskaVLP does; the least value
            is then log 2 and not 0.
    """
    with torch.autocast(clip.device.type, enabled=False):
        clip, texts = at_least_float32(clip), at_least_float32(texts)
        if len(clip) != len(texts) or not texts.shape[1]:
            raise ValueError(f"mil_nce needs texts for every clip, got {len(clip)} clips and texts {texts.shape[:2]}")
        counts = [row[0] for row in gather_counts([len(clip)], clip.device)]
        total, offset = sum(counts), sum(counts[: rank()])
        if total == 0:
            return nothing(clip, texts)
        own = torch.arange(offset, offset + len(clip), device=clip.device)[:, None] == torch.arange(
            total, device=clip.device
        )
        by_clip = torch.einsum("id,jkd->ijk", clip, gather_with_gradient(texts, counts))
        by_text = torch.einsum("jd,ikd->ijk", gather_with_gradient(clip, counts), texts)
        positive = torch.einsum("id,ikd->ik", clip, texts).logsumexp(1)
        if not twice:
            by_text = by_text.masked_fill(own[..., None], -torch.inf)
        every = torch.cat([by_clip, by_text], dim=1).flatten(1)
        value = (every.logsumexp(1) - positive).sum() * (world_size() / total)
    return value, count_of(len(clip), clip)


def surgvlp(
    clips: Sequence[Float[torch.Tensor, "b d"]],
    text: Float[torch.Tensor, "b d"],
    candidates: Float[torch.Tensor, "b k d"],
    scale: Scalar,
    text_weight: float = 0.25,
    twice: bool = False,
) -> dict[str, tuple[Scalar, Scalar]]:
    """Return the terms of SurgVLP (released training code of PeskaVLP); its loss is a quarter of their sum.

    The first three are means over the readings clean, augmented and again augmented, the last one is between the two
    augmented readings.

    Args:
        clips: Projected readings of the clips: clean, and two augmented.
        text: Projected texts of the first source.
        candidates: Projected texts of the second source.
        scale: Factor of the cosines, 1/T; 10 there.
        text_weight: Weight of text to clip in the weighted InfoNCE; clip to text has the rest.
        twice: See `mil_nce`.

    Returns:
        `clip_text`, `weighted`, `mil_nce` and `two_views`.
    """
    if len(clips) != 3:
        raise ValueError(f"surgvlp needs three readings of each clip, got {len(clips)}")
    return {
        "clip_text": mean_of([info_nce(clip, text, scale) for clip in clips]),
        "weighted": mean_of([info_nce(clip, text, scale, 1 - text_weight) for clip in clips]),
        "mil_nce": mean_of([mil_nce(clip, candidates, twice) for clip in clips]),
        "two_views": nt_xent(clips[1], clips[2], scale),
    }
