"""SimCroP's alignment: each sentence picks the patches of a volume that are most similar to it.

Guarantee: pads take no part and texts without a sentence are left out; sentences that are the same are never each
other's negatives; on several ranks local rows meet everybody's, as in `contrastive`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from medvlp.objectives.gather import gather_with_gradient
from medvlp.objectives.pairs import gather_tokens, pairwise
from medvlp.objectives.terms import at_least_float32, mean_over_ranks, unit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    Scalar = Float[torch.Tensor, ""]


def best_patches(
    sentences: Float[torch.Tensor, "n d"], patches: Float[torch.Tensor, "i p d"], share: float
) -> Float[torch.Tensor, "n i"]:
    """Return the mean cosine of each sentence with the patches of each volume that are most similar to it.

    Args:
        sentences: Unit vectors.
        patches: Unit vectors.
        share: Of the patches of a volume that a sentence picks, at least one.
    """
    picked = max(1, round(share * patches.shape[1]))
    return torch.einsum("nd,ipd->nip", sentences, patches).topk(picked, dim=2).values.mean(2)


def sentence_patch_nce(
    patches: Float[torch.Tensor, "b p d"],
    sentences: Float[torch.Tensor, "b s d"],
    mask: Bool[torch.Tensor, "b s"],
    keys: Int[torch.Tensor, "b s"],
    scale: Scalar,
    share: float,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each sentence over all volumes and of each volume over all sentences, the mean of both.

    SimCroP (arXiv 2509.08311) publishes neither formula nor code of its pre-training: this is a stand-in. The score of
    a pair is `scale * best_patches`. Positives of a sentence are the volumes whose text has it, those of a volume the
    sentences of its text and their like in other texts; the target is spread evenly over them.

    Args:
        patches: Of any length; as many per volume on every rank.
        sentences: Of the text of each volume, of any length.
        mask: True at real sentences.
        keys: Equal for sentences that say the same, word by word.
        scale: Factor of the cosines, 1/T.
        share: See `best_patches`.
    """
    with torch.autocast(patches.device.type, enabled=False):
        patches, sentences, scale = unit(patches), unit(sentences), at_least_float32(scale)
        all_patches = gather_with_gradient(patches)
        all_sentences, all_mask = gather_tokens(sentences, mask)
        all_keys = gather_tokens(keys[..., None], mask)[0][..., 0]
        score = partial(best_patches, share=share)
        by_sentence = scale * pairwise(score, (sentences.flatten(0, 1),), (all_patches,))
        by_volume = scale * pairwise(score, (all_sentences.flatten(0, 1),), (patches,)).T
        of_sentence = _stated(keys, mask, all_keys, all_mask).flatten(0, 1)
        of_volume = _stated(all_keys, all_mask, keys, mask).flatten(0, 1).T
        by_volume = by_volume.masked_fill(~all_mask.flatten(), torch.finfo(by_volume.dtype).min)
        to_volumes, number = _even_ce(by_sentence, of_sentence)
        to_sentences, others = _even_ce(by_volume, of_volume)
        return 0.5 * (to_volumes + to_sentences), number + others


def _stated(
    keys: Int[torch.Tensor, "b s"],
    mask: Bool[torch.Tensor, "b s"],
    text_keys: Int[torch.Tensor, "n m"],
    text_mask: Bool[torch.Tensor, "n m"],
) -> Bool[torch.Tensor, "b s n"]:
    """Return which texts have each sentence."""
    there = (keys[:, :, None, None] == text_keys) & text_mask
    return there.any(3) & mask[..., None]


def _even_ce(logits: Float[torch.Tensor, "n m"], positives: Bool[torch.Tensor, "n m"]) -> tuple[Scalar, Scalar]:
    """Return the cross-entropy with an even target over the positives; a row without any is left out."""
    number = positives.sum(1)
    terms = (logits.log_softmax(1) * positives).sum(1) / number.clamp_min(1)
    return mean_over_ranks(-terms.sum(), (number > 0).sum().to(logits.dtype))
