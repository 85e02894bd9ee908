"""Split lists against a prepared store.

Guarantee: nothing is written; the lists are examined with the same checks as when a store is prepared with them.
"""

from __future__ import annotations

from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.cards import load_card
from medvlp.sources.splits import SplitLists, SplitReport, apply_split_lists, check_split_lists
from medvlp.store.array_store import Store
from medvlp.types import ImageRef, Study


def check(lists: SplitLists, store: Path | None) -> SplitReport:
    """Return what is wrong with split lists, by themselves or against the images and patients of a store.

    Raises:
        UserError: There is no such store, its ids are hashed, or no name of the lists is an image of it.
    """
    if store is None:
        return check_split_lists(lists, [load_card(name) for name in SOURCES.names()])
    opened = Store.open(store)
    if opened.meta["made_from"]["settings"]["identifiers"]["ids"] == "hash":
        raise UserError(
            "The ids of the store are hashed: names of lists cannot be found in it.",
            store,
            "Prepare the store with split_lists=FOLDER; the same checks are made, and store.json records them.",
        )
    return apply_split_lists(lists, _studies(opened), [opened.card])[1]


def _studies(store: Store) -> list[Study]:
    """Return what lists are compared with: ids, patients, images and splits (None where the data set gives none)."""
    images: dict[str, list[ImageRef]] = {}
    facts: dict[str, tuple[str, str | None]] = {}
    columns = (store.images[name] for name in ("study_id", "patient_id", "split", "image_id", "path"))
    for study_id, patient_id, split, image_id, path in zip(*columns, strict=True):
        images.setdefault(study_id, []).append(ImageRef(image_id, path))
        facts[study_id] = patient_id, split if isinstance(split, str) and split else None
    return [Study(name, facts[name][0], tuple(own), split=facts[name][1]) for name, own in images.items()]
