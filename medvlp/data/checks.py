"""Whether a configuration, a method's demands and a data set can make a batch.

Guarantee: what would be ignored, or could not work, is a `UserError` before anything starts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.errors import UserError

if TYPE_CHECKING:
    from medvlp.config.train import PretrainConfig
    from medvlp.data.demands import Demands


def refuse_unused(config: PretrainConfig, demands: Demands) -> None:
    """Raise `UserError` for a key of `data` that the method would silently ignore, or that contradicts it."""
    data, kind = config.data, type(config.data)
    knows = demands.triplets or demands.concepts or demands.group_size > 0
    unused = {
        "data.reports": demands.paired and data.reports is not None,
        "data.sentences": demands.paired and data.sentences != kind.model_fields["sentences"].default,
        "data.labels": not demands.labels and bool(data.labels),
        "data.knowledge": not knows and data.knowledge is not None,
        "data.min_concept_count": not demands.concepts and data.min_concept_count > 1,
    }
    keys = " and ".join(key for key, is_unused in unused.items() if is_unused)
    if keys:
        raise UserError(
            f"The method '{config.method.name}' has no use for {keys}.",
            keys,
            "Leave it out: a paired method takes the reports of the store." if demands.paired else "Leave it out.",
        )
    if data.augment.mirrors and demands.reports and (demands.views or demands.study_images or demands.group_size):
        raise UserError(
            f"The method '{config.method.name}' cannot mirror images: several readings of one would differ in sides.",
            "data.augment.flip",
            "Leave data.augment.flip out.",
        )
    of_images = bool(demands.views) or demands.study_images > 1 or demands.image_scale != 1
    of_volumes = demands.region is not None or bool(demands.volume_views) or bool(demands.organs)
    image = config.method.image.kind
    if (image == "volume" and of_images) or (image != "volume" and of_volumes):
        raise UserError(
            f"The method '{config.method.name}' asks for readings that there are not of the kind '{image}'.",
            "method.image.kind",
            "Use another kind of tower, or another method; see `medvlp methods`.",
        )


def check_batch(config: PretrainConfig, demands: Demands, samples: int, world_size: int) -> None:
    """Raise `UserError` unless whole batches can be made.

    Args:
        config: The run's configuration.
        demands: What the method asks for.
        samples: Training samples of an epoch.
        world_size: Ranks that share a batch.
    """
    train = config.train
    batch, unit = train.batch_size // train.accumulate, world_size * max(1, demands.group_size)
    if batch % unit:
        of = f" of groups of {demands.group_size}" if demands.group_size else ""
        raise UserError(
            f"A batch of {batch} does not split over {world_size} processes{of}.",
            "train.batch_size / train.accumulate",
            f"Give a multiple of {unit * train.accumulate}.",
        )
    if batch < 2 * max(1, demands.group_size) and demands.reports:
        what = "one group" if demands.group_size else "one sample"
        raise UserError(
            f"In micro-batches of {what} there is no other to tell it from: nothing would be learnt.",
            "train.batch_size / train.accumulate",
            "Give a larger batch_size, or accumulate less.",
        )
    if samples < batch:
        raise UserError(
            f"There are {samples} training images, fewer than one batch of {batch}.",
            config.data.store,
            f"Set train.batch_size to {samples * train.accumulate} or less.",
        )
