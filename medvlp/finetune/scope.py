"""What the training images of a store were, as far as the store says it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from medvlp.tasks._tuned import Scope

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int

    from medvlp.store.array_store import Store

KNOWN_SHARE = 0.9
"""Share of the training images that must say a field, or it counts as not known."""


def scope_of(store: Store, train: Int[np.ndarray, " m"]) -> Scope:
    """Return modalities, views and body parts of the training images, given by their rows; see `KNOWN_SHARE`."""
    frame = store.samples().iloc[train]
    parts = frame["attributes"].map(lambda text: json.loads(text).get("body_part") if isinstance(text, str) else None)
    found = {"modalities": frame["modality"], "views": frame["view"], "body_parts": parts}
    return Scope(
        **{
            name: tuple(sorted(column.dropna().astype(str).unique())) if column.notna().mean() >= KNOWN_SHARE else ()
            for name, column in found.items()
        }
    )
