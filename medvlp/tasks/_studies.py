"""What is known of the studies of a store, and the one vector of a study of clips: the parts of reading by retrieval.

Guarantee: a label that is uncertain, and a measurement that is not given, is no answer. The number of a frame says
nothing about another study and is none either.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.errors import UserError
from medvlp.objectives.study_reading import section_vectors
from medvlp.objectives.terms import unit
from medvlp.progress import progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

OF_THE_LOOP = "frame_"
"""Beginning of the names of measurements that are numbers of frames."""
TEXTS_AT_ONCE = 256


def questions_of(store: Store) -> tuple[str, ...]:
    """Return what can be asked of the studies of a store: its labels and measurements."""
    return (*store.label_names, *(name for name in store.card.measurements if not name.startswith(OF_THE_LOOP)))


def answers_of(store: Store, studies: pd.DataFrame) -> dict[str, Float[np.ndarray, " m"]]:
    """Return question -> answer of each study, NaN where it is not known: labels are 1 or 0, measurements numbers.

    Args:
        store: The store.
        studies: Rows of its table of studies, or of `Store.samples`.
    """
    labels = {name: studies[f"label:{name}"].to_numpy(dtype=np.float64) for name in store.label_names}
    measured = [_measured(row) for row in studies["values"]]
    found = {name: np.where(values >= 0, values, np.nan) for name, values in labels.items()}
    for name in questions_of(store):
        if name not in found:
            found[name] = np.array([values.get(name, np.nan) for values in measured], dtype=np.float64)
    return found


def _measured(row: Any) -> dict[str, float]:
    values = json.loads(row) if isinstance(row, str) else {}
    return {name: np.nan if value is None else float(value) for name, value in values.items()}


def embedded_texts(encoder: Encoder, texts: Sequence[str]) -> Float[torch.Tensor, "m d"]:
    """Return the unit vectors of texts, each wording embedded once."""
    places = {text: number for number, text in enumerate(dict.fromkeys(texts))}
    different, parts = list(places), []
    with progress_bar("texts of known studies", len(different), "texts") as advance:
        for start in range(0, len(different), TEXTS_AT_ONCE):
            parts.append(encoder.embed_text(different[start : start + TEXTS_AT_ONCE]))
            advance(len(parts[-1]))
    return torch.cat(parts)[[places[text] for text in texts]]


def view_weights(views: Sequence[str | None], weights: Mapping[str, float]) -> list[float]:
    """Return the weight of the view of each clip.

    Raises:
        UserError: A clip is of no view that has a weight.
    """
    unknown = sorted({str(view) for view in views if view not in weights})
    if unknown:
        raise UserError(
            f"There are no weights for the view {', '.join(unknown)}.", "views", "Name the view of every clip."
        )
    return [weights[str(view)] for view in views]


def study_vector(
    encoder: Encoder, clips: Float[torch.Tensor, "n d"], weights: Sequence[float] | None = None
) -> Float[torch.Tensor, "1 d"]:
    """Return the unit vector of a study from those of its clips.

    Args:
        encoder: Where they come from.
        clips: Unit vectors, in any order.
        weights: Of the clips; None weighs them as the method has learnt it, or all alike. Where all are 0 the result
            is the zero vector.
    """
    if weights is not None:
        table = torch.tensor([list(weights)], dtype=torch.float64, device=clips.device)
        return section_vectors(clips, torch.arange(len(clips), device=clips.device), table)
    method: Any = None if encoder._text is None else encoder._text.method
    if getattr(method, "attention", None) is None:
        return unit(clips.mean(0, keepdim=True))
    with torch.inference_mode():
        vectors: torch.Tensor = method.study_vectors(clips[None])
        return vectors
