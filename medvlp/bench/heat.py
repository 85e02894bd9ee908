"""Where an encoder looked for its answer: heat maps of a few test images, kept with a cell of a classification.

Guarantee: which images are shown follows from the test samples and the cell's predictions alone: those of the report's
examples, of each label one for each outcome (found, missed, false alarm, rightly absent) at the cell's threshold. A map
decides no number; where an encoder has none, or it fails, the cell has its numbers without it.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.chosen import choose
from medvlp.types import Predictions

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.bench.plan import Cell
    from medvlp.tasks.base import Head, Kept, Samples

logger = logging.getLogger(__name__)

MAPS = "maps.parquet"
OUTCOMES = {
    (True, True): "found",
    (True, False): "missed",
    (False, True): "false alarm",
    (False, False): "rightly absent",
}
"""(present, called) -> outcome."""
MOST = 12
"""Maps of a cell."""
STEPS = 255
"""Maps are kept in whole parts of their highest value."""


def heat_maps(
    cell: Cell, head: Head, test: Samples, predictions: Kept, thresholds: Mapping[str, float]
) -> pd.DataFrame | None:
    """Return one row per map: sample_id, label, outcome, score, high, rows, columns, map; None where there is none.

    Cells of few labels, and draws and shots of them, have none.

    Args:
        cell: The cell.
        head: What was fitted.
        test: Test samples.
        predictions: Its answers to them.
        thresholds: Label -> threshold, chosen on validation.
    """
    import pandas as pd

    if head.maps is None or cell.fraction < 1 or cell.shots or not isinstance(predictions, Predictions):
        return None
    chosen = list(_chosen(test, predictions, thresholds))[:MOST]
    if not chosen:
        return None
    at = sorted({row for row, *_ in chosen})
    try:
        maps = head.maps(test.take(np.array(at)))
    except Exception as error:  # a picture must not cost the numbers
        logger.warning("%s: no heat maps of %s: %s", cell.encoder, cell.task, getattr(error, "what", error))
        return None
    if maps is None or not np.isfinite(maps).all():
        return None
    return pd.DataFrame([_row(test, predictions, maps[at.index(row)], row, k, outcome) for row, k, outcome in chosen])


def _chosen(test: Samples, predictions: Predictions, thresholds: Mapping[str, float]) -> Iterator[tuple[int, int, str]]:
    """Yield (row, label, outcome), outcome by outcome, so that what is left out is a label and no outcome."""
    pool = choose(test)
    for (present, called), outcome in OUTCOMES.items():
        for k, name in enumerate(predictions.label_names):
            threshold = thresholds.get(name, np.nan)
            if np.isnan(threshold):
                continue
            of = (
                row
                for row in pool
                if predictions.labels[row, k] == float(present)
                and bool(predictions.scores[row, k] >= threshold) == called
            )
            if (first := next(of, None)) is not None:
                yield first, k, outcome


def _row(test: Samples, predictions: Predictions, maps: np.ndarray, row: int, k: int, outcome: str) -> dict[str, Any]:
    own = np.maximum(maps[k], 0.0)
    high = float(own.max())
    return {
        "sample_id": test.sample_ids[row],
        "label": predictions.label_names[k],
        "outcome": outcome,
        "score": round(float(predictions.scores[row, k]), 6),
        "high": float(f"{high:.4g}"),
        "rows": own.shape[0],
        "columns": own.shape[1],
        "map": np.rint(own * (STEPS / high if high > 0 else 0.0)).astype(np.uint8).tobytes(),
    }


def shown_maps(frame: pd.DataFrame, samples: Collection[str]) -> list[dict[str, Any]]:
    """Return the maps of the images that a page shows, as plain records; `map` is base64 of rows of bytes."""
    import base64

    return [
        {
            "sample": row["sample_id"],
            "label": row["label"],
            "outcome": row["outcome"],
            "score": f"{row['score']:.2f}",
            "grid": [int(row["rows"]), int(row["columns"])],
            "map": base64.b64encode(row["map"]).decode("ascii"),
        }
        for row in frame.to_dict("records")
        if row["sample_id"] in samples
    ]
