"""Enhanced multi-frame DICOM (CT, MR) -> volumes: geometry and rescale from the functional groups of each frame.

Guarantee: the same checks as for a series of single files; a frame whose groups do not place it is refused.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line, parse
from medvlp.io.dicom_header import HEADER_TAGS, Header, Pixels, Plane, pixels_of, plane_of
from medvlp.io.dicom_pixels import frame_values
from medvlp.io.dicom_series import assemble, make_volume
from medvlp.io.intensity import Meaning, dicom_meaning
from medvlp.io.stack import stack_slices
from medvlp.io.values import BadValues, Converter

if TYPE_CHECKING:
    from jaxtyping import Int16
    from pydicom.dataset import Dataset

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import Volume, VolumeFacts

GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_OF_GROUP = {
    "ImagePositionPatient": "PlanePositionSequence",
    "ImageOrientationPatient": "PlaneOrientationSequence",
    "PixelSpacing": "PixelMeasuresSequence",
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "RescaleType": "PixelValueTransformationSequence",
}
_TAGS = (*HEADER_TAGS, *GROUPS, "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData")
_FIX = "Restore the file from its source, or leave it out."


def frame_attribute(dataset: Dataset, frame: int, keyword: str) -> Any:
    """Return an attribute of one frame: from its functional groups, the shared ones, else the dataset; or None."""
    sequence = _OF_GROUP.get(keyword)
    if sequence is not None:
        per_frame = dataset.get(GROUPS[1]) or []
        shared = dataset.get(GROUPS[0]) or []
        for group in (*per_frame[frame : frame + 1], *shared[:1]):
            items = group.get(sequence)
            if items:
                return items[0].get(keyword)
    return dataset.get(keyword)


def frame_planes(dataset: Dataset, frames: int) -> list[Plane]:
    """Return the geometry of every frame.

    Raises:
        ValueError: A frame has none, or the groups are fewer than the frames.
    """
    groups = dataset.get(GROUPS[1]) or []
    if len(groups) != frames:
        raise ValueError(f"it declares {frames} frames, but describes {len(groups)}")
    return [plane_of(partial(frame_attribute, dataset, frame)) for frame in range(frames)]


def read_enhanced(header: Header, config: StoredVolumeConfig, facts: VolumeFacts | None) -> Volume:
    """Read a multi-frame file; see `medvlp.io.read_volume`.

    Raises:
        UserError: It is damaged, or its frames do not make a volume.
    """
    path = header.path
    try:
        pixels = pixels_of(header)
        dataset = parse(path.read_bytes(), _TAGS)
        planes = frame_planes(dataset, pixels.frames)
        stack = stack_slices(planes)
        modality = header.text("Modality")
        meaning = dicom_meaning(planes, modality, pixels.photometric, config, facts, path)
    except UserError:
        raise
    except Exception as error:  # whatever a parser throws at a broken file
        raise UserError(f"The frames are no volume: {one_line(error)}.", path, _FIX) from None
    readers = [partial(_values, dataset, int(k), pixels, planes[k], meaning, path) for k in stack.order]
    array, affine, record = assemble(stack, (pixels.rows, pixels.columns), readers, meaning, config, facts, path)
    provenance = {
        "path": str(path),
        "format": "dicom multi-frame",
        "transfer_syntax": uid.UID(pixels.transfer_syntax).name,
        "modality": modality,
        "slices": pixels.frames,
        **meaning.record,
        **record,
    }
    return make_volume(array, affine, meaning.intensity, provenance)


def _values(
    dataset: Dataset,
    frame: int,
    pixels: Pixels,
    plane: Plane,
    meaning: Meaning,
    path: Path,
) -> tuple[Int16[np.ndarray, "h w"], Converter]:
    converter = meaning.converter(plane, pixels.padding)
    try:
        stored = frame_values(dataset, frame, pixels.frames)
        if meaning.inverted:
            stored = sum(pixels.limits) - stored
        return converter.convert(stored), converter
    except BadValues as error:
        raise UserError(str(error), path, error.fix) from None
    except Exception as error:  # whatever a decoder throws at a broken file
        raise UserError(f"Frame {frame} cannot be read: {one_line(error)}.", path, _FIX) from None
