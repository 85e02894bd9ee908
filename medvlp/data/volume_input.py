"""From a volume, read from a file or kept in a store, to the voxels of a model input.

Guarantee: both roads give the same voxels. Numbers of another meaning than the windows', and volumes without spacing
where one is needed, are refused, never guessed. Where the range of a volume's own values is its window, what is filled
in outside of it lies in this range: padding never changes what tissue is mapped to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from medvlp.data.volume_views import Grid, Part, input_grid, part_of, read_view
from medvlp.errors import UserError
from medvlp.io.intensity import looks_like_hu
from medvlp.io.values import AIR_HU, PADDING_HU, is_padding
from medvlp.types import Intensity, Volume

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int16

    from medvlp.config.volumes import VolumeInputConfig
    from medvlp.store.array_store import Store


def fits(intensity: str, config: VolumeInputConfig) -> bool:
    """Return whether a model input takes numbers of this meaning: that of its windows, or any where it has none."""
    return not config.windows or intensity == config.intensity


def with_meaning(volume: Volume, config: VolumeInputConfig, where: object = "the volume") -> Volume:
    """Return a volume whose numbers mean what the model input takes.

    A file of a format that cannot say what its numbers mean (NIfTI) counts as HU where they look like it; see
    `looks_like_hu`. Its padding is then air, as where HU are asked for. A DICOM series states its modality and its
    rescale: what it does not call HU never counts as HU. A model input without windows takes numbers of any meaning.

    Args:
        volume: As it was read.
        config: The model input.
        where: What is named if it does not fit.

    Raises:
        UserError: Its numbers mean something else, or nobody says what; or it was resampled with its padding.
    """
    wanted, facts = config.intensity, volume.provenance
    untold = facts.get("intensity_source") == "nobody" and "modality" not in facts
    if wanted == Intensity.HU and untold and looks_like_hu(volume.array):
        return _by_values(volume, where)
    if not fits(volume.intensity, config):
        raise UserError(
            f"The volume is in {volume.intensity}, the model takes {wanted}.",
            where,
            "If its numbers are HU, say so: --intensity hu, or StoredVolumeConfig(intensity='hu') for read_volume.",
        )
    return volume


def _by_values(volume: Volume, where: object) -> Volume:
    """Return a volume as HU, padding as air; a copy where there is any."""
    import numpy as np

    array = volume.array
    if array.min() <= max(PADDING_HU):
        if volume.provenance.get("resampled"):
            raise UserError(
                "The volume was resampled before anyone said that its numbers are HU, so that its padding is mixed "
                "into the tissue beside it.",
                where,
                "Say it when the file is read: --intensity hu, or StoredVolumeConfig(intensity='hu').",
            )
        array = np.where(is_padding(array), np.int16(AIR_HU), array)
    facts = {**volume.provenance, "intensity_source": "values"}
    return replace(volume, array=array, intensity=Intensity.HU, provenance=facts)


def grid_of(
    shape: Sequence[int], spacing_mm: Sequence[float] | None, config: VolumeInputConfig, where: object = "the volume"
) -> Grid:
    """Return where the voxels of the model input lie in a volume.

    Args:
        shape: Voxels along d, h, w.
        spacing_mm: Their distance.
        config: The model input.
        where: What is named if it cannot be done.

    Raises:
        UserError: The model input has a spacing and the volume has none.
    """
    if config.spacing_mm is not None and spacing_mm is None:
        raise UserError(
            f"The model takes voxels at {config.spacing_mm} mm, and nothing says at which distance these lie.",
            where,
            "Use a volume with geometry, or a model without input.spacing_mm.",
        )
    return input_grid(shape, spacing_mm, config)


def input_voxels(volume: Volume, config: VolumeInputConfig, where: object = "the volume") -> Int16[np.ndarray, "d h w"]:
    """Return the voxels of the model input of a volume; see `with_meaning` and `grid_of` for errors."""
    volume = with_meaning(volume, config, where)
    shape = volume.array.shape
    return input_view(part_of(volume.array), shape, grid_of(shape, volume.spacing_mm, config, where), config)


def stored_input_voxels(store: Store, row: int, config: VolumeInputConfig) -> Int16[np.ndarray, "d h w"]:
    """Return the voxels of the model input of a row of the images table; only what they cover is read.

    Raises:
        UserError: Its numbers are not what the windows mean, or it has no spacing where one is needed.
    """
    facts = store.images.iloc[row]
    index = int(facts["index"])
    if not fits(facts["intensity"], config):
        raise UserError(
            f"The volume {facts['image_id']} is in {facts['intensity']}, the model takes {config.intensity}.",
            store.path,
            "Name it when the data set is prepared (volume.intensity).",
        )
    shape = store.shape(index)
    grid = grid_of(shape, store.spacing_mm(index), config, facts["image_id"])
    return input_view(partial(store.crop, index), shape, grid, config)


def input_view(part: Part, shape: Sequence[int], grid: Grid, config: VolumeInputConfig) -> Int16[np.ndarray, "d h w"]:
    """Return the voxels of a view as a model input has them; see `read_view`."""
    return read_view(part, shape, grid, config.outside, within=not config.windows)


def outside_of(voxels: Int16[np.ndarray, "*n d h w"], config: VolumeInputConfig) -> int | Int16[np.ndarray, "*n"]:
    """Return the value of what an augmentation brings in from outside, for each volume where it depends on it."""
    import numpy as np

    if config.windows:
        return config.outside
    return np.clip(config.outside, voxels.min(axis=(-3, -2, -1)), voxels.max(axis=(-3, -2, -1)))
