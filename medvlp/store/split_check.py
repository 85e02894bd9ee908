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
    studies = [
        Study(
            study_id=str(study_id),
            patient_id=str(own["patient_id"].iloc[0]),
            images=tuple(
                ImageRef(str(image_id), str(path)) for image_id, path in zip(own["image_id"], own["path"], strict=True)
            ),
            split=own["split"].iloc[0] or None,
        )
        for study_id, own in opened.images.groupby("study_id", sort=False)
    ]
    return apply_split_lists(lists, studies, [opened.card])[1]
