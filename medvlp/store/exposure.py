"""Which test images a pre-training run on the other images would have seen, in whatever disguise.

Guarantee: an image counts as seen only for a reason that is named with it: the same file or pixels, near-identical
pixels, an id that the leak map ties to it, or its patient. Reasons are transitive: a copy of a copy is a copy. Patients
are compared where the leak map says that both data sets number them alike, and between stores of personal ids that were
hashed with one salt.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.store.leak_map import Overlap, overlaps_between
from medvlp.types import UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd

TRAINING = ("train", "val")
PERSONAL = "personal ids hashed with "
"""Begins `people` of stores whose ids were personal: one salt, one numbering, whatever the data set."""
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
            tied: set[int] = set()
            for column in ("image_id", "study_id"):
                rest = inner[~inner.index.isin(tied)]  # a study ties only images that their own ids do not tie
                names, keys = ([_stem(name) for name in side[column]] for side in (outer, rest))
                found += _tied(outer, rest, names, keys, overlap)
                tied |= {row for _, row, other in found if other is overlap}
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
        row |= {
            "inner_images": len(inner),
            "tied_by_id": len({second for _, second, other in tied if other is overlap}),
        }
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

    Images without a split count as training images for the other stores: they are trained on as a whole.

    Args:
        images: The joint image table, rows numbered from 0, with `people` (which numbering of patients the store uses).
        groups: Images that are the same picture.
        tied: Pairs tied by ids.
    """
    split = images["split"].to_numpy(dtype=object)
    trained, tested, place = np.isin(split, TRAINING), split == "test", images["place"].to_numpy()
    unsplit = np.array([one is None or one != one for one in split], bool)
    candidates = trained | unsplit
    stores, ids = (images[name].to_numpy(dtype=object) for name in ("store", "image_id"))

    def names(row: int) -> str:
        return f"{stores[row]}/{ids[row]} ({split[row] or 'no split'})"

    by_reason = {
        BY_PATIENT: _by_patient(images, candidates, tested),
        BY_ID: _by_id(tied, candidates, tested),
        BY_PICTURE: _by_picture(groups, candidates, tested),
    }
    found = []
    for row in np.flatnonzero(tested).tolist():
        showing = {}
        for reason, others in by_reason.items():
            own = others.get(row, _NONE)
            showing[reason] = own[trained[own] | (place[own] != place[row])]
        shown = [own for own in showing.values() if len(own)]
        seen = shown[0] if len(shown) == 1 else np.unique(np.concatenate([_NONE, *shown]))
        if len(seen):
            found.append(
                {
                    "image": names(row),
                    "image_id": ids[row],
                    "store": stores[row],
                    "by": sorted(reason for reason, own in showing.items() if len(own)),
                    "seen_as": [names(other) for other in seen[:20].tolist()],
                    "count": len(seen),
                    "count_by_store": dict(Counter(stores[seen].tolist())),
                }
            )
    return found


Others = dict[int, np.ndarray]
"""Test row -> rows that may have been trained on and show it; arrays are shared between rows."""
_NONE = np.empty(0, np.int64)


def _by_picture(groups: Groups, candidates: np.ndarray, tested: np.ndarray) -> Others:
    found: Others = {}
    for rows in map(np.array, groups.members().values()):
        found |= dict.fromkeys(rows[tested[rows]].tolist(), rows[candidates[rows]])
    return found


def _by_id(tied: Sequence[tuple[int, int, Overlap]], candidates: np.ndarray, tested: np.ndarray) -> Others:
    found: dict[int, list[int]] = defaultdict(list)
    for first, second, _ in tied:
        for row, other in ((first, second), (second, first)):
            if tested[row] and candidates[other]:
                found[row].append(other)
    return {row: np.unique(others) for row, others in found.items()}


def _by_patient(images: pd.DataFrame, candidates: np.ndarray, tested: np.ndarray) -> Others:
    """Return rows of the same patient, where both stores number patients alike."""
    family = {name: name for name in images["dataset"].unique()}
    for overlap in overlaps_between(family):
        if overlap.patients:
            old, new = family[overlap.inner], family[overlap.outer]
            family = {name: new if root == old else root for name, root in family.items()}
    groups = zip(images["dataset"].map(family), images["people"], strict=True)
    people = [own if own.startswith(PERSONAL) else f"{own}{group}" for group, own in groups]
    rows_of: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(people, images["patient_id"], strict=True)):
        if key[1] != UNKNOWN_PATIENT:
            rows_of[key].append(row)
    found: Others = {}
    for rows in map(np.array, rows_of.values()):
        found |= dict.fromkeys(rows[tested[rows]].tolist(), rows[candidates[rows]])
    return found
