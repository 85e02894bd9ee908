"""Volumes on the page of a store: three planes and a strip of slices, in several windows, with masks and lesions.

Guarantee: planes have the proportions that the voxel distances give, the patient's right is on the left of axial and
coronal planes, anterior on the left of sagittal ones, and the letters at the edges say so; where a volume has no
geometry there are no letters. Masks and lesions lie where the label map and the affine put them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.volumes import PRESETS, WindowConfig
from medvlp.html import data_uri
from medvlp.html.pictures import colour, marks_uri
from medvlp.html.private import scrub
from medvlp.io.label_map import count_values

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float, Int, Shaped, UInt8

    from medvlp.store.array_store import Store
    from medvlp.types import Volume

HU_WINDOWS = ("mediastinum", "lung", "bone", "brain")
"""Windows of CT that a reader can switch between; the first is shown first."""
PLANES_WIDE, PLANE_HIGH = 1080, 400
"""Pixels: all three planes side by side, and the highest of them."""
STRIP_PIXELS, STRIP_SLICES = 132, 10
LETTERS_NEED = 40
"""Pixels: in planes of fewer slices the letters would lie on each other."""
NAMED_STRUCTURES = 12
_OBLIQUE_DEGREES = 5.0


@dataclass(frozen=True, slots=True)
class Plane:
    """One plane through a volume: which axis is fixed, the letters at left, right, top and bottom."""

    name: str
    axis: int
    letters: tuple[str, str, str, str]


AXIAL = Plane("Axial", 0, ("R", "L", "A", "P"))
CORONAL = Plane("Coronal", 1, ("R", "L", "S", "I"))
SAGITTAL = Plane("Sagittal", 2, ("A", "P", "S", "I"))
"""All axes of a plane run towards right, anterior or superior; turned by 180° each lies as radiologists show it."""


def volume_cards(store: Store, samples: pd.DataFrame, rows: Int[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each volume.

    Args:
        store: Store of volumes.
        samples: Volumes joined with their studies.
        rows: Rows of `samples` to show.
    """
    names = sorted(set(store.masks["label"]))
    for row in samples.iloc[rows].to_dict("records"):
        index = int(row["index"])
        volume = store.read_volume(index)
        labels = store.read_labels(index) if store.has_labels(index) else None
        yield VolumeCard(volume, labels, row, names).context(store.label_names)


