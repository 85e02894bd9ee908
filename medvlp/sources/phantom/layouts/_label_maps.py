"""Label maps in the numbering of a data set, and its `dataset.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from medvlp.sources.phantom.examples import ExampleVolume


def label_map(
    volume: ExampleVolume, structures: Sequence[str], phantom: Mapping[str, str] | None = None
) -> UInt8[np.ndarray, "d h w"]:
    """Return the volume's structures in the numbering of a data set: value i + 1 is structure i.

    Args:
        volume: An example; its structures have the data set's names, or those of the phantom.
        structures: Names of the data set.
        phantom: Name of the data set -> names of the phantom that mean it, joined by |.
    """
    numbers = {name: value for value, name in enumerate(structures, 1)}
    for name, meant in (phantom or {}).items():
        numbers |= {part: numbers[name] for part in meant.split("|") if name in numbers}
    if volume.structures is None:
        return np.zeros(volume.array.shape, np.uint8)
    table = np.zeros(256, np.uint8)
    for value, name in volume.names.items():
        table[value] = numbers.get(name, 0)
    return table[volume.structures]


def dataset_json(name: str, modality: Sequence[str], labels: Sequence[str], **lists: Any) -> dict[str, Any]:
    """Return a `dataset.json` as the decathlon introduced it."""
    return {
        "name": name,
        "tensorImageSize": "4D" if len(modality) > 1 else "3D",
        "modality": {str(place): value for place, value in enumerate(modality)},
        "labels": {str(value): label for value, label in enumerate(["background", *labels])},
        **lists,
    }
