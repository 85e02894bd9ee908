"""DICOM segmentations of a heap -> masks of the series that they name.

Guarantee: a segment belongs to the one volume whose SeriesInstanceUID its file references; two segments of one name on
one volume, or a reference that could mean several volumes, are recorded and not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from medvlp.sources._heap_item import Item
from medvlp.sources.base import Source
from medvlp.types import Mask

_TAGS = ("Modality", "ReferencedSeriesSequence", "SegmentSequence")


@dataclass(frozen=True, slots=True)
class Segment:
    """One structure in one file."""

    path: str
    number: int
    label: str
    series: tuple[str, ...]
    """Series that the file references."""


def segments_of(root: Path, file: Path) -> list[Segment]:
    """Return the segments of a DICOM SEG file; none where it is another file, or names no segment or series."""
    from medvlp.io.dicom_file import open_header

    try:
        dataset, _ = open_header(file, _TAGS)
        if dataset.get("Modality") != "SEG":
            return []
        series = tuple(str(item.SeriesInstanceUID) for item in dataset.get("ReferencedSeriesSequence") or [])
        path = file.relative_to(root).as_posix()
        return [
            Segment(path, int(item.SegmentNumber), str(item.SegmentLabel).strip(), series)
            for item in dataset.get("SegmentSequence") or []
            if series
        ]
    except Exception:  # whatever a parser throws at a broken file: it is then counted with those left out
        return []


def with_masks(source: Source, items: Sequence[Item], segments: Sequence[Segment]) -> list[Item]:
    """Return the items with the masks of their series."""
    masks: dict[str, dict[str, Mask]] = {}
    by_series: dict[str, list[Item]] = {}
    for item in items:
        by_series.setdefault(item.keys["series"][0], []).append(item)
    for segment in sorted(segments, key=lambda segment: (segment.path, segment.number)):
        owners = [item for uid in segment.series for item in by_series.get(uid, [])]
        own = masks.setdefault(owners[0].image.image_id, {}) if len(owners) == 1 else {}
        if not owners:
            source.counts["segments of series that are not there"] += 1
            continue
        if len(owners) > 1 or segment.label in own:
            what = "could belong to several volumes" if len(owners) > 1 else "has the name of another one of its series"
            fix = "Keep one file of masks per series; the volume is kept without this segment."
            source.problem(f"{segment.path}: segment {segment.number}", f"the segment {what}", fix, owners[0].study)
            continue
        own[segment.label] = Mask(owners[0].image.image_id, segment.label, segment.path, (segment.number,))
    return [replace(item, masks=tuple(masks.get(item.image.image_id, {}).values())) for item in items]