class VolumeCard:
    """One volume, read, with its marks.

    Args:
        volume: The volume.
        labels: Its label map and the name of each value, or None.
        row: Its row of the images table, joined with that of its study.
        names: All structures of the store: the place of a name decides its colour.
    """

    def __init__(
        self,
        volume: Volume,
        labels: tuple[Shaped[np.ndarray, "d h w"], dict[int, str]] | None,
        row: Mapping[Any, Any],
        names: Sequence[str],
    ) -> None:
        self.volume, self.row = volume, row
        self.labels = None if labels is None else labels[0]
        self.structures: dict[int, str] = {} if labels is None else labels[1]
        self.places = {value: list(names).index(name) for value, name in self.structures.items()}
        self.spacing = np.array(volume.spacing_mm or (1.0, 1.0, 1.0))
        self.lesions = list(_lesions_in_voxels(row, volume))
        self.windows = _windows(volume)
        self.centre, self.centre_of = self._centre()

    def context(self, label_names: Sequence[str]) -> dict[str, Any]:
        """Return what the template needs."""
        row = self.row
        depth, height, width = self.volume.array.shape
        facts = [f"{depth} × {height} × {width} voxels"]
        if self.volume.spacing_mm is not None:
            facts.append(" × ".join(f"{value:.3g}" for value in self.volume.spacing_mm) + " mm (d × h × w)")
        else:
            facts.append("voxel distances and orientation are not stated")
        if (degrees := _obliqueness(self.volume)) > _OBLIQUE_DEGREES:
            facts.append(f"oblique by up to {degrees:.0f}°: letters name the nearest direction")
        facts.append({"hu": "HU", "stored": "values as stored"}.get(str(self.volume.intensity), ""))
        age = stated(row.get("age"))
        facts += [] if age is None else [f"{age:.0f} y"]
        facts += [fact for fact in (stated(row.get("sex")), stated(row.get("split")) or "no split") if fact]
        return {
            "id": scrub(str(row["image_id"])),
            "labels": [name for name in label_names if row.get(f"label:{name}") == 1],
            "unsure": [name for name in label_names if row.get(f"label:{name}") == -1],
            "split": stated(row.get("split")) or "no split",
            "facts": " · ".join(facts),
            "centre_of": self.centre_of,
            "planes": [self._plane(plane) for plane in (AXIAL, CORONAL, SAGITTAL)],
            "strip": list(self._strip()),
            "structures": self._legend(),
            "lesions": sorted({lesion["label"] for lesion in self.lesions}),
        }

    def _centre(self) -> tuple[Int[np.ndarray, "3"], str]:
        """Return the voxel that the planes go through, and what it is the centre of."""
        shape = self.volume.array.shape
        if self.lesions:
            lesion = max(self.lesions, key=lambda lesion: lesion["radius_mm"])
            inside = np.clip(np.rint(lesion["centre"]).astype(int), 0, np.array(shape) - 1)
            return inside, f"the {lesion['label']}"
        if self.labels is not None and self.labels.any():
            return np.array([_middle(self.labels, axis) for axis in range(3)]), "the masks"
        return np.array(shape) // 2, "the volume"

    def _plane(self, plane: Plane) -> dict[str, Any]:
        at = int(self.centre[plane.axis])
        depth, height, width = np.array(self.volume.array.shape) * self.spacing
        scale = min(PLANES_WIDE / (2 * width + height), PLANE_HIGH / max(depth, height))
        picture = self._picture(plane, at, float(scale))
        picture["about"] = f"slice {at + 1} of {self.volume.array.shape[plane.axis]}"
        return picture

    def _strip(self) -> Iterator[dict[str, Any]]:
        depth = self.volume.array.shape[0]
        edges = np.linspace(0, depth, min(STRIP_SLICES, depth) + 1)
        extent = np.array(self.volume.array.shape[1:]) * self.spacing[1:]
        for low, high in pairwise(edges):
            at = int((low + high) / 2)
            picture = self._picture(AXIAL, at, STRIP_PIXELS / float(extent.max()))
            yield picture | {"about": str(at + 1)}

    def _picture(self, plane: Plane, at: int, pixels_per_mm: float) -> dict[str, Any]:
        across = tuple(axis for axis in range(3) if axis != plane.axis)
        size = tuple(max(1, round(self.volume.array.shape[a] * self.spacing[a] * pixels_per_mm)) for a in across)
        grey = _resized(_shown(self.volume.array, plane, at).astype(np.float32), size)
        overlay = None
        if self.labels is not None:
            values = _shown(self.labels, plane, at)
            present = [value for value in self.structures if value and (values == value).any()]
            masks = [_resized_mask(values == value, size) for value in present]
            overlay = marks_uri(masks, [self.places[value] for value in present])
        return {
            "name": plane.name,
            "width": size[1],
            "height": size[0],
            "images": [(name, data_uri(_windowed(grey, window))) for name, window in self.windows.items()],
            "overlay": overlay,
            "circles": list(self._circles(plane, at, across, size)),
            "letters": plane.letters if self.volume.affine is not None and min(size) >= LETTERS_NEED else None,
        }

    def _circles(
        self, plane: Plane, at: int, across: tuple[int, ...], size: tuple[int, ...]
    ) -> Iterator[dict[str, float | str]]:
        """Yield the lesions that a plane cuts, as ellipses in pixels of the picture."""
        for lesion in self.lesions:
            away_mm = abs(lesion["centre"][plane.axis] - at) * self.spacing[plane.axis]
            if away_mm > lesion["radius_mm"]:
                continue
            radius_mm = float(np.sqrt(lesion["radius_mm"] ** 2 - away_mm**2))
            places = []
            for axis, pixels in zip(across, size, strict=True):
                scale = pixels / self.volume.array.shape[axis]
                places.append((pixels - (lesion["centre"][axis] + 0.5) * scale, radius_mm / self.spacing[axis] * scale))
            (y, ry), (x, rx) = places
            yield {"label": lesion["label"], "x": x, "y": y, "rx": rx, "ry": ry}

    def _legend(self) -> dict[str, Any]:
        """Name the structures that are there, the largest first."""
        voxels = np.empty(0) if self.labels is None else count_values(self.labels, int(self.labels.max()) + 1)
        ordered = [int(value) for value in np.argsort(-voxels, kind="stable") if voxels[value]]
        present = [
            (self.structures[value], colour(self.places[value])) for value in ordered if value in self.structures
        ]
        return {"named": present[:NAMED_STRUCTURES], "others": max(0, len(present) - NAMED_STRUCTURES)}


