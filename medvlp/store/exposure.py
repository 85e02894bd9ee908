"""Which test images a pre-training run on the other images would have seen, in whatever disguise.

Guarantee: an image counts as seen only for a reason that is named with it: the same file or pixels, near-identical
pixels, an id that the leak map ties to it, or its patient. Reasons are transitive: a copy of a copy is a copy.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.store.leak_map import Overlap, overlaps_between
from medvlp.types import UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd

TRAINING = ("train", "val")
BY_PICTURE, BY_ID, BY_PATIENT = "picture", "id", "patient"


class Groups:
    """Rows that show the same thing, joined pair by pair (union-find)."""

    def __init__(self, size: int) -> None:
        self._parent = np.arange(size)

    def find(self, row: int) -> int:
        """Return the row that stands for the group of `row`."""
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = int(self._parent[row])
        return row

    def join(self, first: int, second: int) -> None:
        """Put two rows into one group."""
        self._parent[self.find(second)] = self.find(first)

    def members(self) -> dict[int, list[int]]:
        """Return the groups of two rows and more."""
        groups: dict[int, list[int]] = defaultdict(list)
        for row in range(len(self._parent)):
            groups[self.find(row)].append(row)
        return {root: rows for root, rows in groups.items() if len(rows) > 1}


def picture_groups(images: pd.DataFrame, near: Iterable[tuple[int, int]]) -> Groups:
    """Return the groups of images with the same file, the same pixels, or near-identical pixels.

    Args:
        images: The joint image table, rows numbered from 0.
        near: Pairs of near-identical rows.
    """
    groups = Groups(len(images))
    for column in ("sha256", "pixels_sha256"):
        for rows in images.groupby(column).indices.values():
            for row in rows[1:]:
                groups.join(int(rows[0]), int(row))
    for first, second in near:
        groups.join(first, second)
    return groups


def id_pairs(images: pd.DataFrame) -> list[tuple[int, int, Overlap]]:
    """Return pairs of rows of different data sets that the leak map ties by an id or by an attribute.

    Args:
        images: The joint image table with `dataset`, `image_id`, `study_id` and `attributes` (a mapping per row).
    """
    found: list[tuple[int, int, Overlap]] = []
    for overlap in overlaps_between(images["dataset"].unique()):
        outer, inner = (images[images["dataset"] == name] for name in (overlap.outer, overlap.inner))
        attribute = overlap.argument("attribute")
        if attribute is not None:
            keys = [_stem(str(facts.get(attribute, ""))) for facts in inner["attributes"]]
            found += _tied(outer, inner, [_stem(name) for name in outer["image_id"]], keys, overlap)
        if "ids" in overlap.by:
            for column in ("image_id", "study_id"):
                names, keys = ([_stem(name) for name in side[column]] for side in (outer, inner))
                found += _tied(outer, inner, names, keys, overlap)
    return list({(first, second): (first, second, overlap) for first, second, overlap in found}.values())


def _tied(
    outer: pd.DataFrame, inner: pd.DataFrame, outer_keys: Sequence[str], inner_keys: Sequence[str], overlap: Overlap
) -> list[tuple[int, int, Overlap]]:
    rows = dict(zip(outer_keys, outer.index.tolist(), strict=True))
    pairs = zip(inner_keys, inner.index.tolist(), strict=True)
    return [(rows[key], row, overlap) for key, row in pairs if key and key in rows]


def _stem(name: str) -> str:
    return re.sub(r"\.(?:png|jpe?g|dcm|dicom|nii|nii\.gz)$", "", name, flags=re.IGNORECASE).rsplit("/", 1)[-1]


def overlap_rows(
    images: pd.DataFrame, groups: Groups, tied: Sequence[tuple[int, int, Overlap]]
) -> list[dict[str, Any]]:
    """Return what the leak map says of the data sets at hand, beside what was found in the stores.

    Overlaps with data sets that are not at hand are named too, with nothing found.
    """
    from medvlp.store.leak_map import overlaps_of

    datasets = images["dataset"].unique().tolist()
    rows = []
    for overlap in dict.fromkeys(known for name in datasets for known in overlaps_of(name)):
        inner = images[images["dataset"] == overlap.inner]
        row: dict[str, Any] = {"outer": overlap.outer, "inner": overlap.inner, "share": overlap.share}
        row |= {"note": overlap.note, "both_here": {overlap.outer, overlap.inner} <= set(datasets)}
        row |= {"inner_images": len(inner), "tied_by_id": sum(other is overlap for _, _, other in tied)}
        row["same_picture"] = _same_picture(images, groups, overlap) if row["both_here"] else 0
        pattern = overlap.argument("names")
        named = [] if pattern is None else [n for n in inner["image_id"] if re.fullmatch(pattern, _stem(n))]
        rows.append(row | {"names_of_outer": len(named)})
    return rows


def _same_picture(images: pd.DataFrame, groups: Groups, overlap: Overlap) -> int:
    outer, inner = ((images["dataset"] == name).to_numpy() for name in (overlap.outer, overlap.inner))
    members = groups.members().values()
    return sum(int(inner[rows].sum()) for rows in members if outer[rows].any())


def exposures(images: pd.DataFrame, groups: Groups, tied: Sequence[tuple[int, int, Overlap]]) -> list[dict[str, Any]]:
    """Return every test image that training on the other images exposes, with all images that expose it.

    Args:
        images: The joint image table, rows numbered from 0.
        groups: Images that are the same picture.
        tied: Pairs tied by ids.
    """
    split = images["split"].to_numpy(dtype=object)
    trained, tested = np.isin(split, TRAINING), split == "test"
    seen: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row, training in _by_patient(images, trained, tested):
        for other in training:
            seen[row][other].add(BY_PATIENT)
    for first, second, _ in tied:
        for row, other in ((first, second), (second, first)):
            if tested[row] and trained[other]:
                seen[row][other].add(BY_ID)
    for rows in groups.members().values():
        training = [row for row in rows if trained[row]]
        for row in rows:
            for other in training if tested[row] else []:
                seen[row][other].add(BY_PICTURE)
    return [
        {
            "image": _name(images, row),
            "store": images["store"][row],
            "by": sorted(set().union(*reasons.values())),
            "seen_as": [_name(images, other) for other in sorted(reasons)[:20]],
            "count": len(reasons),
        }
        for row, reasons in sorted(seen.items())
        if reasons
    ]


def _by_patient(images: pd.DataFrame, trained: np.ndarray, tested: np.ndarray) -> Iterable[tuple[int, list[int]]]:
    """Yield test rows with the training rows of the same patient, where both data sets use the same patient ids."""
    family = {name: name for name in images["dataset"].unique()}
    for overlap in overlaps_between(family):
        if overlap.patients:
            old, new = family[overlap.inner], family[overlap.outer]
            family = {name: new if root == old else root for name, root in family.items()}
    keys = list(zip(images["dataset"].map(family), images["patient_id"], strict=True))
    training: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in np.flatnonzero(trained).tolist():
        training[keys[row]].append(row)
    for row in np.flatnonzero(tested).tolist():
        if keys[row][1] != UNKNOWN_PATIENT and keys[row] in training:
            yield row, training[keys[row]]


def _name(images: pd.DataFrame, row: int) -> str:
    return f"{images['store'][row]}/{images['image_id'][row]} ({images['split'][row] or 'no split'})"
