"""Labels of one picture in several data sets: where they contradict each other.

Guarantee: only labels that both cards tie to the same CheXpert finding are compared, and only present against absent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvlp.types import ABSENT, PRESENT

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.store.array_store import Store


def finding_columns(store: Store) -> dict[str, list[str]]:
    """Return CheXpert finding -> labels of the store that mean it."""
    names: dict[str, list[str]] = defaultdict(list)
    for label in store.label_names:
        names[store.card.chexpert.get(label, label)].append(label)
    return dict(names)


def finding_values(studies: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> dict[str, dict[str, float]]:
    """Return study -> finding -> 1 where a label that means it is present, 0 where all are absent; others left out."""
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for finding, labels in columns.items():
        table = studies[[f"label:{label}" for label in labels]].to_numpy(float)
        present, absent = (table == PRESENT).any(axis=1), (table == ABSENT).all(axis=1)
        for study_id, one, none in zip(studies["study_id"], present, absent, strict=True):
            if one or none:
                values[study_id][finding] = PRESENT if one else ABSENT
    return dict(values)


def conflicts(stores: Sequence[Store], images: pd.DataFrame, groups: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return per pair of data sets and finding how often the same picture is present in one and absent in the other.

    Args:
        stores: The stores, in the order of `images["place"]`.
        images: The joint image table.
        groups: Rows that are the same picture.
    """
    values = [finding_values(store.studies, finding_columns(store)) for store in stores]
    counts: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    examples: dict[tuple[str, str, str], str] = {}
    for rows in groups:
        chosen: dict[str, int] = {}
        for row in rows:
            chosen.setdefault(images["dataset"][row], row)
        names = sorted(chosen)
        for at, first in enumerate(names):
            for second in names[at + 1 :]:
                a, b = (
                    values[images["place"][row]].get(images["study_id"][row], {})
                    for row in (chosen[first], chosen[second])
                )
                for finding in sorted(a.keys() & b.keys()):
                    key = (first, second, finding)
                    counts[key][0] += 1
                    if a[finding] != b[finding]:
                        counts[key][1] += 1
                        pair = (
                            f"{images['store'][row]}/{images['image_id'][row]}"
                            for row in (chosen[first], chosen[second])
                        )
                        examples.setdefault(key, " and ".join(pair))
    return [
        {"a": a, "b": b, "finding": finding, "compared": compared, "conflicts": bad, "example": examples[a, b, finding]}
        for (a, b, finding), (compared, bad) in sorted(counts.items(), key=lambda item: -item[1][1])
        if bad
    ]
