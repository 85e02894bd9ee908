"""Test images that the model is most confidently wrong about.

Guarantee: which ones are shown follows from the predictions alone; of a label one image per patient. A caption holds
label, answer, age band, sex, view and site, and the row of the image in `predictions/test.parquet`: no id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from medvlp.html import data_uri
from medvlp.html.numbers import decimal
from medvlp.html.pictures import edge
from medvlp.metrics.segmentation import SegmentationScoring
from medvlp.metrics.subgroups import NOT_KNOWN
from medvlp.metrics.volume_segmentation import VolumeSegmentationScoring
from medvlp.store.pictures import as_shown, axial, grey, stored_images
from medvlp.tasks._questions import questions_of
from medvlp.tasks.segmentation import Outlines
from medvlp.tasks.volume_segmentation import VolumeOutlines
from medvlp.tasks.vqa import Replies
from medvlp.types import Predictions

if TYPE_CHECKING:
    from medvlp.config.task import TaskConfig
    from medvlp.finetune.outcome import Outcome
    from medvlp.store.array_store import Store

MOST, EACH = 24, 6
"""Images on the page, and of each label."""
ABOUT = {
    "classification": "the most confident wrong answers, one per patient and label",
    "segmentation": "the least overlap of mask and reference",
    "volume_segmentation": "the least overlap of mask and reference, in the slice where they differ most",
    "vqa": "wrong answers, one per patient and kind of question",
}
"""Task -> which images are shown."""
REFERENCE, PREDICTED = (62, 201, 255), (255, 176, 0)
"""Colours of outlines: red, green, blue."""


def mistakes(outcome: Outcome, store: Store, task: TaskConfig) -> list[dict[str, Any]]:
    """Return the images with their captions, label by label, the most confident mistake first; see `ABOUT`."""
    test, thresholds = outcome.test, outcome.thresholds
    if isinstance(test, Outlines):
        return _worst_masks(test, store, outcome.groups)
    if isinstance(test, VolumeOutlines):
        return _worst_volumes(test, store, outcome.groups)
    if isinstance(test, Replies):
        return _wrong_answers(test, outcome, store, task)
    if not isinstance(test, Predictions):
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
    pictures = [data_uri(grey(image)) for image in _stored(store, [test.sample_ids[row] for _, row in chosen])]
    return [
        {
            "label": test.label_names[k],
            "row": row,
            "answer": "missed" if test.labels[row, k] == 1 else "false alarm",
            "told": f"probability {decimal(float(test.scores[row, k]))}",
            "about": _about(outcome.groups, row),
            "image": picture,
        }
        for (k, row), picture in zip(chosen, pictures, strict=True)
    ]


def _about(groups: Mapping[str, Sequence[str]], row: int) -> str:
    return ", ".join(of[row] for of in groups.values() if of[row] != NOT_KNOWN)


def _wrong_answers(test: Replies, outcome: Outcome, store: Store, task: TaskConfig) -> list[dict[str, Any]]:
    """Return questions that are answered wrongly, of each kind a few, one per patient."""
    asked = questions_of(store, task).set_index("question_id")["question"]
    wrong = [row for row, (given, right) in enumerate(zip(test.given, test.answers, strict=True)) if given != right]
    kinds = list(dict.fromkeys(test.kinds[row] for row in wrong))
    each = max(1, min(EACH, MOST // max(len(kinds), 1)))
    # Not in the order of ids, which may be that of sites.
    order = sorted(wrong, key=lambda row: hashlib.sha256(test.sample_ids[row].encode()).digest())
    chosen: list[int] = []
    for kind in kinds:
        first = {test.patient_ids[row]: row for row in reversed(order) if test.kinds[row] == kind}
        chosen += [row for row in order if first.get(test.patient_ids[row]) == row][:each]
    if not chosen or outcome.rows is None:
        return []
    chosen = chosen[:MOST]
    images = stored_images(store, outcome.rows[chosen])
    return [
        {
            "label": test.kinds[row],
            "row": row,
            "answer": f"{test.given[row] or 'no answer'}, right: {test.answers[row]}",
            "told": str(asked[test.sample_ids[row]]),
            "about": _about(outcome.groups, row),
            "image": data_uri(grey(image)),
        }
        for row, image in zip(chosen, images, strict=True)
    ]


def _worst_masks(test: Outlines, store: Store, groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return the images whose masks overlap least with the reference, both outlined."""
    dice = np.nanmax(SegmentationScoring().outcomes(test, {})["dice"], axis=1, initial=-1)
    each = max(1, min(EACH, MOST // len(test.label_names)))
    chosen: list[int] = []
    for label in test.label_names:
        own = [row for row in np.argsort(dice, kind="stable") if test.labels[row] == label and dice[row] >= 0]
        chosen += own[:each]
    images = _stored(store, [test.sample_ids[row] for row in chosen])
    found = []
    for row, image in zip(chosen, images, strict=True):
        (reference,), (predicted,) = test.masks(slice(row, row + 1))
        shown = np.repeat(grey(image)[..., None], 3, axis=2) if image.ndim == 2 else grey(image).copy()
        for mask, colour in ((reference, REFERENCE), (predicted, PREDICTED)):
            own = cv2.resize(mask.astype(np.uint8), shown.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
            shown[edge(own)] = colour
        found.append(
            {
                "label": test.labels[row],
                "row": int(row),
                "answer": f"Dice {decimal(float(dice[row]), 2)}",
                "told": "reference blue, model orange",
                "about": _about(groups, row),
                "image": data_uri(shown),
            }
        )
    return found


def _worst_volumes(test: VolumeOutlines, store: Store, groups: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
    """Return slices of the volumes whose masks overlap least with the reference, both outlined."""
    dice = np.nanmax(VolumeSegmentationScoring().outcomes(test, {})["dice"], axis=1, initial=-1)
    each = max(1, min(EACH, MOST // len(test.label_names)))
    position = _rows_of(store)
    found = []
    for label in test.label_names:
        own = [row for row in np.argsort(dice, kind="stable") if test.labels[row] == label and dice[row] >= 0]
        for row in own[:each]:
            index = int(store.images["index"].iloc[position[test.sample_ids[row]]])
            reference, predicted = test.masks(row)
            at = int((reference ^ predicted).sum(axis=(1, 2)).argmax())
            shown = np.repeat(axial(store, index, at)[..., None], 3, axis=2)
            for mask, colour in ((reference[at], REFERENCE), (predicted[at], PREDICTED)):
                shown[edge(as_shown(mask.astype(np.uint8), store.spacing_mm(index), nearest=True) > 0)] = colour
            found.append(
                {
                    "label": test.labels[row],
                    "row": int(row),
                    "answer": f"Dice {decimal(float(dice[row]), 2)}",
                    "told": f"slice {at + 1} of {len(reference)}; reference blue, model orange",
                    "about": _about(groups, row),
                    "image": data_uri(shown),
                }
            )
    return found


def _rows_of(store: Store) -> dict[str, int]:
    return {image: place for place, image in enumerate(store.images["image_id"])}


def _stored(store: Store, image_ids: list[str]) -> list[np.ndarray]:
    position = _rows_of(store)
    return stored_images(store, np.array([position[image] for image in image_ids], dtype=np.intp))
