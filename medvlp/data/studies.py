"""What the studies of a store say of each of its images: split, triplets, semantic groups, further images.

Guarantee: every array has one row for each row of the images table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.corpus import reports_of
from medvlp.data.groups import SemanticGroups, find_groups
from medvlp.knowledge.matrix import ternary_matrix

if TYPE_CHECKING:
    from jaxtyping import Int, Int8

    from medvlp.knowledge.bank import KnowledgeBank
    from medvlp.store.array_store import Store


def split_of_images(store: Store) -> np.ndarray:
    """Return the split of every image; "none" where its study has none."""
    split = store.studies.set_index("study_id")["split"]
    return split.loc[store.images["study_id"]].fillna("none").to_numpy(dtype=str)


def triplet_matrices(store: Store, bank: KnowledgeBank | None) -> Int8[np.ndarray, "n 51 75"]:
    """Return the ternary matrix of every image.

    Args:
        store: The store.
        bank: A bank that has read the store's reports; otherwise they are read here, by the same rules.
    """
    from medvlp.text.triplets import cells_of, read_mentions

    name = None if bank is None else next((n for n, m in bank.meta["reports"].items() if m["hash"] == store.hash), None)
    if bank is not None and name is not None:
        ids, matrices = bank.matrices(name)
        of_study = dict(zip(ids, matrices, strict=True))
    else:
        of_study = {s: ternary_matrix(cells_of(read_mentions(report))) for s, report in reports_of(store).items()}
    unknown = ternary_matrix(())
    return np.stack([of_study.get(study, unknown) for study in store.images["study_id"]])


def groups_of(store: Store, rows: Int[np.ndarray, " m"], bank: KnowledgeBank | None) -> SemanticGroups:
    """Return the semantic groups of some images."""
    of_study: dict[str, list[int]] = {}
    for row, study in zip(rows.tolist(), store.images["study_id"].iloc[rows], strict=True):
        of_study.setdefault(study, []).append(row)
    reports = {study: report for study, report in reports_of(store).items() if study in of_study}
    return find_groups(reports, of_study, bank)


def rows_of_studies(store: Store, number: int) -> Int[np.ndarray, "n v"]:
    """Return for every image the rows of `number` images of its study: itself, then the others in turn.

    A study with fewer images gives them again.
    """
    studies = store.images["study_id"].to_numpy()
    of_study: dict[str, list[int]] = {}
    for row, study in enumerate(studies):
        of_study.setdefault(study, []).append(row)
    return np.array(
        [
            np.resize([row, *(other for other in of_study[study] if other != row)], number)
            for row, study in enumerate(studies)
        ],
        dtype=np.int64,
    )
