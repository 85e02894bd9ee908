"""Reading of ejection fractions from the nearest training loops against a loop in numpy, and what is refused."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import clip_stores
import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from medvlp.bench.plan import Judged, lacking
from medvlp.config.task import LabelConfig, TaskConfig
from medvlp.data.clips import captions_of
from medvlp.data.texts import report_text
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._samples import label_matrix
from medvlp.tasks._studies import answers_of
from medvlp.tasks.base import SPACE, Subject
from medvlp.tasks.study_reading import Readings
from medvlp.zoo import Encoder, load_encoder

TAKEN = {"size": 32, "frames": 2, "every": 4}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Encoder]:
    folder = tmp_path_factory.mktemp("reading_task")
    store = Store.open(clip_stores.make_echo(folder, 40, size=32))
    return store, load_encoder(clip_stores.make_model(folder / "run", store.config.resolved(), TAKEN))


def task(**reading: Any) -> Any:
    given = {"name": "x", "version": 1, "type": "study_reading", "dataset": "echonet_dynamic"}
    return TASKS.get("study_reading")(TaskConfig.model_validate(given | {"study_reading": reading}))


def measured(store: Store, studies: list[str], name: str) -> np.ndarray:
    values = store.studies.set_index("study_id")["values"]
    return np.array([json.loads(values[study])[name] for study in studies])


def read_by_hand(known: np.ndarray, asked: np.ndarray, said: np.ndarray, number: int) -> np.ndarray:
    """The mean of the nearest; the last place is shared by those that are equally near."""
    found = []
    for one in asked:
        near = np.round(known @ one, 6)
        last = np.sort(near)[-number]
        above, level = said[near > last], said[near == last]
        found.append((above.sum() + level.mean() * (number - len(above))) / number)
    return np.array(found)


def test_by_texts_it_is_the_mean_of_the_nearest_captions(made: tuple[Store, Encoder]) -> None:
    store, encoder = made
    own = task(questions=["EF", "EDV"], neighbours=[1, 3, 8])
    samples = own.samples(store)
    subject = Subject("x", store, lambda: np.zeros((1, 1)), lambda: encoder)
    head = own.fit(subject, "knn", samples["train"], samples["val"], 0)
    kept = head.predict(samples["test"])
    told = captions_of(store)
    texts = [report_text(told[study], ["findings"]) for study in samples["train"].sample_ids]
    known = encoder.embed_text(texts).numpy()

    def vectors(split: str) -> np.ndarray:
        rows = [store.images["study_id"].tolist().index(study) for study in samples[split].sample_ids]
        return encoder.embed_features(encoder.encode_rows(store, np.array(rows))).numpy()

    for k, name in enumerate(("EF", "EDV")):
        said = measured(store, samples["train"].sample_ids, name)
        truth = measured(store, samples["val"].sample_ids, name)
        errors = {n: abs(read_by_hand(known, vectors("val"), said, n) - truth).mean() for n in (1, 3, 8)}
        best = min(errors, key=errors.__getitem__)
        assert head.best_params["neighbours"][name] == best
        assert head.best_params["val_mae"][name] == pytest.approx(errors[best])
        np.testing.assert_allclose(kept.answer[:, k], read_by_hand(known, vectors("test"), said, best), rtol=1e-6)
        np.testing.assert_allclose(kept.truth[:, k], measured(store, samples["test"].sample_ids, name))
        np.testing.assert_allclose(kept.mean[:, k], said.mean())
    again = Readings.from_frame(kept.to_frame())
    assert again.label_names == ["EF", "EDV"]
    for name in ("truth", "answer", "mean"):
        np.testing.assert_array_equal(getattr(again, name), getattr(kept, name))
    scores = {(row.metric, row.label): row for row in SCORINGS.get(own.rule)().scores(kept, {})}
    truth = measured(store, samples["test"].sample_ids, "EF")
    assert scores["mae", "EF"].value == pytest.approx(abs(kept.answer[:, 0] - truth).mean())
    assert scores["mae", "EF"].chance == pytest.approx(abs(kept.mean[:, 0] - truth).mean())


def test_by_clips_baselines_without_features_say_the_training_mean(made: tuple[Store, Encoder]) -> None:
    store, _ = made
    for own, features in ((task(questions=["EF"], by="clips"), np.zeros((len(store), 0))),
                          (task(questions=["EF"]), np.ones((len(store), 3)))):  # fmt: skip
        samples = own.samples(store)
        head = own.fit(Subject("majority", store, lambda f=features: f), "knn", samples["train"], samples["val"], 0)
        kept = head.predict(samples["test"])
        np.testing.assert_allclose(kept.answer, kept.mean)
    # Features that hold the answer find it.
    ef = measured(store, store.images["study_id"].tolist(), "EF")
    angle = np.pi * (ef - ef.min()) / np.ptp(ef)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    own = task(questions=["EF"], by="clips", neighbours=[1])
    kept = own.fit(Subject("x", store, lambda: circle), "knn", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    scores = {row.metric: row.value for row in SCORINGS.get(own.rule)().scores(kept, {}) if row.label == "EF"}
    assert scores["mae"] < 0.5 * abs(kept.mean - kept.truth).mean()
    assert scores["mae_gain"] == pytest.approx(abs(kept.mean - kept.truth).mean() - scores["mae"])


def test_a_study_of_which_nothing_is_read_counts_with_the_mean(made: tuple[Store, Encoder]) -> None:
    store, encoder = made
    store.images["view"] = "A4C"
    own = task(questions=["EF"], view_weights={"A4C": 0.0})
    samples = own.samples(store)
    head = own.fit(Subject("x", store, lambda: np.zeros((1, 1)), lambda: encoder), "knn", *_both(samples), 0)
    kept = head.predict(samples["test"])
    np.testing.assert_allclose(kept.answer, kept.mean)
    own = task(questions=["EF"], view_weights={"PLAX": 1.0})
    with pytest.raises(UserError, match="no weights for the view A4C"):
        own.fit(Subject("x", store, lambda: np.zeros((1, 1)), lambda: encoder), "knn", *_both(samples), 0)


def _both(samples: dict[str, Any]) -> tuple[Any, Any]:
    return samples["train"], samples["val"]


def test_what_cannot_be_read_is_refused(made: tuple[Store, Encoder]) -> None:
    store, _ = made
    for name in ("FE", "frame_ED"):
        with pytest.raises(UserError, match=f"no measurement or label '{name}'"):
            task(questions=[name]).samples(store)
    for wrong in ({}, {"questions": ["EF", "EF"]}, {"questions": ["EF"], "by": "clips", "view_weights": {"A4C": 1.0}}):
        with pytest.raises(ValidationError, match=r"must name|twice|no effect"):
            task(**wrong)
    judged = Judged("random:x", "x", "h", "echonet_dynamic", "random")
    assert "no text side" in lacking(task(questions=["EF"]), "knn", judged)
    assert lacking(task(questions=["EF"], by="clips"), "knn", judged) == ""
    offering = Judged("x", "x", "h", "echonet_dynamic", "encoder", has_text=True, offers=(SPACE,))
    assert lacking(task(questions=["EF"]), "knn", offering) == ""


def test_a_measurement_below_a_bound_is_a_label() -> None:
    frame = pd.DataFrame({"values": ['{"EF": 49.9}', '{"EF": 50.0}', '{"EF": null}', None, '{"EDV": 3}']})
    given = {
        "name": "x",
        "version": 1,
        "dataset": "echonet_dynamic",
        "labels": [{"name": "low", "positive": "EF", "below": 50}],
    }
    config = TaskConfig.model_validate(given)
    np.testing.assert_array_equal(label_matrix(frame, config)[:, 0], [1, 0, np.nan, np.nan, np.nan])
    assert "below" not in LabelConfig(name="a", positive="a").model_dump()
    other = TaskConfig.model_validate(given | {"labels": [{"name": "low", "positive": "FE", "below": 50}]})
    with pytest.raises(UserError, match="no measurement 'FE'"):
        label_matrix(frame, other)
    with pytest.raises(ValidationError, match="no effect beside below"):
        LabelConfig(name="a", positive="EF", below=50, negative="b")
    with pytest.raises(ValidationError, match=r"labels.below has no effect"):
        TaskConfig.model_validate(given | {"type": "grounding"})


def test_an_uncertain_label_and_a_missing_measurement_are_no_answers() -> None:
    card = SimpleNamespace(measurements={"EF": "%", "frame_ED": "a frame"})
    store: Any = SimpleNamespace(label_names=("Effusion",), card=card)
    values = ['{"EF": 40, "frame_ED": 3}', '{"EF": null}', None, "{}"]
    studies = pd.DataFrame({"label:Effusion": [1.0, 0.0, -1.0, np.nan], "values": values})
    found = answers_of(store, studies)
    assert sorted(found) == ["EF", "Effusion"]
    np.testing.assert_array_equal(found["Effusion"], [1, 0, np.nan, np.nan])
    np.testing.assert_array_equal(found["EF"], [40, np.nan, np.nan, np.nan])
