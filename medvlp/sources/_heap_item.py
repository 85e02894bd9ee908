"""One radiograph or volume of a heap of DICOM files."""

from __future__ import annotations

from dataclasses import dataclass

from medvlp.types import ImageRef, Mask


@dataclass(frozen=True, slots=True)
class Item:
    """One radiograph or volume, and what its header says."""

    image: ImageRef
    study: str
    patient: str
    keys: dict[str, tuple[str, ...]]
    """Kind of id -> the values by which a table may name this item."""
    attributes: dict[str, str]
    age: float | None
    sex: str | None
    date: str | None
    masks: tuple[Mask, ...] = ()
