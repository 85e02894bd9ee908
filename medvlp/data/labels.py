"""Labels of the images of a store, in the columns that a method trains on.

Guarantee: a label is never filled in; of several labels that mean one finding the strongest counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError, nearest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jaxtyping import Float

    from medvlp.store.array_store import Store


def image_labels(
    store: Store, wanted: Sequence[str], *, to_findings: bool
) -> tuple[tuple[str, ...], Float[np.ndarray, "n k"] | None]:
    """Return label names and the labels of every image of the store.

    Args:
        store: The store.
        wanted: Label columns used; empty takes all.
        to_findings: Map them to the CheXpert findings, by the card's `chexpert:` and by equal names. Of several labels
            that mean one finding the strongest counts: present, then uncertain, then absent. A finding that no label
            means stays NaN.

    Raises:
        UserError: A label that the store does not have.
    """
    names = list(store.label_names)
    for name in wanted:
        if name not in names:
            raise UserError(
                f"The store has no label '{name}'.{nearest(name, names)}", "data.labels", f"Use: {', '.join(names)}."
            )
    used = list(wanted) or names
    if not used and not to_findings:
        return (), None
    of_study = store.studies.set_index("study_id")[[f"label:{name}" for name in used]]
    values = of_study.loc[store.images["study_id"]].to_numpy(dtype=np.float32)
    if not to_findings:
        return tuple(used), values
    from medvlp.text.labeler import FINDINGS

    return tuple(FINDINGS), map_labels(values, used, store.card.chexpert, FINDINGS)


def map_labels(
    values: Float[np.ndarray, "n m"], names: Sequence[str], mapping: Mapping[str, str], findings: Sequence[str]
) -> Float[np.ndarray, "n k"]:
    """Bring labels into the columns of `findings`; see `image_labels`."""
    mapped = np.full((len(values), len(findings)), np.nan, dtype=np.float32)
    rank = {0.0: 0, -1.0: 1, 1.0: 2}
    for column, name in enumerate(names):
        finding = mapping.get(name, name)
        if finding not in findings:
            continue
        target = mapped[:, list(findings).index(finding)]
        for value in rank:
            weaker = [np.isnan(target)] + [target == other for other in rank if rank[other] < rank[value]]
            target[(values[:, column] == value) & np.any(weaker, axis=0)] = value
    return mapped
