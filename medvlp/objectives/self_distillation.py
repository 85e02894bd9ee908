"""Self-distillation: views (DINO) and hidden patches (iBOT) agree with a teacher, and features spread (KoLeo).

Guarantee: no gradient reaches the teacher's side; softmax, balancing and distances are computed in at least float32
also under autocast; on several ranks targets are balanced over everybody's rows, and the mean of the values is that of
one process with the whole batch. Nothing is updated here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from medvlp.objectives.gather import gather_counts, gather_with_gradient, rank, world_size
from medvlp.objectives.terms import at_least_float32, count_of, mean_over_ranks, nothing

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    Scalar = Float[torch.Tensor, ""]

SINKHORN_STEPS = 3


@torch.no_grad()
def centred_targets(
    logits: Float[torch.Tensor, "n k"], centre: Float[torch.Tensor, "1 k"], temperature: float
) -> Float[torch.Tensor, "n k"]:
    """Return the softmax of the teacher's logits minus their running mean (DINO, arXiv 2104.14294, section 3.1)."""
    with torch.autocast(logits.device.type, enabled=False):
        return ((at_least_float32(logits) - centre) / temperature).softmax(-1)


@torch.no_grad()
def balanced_targets(logits: Float[torch.Tensor, "n k"], temperature: float) -> Float[torch.Tensor, "n k"]:
    """Return the teacher's soft assignments with all prototypes used alike: Sinkhorn-Knopp, by lightly (as in DINOv2).

    Args:
        logits: Cosines with the prototypes; all rows of all ranks are balanced together.
        temperature: The teacher's.
    """
    from lightly.loss.swav_loss import sinkhorn

    with torch.autocast(logits.device.type, enabled=False):
        logits = at_least_float32(logits)
        counts = [row[0] for row in gather_counts([len(logits)], logits.device)]
        if sum(counts) == 0:
            return logits
        if min(counts) == max(counts):
            shared = dist.is_initialized() and world_size() > 1
            return sinkhorn(logits, SINKHORN_STEPS, temperature, gather_distributed=shared)
        everyone = sinkhorn(gather_with_gradient(logits, counts), SINKHORN_STEPS, temperature)
        return everyone.split(counts)[rank()]


def dino(
    student: Float[torch.Tensor, "s b k"], targets: Float[torch.Tensor, "t b k"], temperature: float = 0.1
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of each view of the student with each other view of the teacher, mean over pairs and images.

    DINO (arXiv 2104.14294, equation 3).

    Args:
        student: Logits of its views; the first `t` are the views that the teacher sees.
        targets: The teacher's targets.
        temperature: The student's.
    """
    with torch.autocast(student.device.type, enabled=False):
        predicted = (at_least_float32(student) / temperature).log_softmax(-1)
        pairs = -torch.einsum("tbk,sbk->tsb", targets.to(predicted.dtype), predicted)
        other = 1 - torch.eye(len(targets), len(student), device=pairs.device, dtype=pairs.dtype)
        return mean_over_ranks((pairs * other[..., None]).sum(), other.sum().float() * student.shape[1])


def ibot(
    student: Float[torch.Tensor, "n k"],
    targets: Float[torch.Tensor, "n k"],
    hidden: Bool[torch.Tensor, "b p"],
    temperature: float = 0.1,
) -> tuple[Scalar, Scalar]:
    """Cross-entropy of hidden patches with the teacher's view of them: mean over the hidden patches of an image.

    iBOT (arXiv 2111.07832, equation 2), weighted as in DINOv2: the sum over images is divided by the number of all
    images, also of those with nothing hidden. `count` is the number of images with hidden patches.

    Args:
        student: Logits of the hidden patches, image by image.
        targets: The teacher's targets of the same patches.
        hidden: Which patches they are.
        temperature: The student's.
    """
    with torch.autocast(student.device.type, enabled=False):
        predicted = (at_least_float32(student) / temperature).log_softmax(-1)
        terms = -(targets.to(predicted.dtype) * predicted).sum(-1)
        number = hidden.sum(1)
        weights = (1 / number.clamp_min(1).to(terms.dtype))[:, None].expand(hidden.shape)[hidden]
        value, _ = mean_over_ranks((terms * weights).sum(), count_of(len(hidden), terms))
        return value, (number > 0).sum().float()


def koleo(features: Float[torch.Tensor, "b d"]) -> tuple[Scalar, Scalar]:
    """Minus the mean logarithm of the distance of each unit vector to its nearest neighbour, by lightly.

    KoLeo (arXiv 1806.03198; DINOv2, arXiv 2304.07193, section 4). Neighbours are looked for on all ranks; a single row
    has none and scores nothing.
    """
    from lightly.loss.koleo_loss import KoLeoLoss

    with torch.autocast(features.device.type, enabled=False):
        features = at_least_float32(features)
        everyone = gather_with_gradient(features)
        if len(everyone) < 2:
            return nothing(features)
        return KoLeoLoss()(everyone), count_of(len(features), features)
