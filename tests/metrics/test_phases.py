"""Scores of phases within videos against scikit-learn, and their resamples against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.phases import VIDEO, PhaseScoring, video_values
from medvlp.types import Predictions

NAMES = ("first", "second", "third")


def predictions(seed: int = 0) -> Predictions:
    rng = np.random.default_rng(seed)
    lengths = {"video2": 9, "video10": 4, "video1": 6}
    videos = [name for name, length in lengths.items() for _ in range(length)]
    truth = np.concatenate([np.sort(rng.integers(0, 3, length)) for length in lengths.values()])
    truth[:9] = np.minimum(truth[:9], 1)  # a video without the third phase
    return Predictions(
        [str(n) for n in range(len(videos))], videos, NAMES, np.eye(3)[truth], rng.random((len(videos), 3))
    )


def test_scores_are_those_of_scikit_learn_within_each_video() -> None:
    made = predictions()
    truth, called = made.labels.argmax(1), made.scores.argmax(1)
    names = np.array(made.patient_ids)
    rows = {(row.metric, row.label): row.value for row in PhaseScoring().scores(made, dict.fromkeys(NAMES, 0.5))}
    expected = {"video_accuracy": [], "video_f1": []}
    for video in sorted(set(names)):
        own = names == video
        expected["video_accuracy"].append(accuracy_score(truth[own], called[own]))
        expected["video_f1"].append(f1_score(truth[own], called[own], average="macro"))
    for metric, values in expected.items():
        assert rows[metric, "macro"] == pytest.approx(np.mean(values), rel=1e-12)
        np.testing.assert_allclose(video_values(made)[metric][:, -1], values)
    third = [names == video for video in sorted(set(names)) if (truth[names == video] == 2).any()]
    by_hand = np.mean([f1_score(truth[own] == 2, called[own] == 2) for own in third])
    assert rows["video_f1", "third"] == pytest.approx(by_hand)
    assert PhaseScoring.metrics[-2:] == VIDEO


def test_resamples_weigh_videos_as_often_as_they_are_drawn() -> None:
    made = predictions(1)
    resamples = Resamples.draw(made.patient_ids, 20, 3)
    found = PhaseScoring().resampled(made, resamples, dict.fromkeys(NAMES, 0.5))
    names = np.array(made.patient_ids)
    values = video_values(made)
    for metric in VIDEO:
        for row in range(20):
            drawn = [
                values[metric][place]
                for place, video in enumerate(sorted(set(names)))
                for _ in range(int(resamples.counts[row, resamples.patient_of_sample[names == video][0]]))
            ]
            table = np.array(drawn).reshape(-1, 4)
            for column in range(4):
                known = table[:, column][~np.isnan(table[:, column])]
                if len(known):
                    assert found[metric][row, column] == pytest.approx(known.mean())
                else:
                    assert np.isnan(found[metric][row, column])


def test_frames_without_one_phase_are_left_out() -> None:
    made = predictions(2)
    labels = made.labels.copy()
    labels[0], labels[1, :] = np.nan, 1.0
    known = Predictions(made.sample_ids[2:], made.patient_ids[2:], NAMES, made.labels[2:], made.scores[2:])
    holed = Predictions(made.sample_ids, made.patient_ids, NAMES, labels, made.scores)
    for metric in VIDEO:
        np.testing.assert_allclose(video_values(holed)[metric], video_values(known)[metric])
