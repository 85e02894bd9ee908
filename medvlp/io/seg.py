"""DICOM Segmentation objects: frames with their segment and their plane.

Guarantee: binary segmentations and label maps are read as they are; a fractional one is refused, since where its
structures end would have to be invented.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line, parse
from medvlp.io.dicom_header import Plane, plane_of
from medvlp.io.dicom_pixels import frame_values
from medvlp.io.limits import FRAME_PIXELS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from jaxtyping import Bool
    from pydicom.dataset import Dataset

_TAGS = (
    *("Modality", "SegmentationType", "SegmentSequence", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "PixelData"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
)
_FIX = "Restore the file from its source, or leave it out."


@dataclass(frozen=True)
class Segmentation:
    """A parsed segmentation: one plane per frame, and the segment that a binary frame shows (0 in a label map)."""

    dataset: Dataset
    rows: int
    columns: int
    planes: list[Plane]
    segments: list[int]
    declared: frozenset[int]
    labelmap: bool

    def frames(self, wanted: Collection[int]) -> Iterator[tuple[Plane, Bool[np.ndarray, "h w"]]]:
        """Yield plane and pixels of every frame that may show one of some segments; all, if none are named.

        Raises:
            ValueError: A frame cannot be decoded, or a segment is not one of the file's.
        """
        unknown = set(wanted) - self.declared
        if unknown:
            raise ValueError(f"it declares no segment {min(unknown)}")
        for index, (plane, segment) in enumerate(zip(self.planes, self.segments, strict=True)):
            if self.labelmap:
                values = frame_values(self.dataset, index, len(self.planes))
                yield plane, np.isin(values, list(wanted)) if wanted else values != 0
            elif not wanted or segment in wanted:
                yield plane, self._binary(index)

    def _binary(self, index: int) -> Bool[np.ndarray, "h w"]:
        """Unpack one frame of 1-bit pixels, which follow each other without padding (PS3.5 8.1.1)."""
        if self.dataset.BitsAllocated != 1:
            return frame_values(self.dataset, index, len(self.planes)) != 0
        pixels = self.rows * self.columns
        first, last = index * pixels, (index + 1) * pixels
        packed = np.frombuffer(self.dataset.PixelData, np.uint8)[first // 8 : (last + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + pixels]
        return bits.astype(bool).reshape(self.rows, self.columns)


def read_segmentation(path: Path) -> Segmentation:
    """Read a DICOM SEG file.

    Raises:
        UserError: It is damaged, fractional, or no segmentation.
    """
    try:
        dataset = parse(path.read_bytes(), _TAGS)
        return _checked(dataset)
    except Exception as error:  # whatever a parser throws at a broken file
        raise UserError(f"The segmentation cannot be used: {one_line(error)}.", path, _FIX) from None


def _checked(dataset: Dataset) -> Segmentation:
    from medvlp.io.enhanced import frame_attribute

    kind = str(dataset.get("SegmentationType") or "")
    if str(dataset.get("Modality") or "") != "SEG" or kind not in ("BINARY", "LABELMAP"):
        raise ValueError("it is no binary segmentation and no label map")
    if "PixelData" not in dataset:
        raise ValueError("it has no pixel data, or ends before them")
    rows, columns, frames = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    if min(rows, columns, frames) < 1 or rows * columns > FRAME_PIXELS:
        raise ValueError(f"{frames} frames of {rows} x {columns} pixels")
    if dataset.BitsAllocated == 1 and not _right_length(len(dataset.PixelData), rows * columns * frames):
        raise ValueError("truncated or too long: its pixel data do not fit rows, columns and frames")
    groups = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(groups) != frames:
        raise ValueError(f"it declares {frames} frames, but describes {len(groups)}")
    planes = [plane_of(partial(frame_attribute, dataset, frame)) for frame in range(frames)]
    labelmap = kind == "LABELMAP"
    segments = [0] * frames if labelmap else [_segment(dataset, group) for group in groups]
    declared = {int(item.SegmentNumber) for item in dataset.get("SegmentSequence") or []}
    if not set(segments) <= declared | {0}:
        raise ValueError("a frame shows a segment that is not declared")
    return Segmentation(dataset, rows, columns, planes, segments, frozenset(declared), labelmap)


def _right_length(found: int, bits: int) -> bool:
    needed = (bits + 7) // 8
    return needed <= found <= needed + needed % 2


def _segment(dataset: Dataset, group: Any) -> int:
    """Return the segment number of a frame: its own, or that of all frames."""
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for source in (group, *shared[:1]):
        items = source.get("SegmentIdentificationSequence")
        if items:
            return int(items[0].ReferencedSegmentNumber)
    raise ValueError("a frame does not say which segment it shows")