def _middle(labels: Shaped[np.ndarray, "d h w"], axis: int) -> int:
    """Return the slice before and after which lie half of the labelled voxels; their places would fill the memory."""
    counts = np.count_nonzero(labels, axis=tuple(other for other in range(3) if other != axis))
    return int(np.searchsorted(np.cumsum(counts), counts.sum() / 2))


def stated(value: Any) -> Any:
    """Return a cell of a table, None where it is empty."""
    return None if value is None or value != value else value


def _shown(array: Shaped[np.ndarray, "d h w"], plane: Plane, at: int) -> Shaped[np.ndarray, "h w"]:
    """Return a plane as it is looked at: superior or anterior up; right, in sagittal planes anterior, on the left."""
    return np.take(array, at, axis=plane.axis)[::-1, ::-1]


def _resized(image: Float[np.ndarray, "h w"], size: tuple[int, ...]) -> Float[np.ndarray, "h w"]:
    import cv2

    shrinks = image.shape[0] > size[0] or image.shape[1] > size[1]
    return cv2.resize(
        np.ascontiguousarray(image), (size[1], size[0]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )


def _resized_mask(mask: Bool[np.ndarray, "h w"], size: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """Resize a mask; one that is smaller than the pixels of the page stays visible."""
    share = _resized(mask.astype(np.float32), size)
    inside = share >= 0.5
    return inside if inside.any() else share > 0


def _windowed(image: Float[np.ndarray, "h w"], window: WindowConfig) -> UInt8[np.ndarray, "h w"]:
    return np.rint(np.clip((image - window.low) / window.width, 0, 1) * 255).astype(np.uint8)


def _windows(volume: Volume) -> dict[str, WindowConfig]:
    """Return the windows to switch between; values that are no HU have the one that holds nearly all of them."""
    if str(volume.intensity) == "hu":
        return {name: WindowConfig(centre=PRESETS[name][0], width=PRESETS[name][1]) for name in HU_WINDOWS}
    sample = volume.array[:: max(1, len(volume.array) // 32), ::4, ::4]
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    return {"range": WindowConfig(centre=(low + high) / 2, width=max(high - low, 1.0))}


def _obliqueness(volume: Volume) -> float:
    """Return the largest angle in degrees between an array axis and the direction that it is named for."""
    if volume.affine is None:
        return 0.0
    axes = volume.affine[:3, [2, 1, 0]]
    cosines = np.abs(np.diag(axes)) / np.linalg.norm(axes, axis=0)
    return float(np.degrees(np.arccos(np.clip(cosines, -1, 1))).max())


def _lesions_in_voxels(row: Mapping[Any, Any], volume: Volume) -> Iterator[dict[str, Any]]:
    """Yield the lesions of a volume: centre as index along d, h, w, and radius; those without a size get 5 mm."""
    if volume.affine is None:
        return
    to_index = np.linalg.inv(volume.affine)
    for lesion in json.loads(row.get("lesions") or "[]"):
        if lesion["image_id"] != row["image_id"]:
            continue
        centre = (to_index @ np.array([*lesion["centre_mm"], 1.0]))[:3]
        if np.all(centre >= -0.5) and np.all(centre <= np.array(volume.array.shape) - 0.5):
            diameter = lesion["diameter_mm"]
            yield {"label": lesion["label"], "centre": centre, "radius_mm": 5.0 if diameter is None else diameter / 2}
