"""Test images that the model is most confidently wrong about.

Guarantee: which ones are shown follows from the predictions alone; one image per patient and label. A caption holds
label, probability, view, age band and sex, and the row of the image in `predictions/test.parquet`: no id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.finetune.outcome import groups_of
from medvlp.html import data_uri
from medvlp.metrics.subgroups import NOT_KNOWN

if TYPE_CHECKING:
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.finetune.outcome import Outcome
    from medvlp.store.array_store import Store

MOST, EACH = 24, 6
"""Images on the page, and of each label."""
PIXELS = 224


def mistakes(config: FinetuneConfig, outcome: Outcome, store: Store) -> list[dict[str, Any]]:
    """Return the images with their captions, label by label, the most confident mistake first."""
    test, thresholds = outcome.test, outcome.thresholds
    if config.task != "classification":
        return []
    each = max(1, min(EACH, MOST // len(test.label_names)))
    chosen: list[tuple[int, int]] = []
    for k, name in enumerate(test.label_names):
        truth, scores = test.labels[:, k], test.scores[:, k]
        wrong = ~np.isnan(truth) & ((scores >= thresholds[name]) != (truth == 1)) & ~np.isnan(thresholds[name])
        order = np.argsort(-np.abs(scores - truth), kind="stable")
        patients: set[str] = set()
        for row in order[wrong[order]].tolist():
            if len(patients) < each and test.patient_ids[row] not in patients:
                patients.add(test.patient_ids[row])
                chosen.append((k, row))
    if not chosen:
        return []
    position = {image: place for place, image in enumerate(store.images["image_id"])}
    places = store.images["index"].to_numpy()[[position[test.sample_ids[row]] for _, row in chosen]]
    pictures = [_picture(image) for image in store.read(places)]
    groups = groups_of(store, test.sample_ids)
    return [
        {
            "label": test.label_names[k],
            "row": row,
            "truth": bool(test.labels[row, k] == 1),
            "probability": float(test.scores[row, k]),
            "about": ", ".join(of[row] for of in groups.values() if of[row] != NOT_KNOWN),
            "image": picture,
        }
        for (k, row), picture in zip(chosen, pictures, strict=True)
    ]


def _picture(stored: np.ndarray) -> str:
    import cv2

    image = stored if stored.dtype == np.uint8 else (stored >> 8).astype(np.uint8)
    side = min(PIXELS, image.shape[0])
    return data_uri(cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA))
