"""The abdominal CT and the clips: sides are right, tumours lie in their organ, tracings lie on what is drawn."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from medvlp.sources.phantom.abdomen import abdomen_volume
from medvlp.sources.phantom.clips import phantom_clip
from medvlp.sources.phantom.examples import ExampleTracing, phantom_examples


def test_organs_are_where_they_are_in_a_patient() -> None:
    made = abdomen_volume(0, 3, 64)
    values = {name: value for value, name in made.names.items()}

    def centre(name: str) -> np.ndarray:
        index = np.argwhere(made.structures == values[name]).mean(axis=0)
        return (made.affine @ [*index, 1])[:3]

    assert centre("liver")[0] > 0 > centre("spleen")[0]
    assert centre("kidney_right")[0] > 0 > centre("kidney_left")[0]
    assert centre("inferior_vena_cava")[0] > centre("aorta")[0]
    assert centre("vertebrae_L3")[1] < centre("stomach")[1]
    assert centre("urinary_bladder")[2] < centre("kidney_left")[2] < centre("heart")[2]
    assert abs(made.array[made.structures == values["liver"]].mean() - 60) < 2
    assert (made.array[0, 0] < -900).all()
    assert np.array_equal(made.array, abdomen_volume(0, 3, 64).array)
    assert not np.array_equal(made.array, abdomen_volume(0, 4, 64).array)


def test_tumours_are_marked_at_their_place() -> None:
    seen = 0
    for number in range(4):
        made = abdomen_volume(1, number, 48)
        values = {name: value for value, name in made.names.items()}
        for lesion in made.lesions:
            d, h, w = np.rint(np.linalg.solve(made.affine, [*lesion.centre_mm, 1]))[:3].astype(int)
            assert made.structures[d, h, w] == values[lesion.finding]
            seen += 1
    assert seen


def area(tracing: ExampleTracing) -> float:
    points = [(x, y) for x, y, _, _ in tracing.chords] + [(x, y) for _, _, x, y in reversed(tracing.chords)]
    x, y = np.array(points).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def test_tracings_lie_on_the_ventricle() -> None:
    made = phantom_clip(0, 1, "heart")
    diastole, systole = made.tracings
    for tracing in made.tracings:
        smooth = cv2.medianBlur(made.frames[tracing.frame], 7)
        assert area(tracing) == pytest.approx((smooth < 40).sum(), rel=0.1)
        for x1, y1, x2, y2 in tracing.chords:
            assert made.frames[tracing.frame][round((y1 + y2) / 2), round((x1 + x2) / 2)] < 60
    assert area(diastole) > area(systole)
    assert made.volumes_ml[1] > made.volumes_ml[0] > 0


def test_examples_of_each_kind() -> None:
    abdomen, heart, surgery = (next(phantom_examples(1, 0, 32, needs=kind)) for kind in ("abdomen", "heart", "surgery"))
    assert abdomen.volume is not None
    assert heart.clip is not None
    assert heart.clip.frames.shape == (24, 112, 112)
    assert surgery.clip is not None
    assert surgery.clip.frames.shape == (12, 96, 96, 3)
    assert len(surgery.clip.phases) == len(surgery.clip.tools) == 12
