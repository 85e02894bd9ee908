"""Questions and answers on a tiny phantom: which questions are made, what is learnt, kept and refused."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import phantom_store
import pytest
import torch
from pydantic import ValidationError

from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._questions import normal_answer
from medvlp.tasks.base import Subject
from medvlp.tasks.vqa import Learnt, Questions, Replies, Vote
from medvlp.zoo import Encoder, load_encoder

PLAIN = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
TRAINING = {"epochs": 2, "batch_size": 16, "lr": 0.003, "warmup_steps": 1, "augment": PLAIN}
LABELS = [
    {"name": "Pleural effusion", "positive": "Pleural Effusion"},
    {"name": "Cardiomegaly", "positive": "Cardiomegaly"},
    {"name": "Edema", "positive": "Edema"},
]
SIZES = {"questions": "labels", "width": 16, "hidden": 16, "layers": 1, "heads": 2, "dropout": 0.0}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(phantom_store.make_store(tmp_path_factory.mktemp("phantom"), 70))


@pytest.fixture(scope="module")
def encoder(store: Store) -> Encoder:
    return load_encoder("random:test_vit@32", stored=store.image_config)


def task(vqa: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": "vqa", "dataset": "phantom", "views": ["PA", "AP"]}
    given |= {"labels": LABELS, "vqa": SIZES | (vqa or {}), "fine_tune": TRAINING | (training or {})}
    return TASKS.get("vqa")(TaskConfig.model_validate(given | fields))


def subject(store: Store, encoder: Encoder | None, features: np.ndarray | None = None) -> Subject:
    shown = np.zeros((len(store.images), 0)) if features is None else features
    return Subject("x", store, lambda: shown, None if encoder is None else lambda: encoder)


def scores(kept: Replies) -> dict[str, Any]:
    return {row.metric: row for row in SCORINGS.get("vqa")().scores(kept, {}) if row.label == "macro"}


def test_made_questions_follow_the_truth_and_no_wording_tells_its_answer(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    images = store.samples().set_index("image_id")
    names = {one["name"].lower(): one["positive"] for one in LABELS}
    checked = Counter[str]()
    for own in samples.values():
        asked = made.questions(store)(own)
        for row, text, answer, kind in zip(own.rows, asked.texts, asked.answers, asked.kinds, strict=True):
            image = images.loc[store.images["image_id"].iloc[row]]
            checked[kind] += 1
            if kind == "which":
                there = [name for name, label in names.items() if image[f"label:{label}"] == 1]
                assert there == [answer]
                continue
            name = next(name for name in names if name in text)
            if kind == "presence":
                assert image[f"label:{names[name]}"] == (1 if answer == "yes" else 0)
                continue
            boxes = [box for box in json.loads(image["boxes"]) if box["label"] == names[name]]
            boxes = [box for box in boxes if box["image_id"] == image.name]
            middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes]
            for x, y in middles:
                if kind == "side":
                    assert (x > image["width"] / 2) == (answer == "left"), "the patient's left is on the image's right"
                else:
                    assert (y < image["height"] / 2) == (answer == "upper half")
        counts = Counter(zip(asked.texts, asked.answers, strict=True))
        for text in set(asked.texts):
            assert len({count for (words, _), count in counts.items() if words == text}) == 1
    assert set(checked) >= {"presence", "which", "side"}


def test_the_question_alone_gets_chance(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    head = made.fit(subject(store, None), "knn", samples["train"], samples["val"], 0)
    kept = head.predict(samples["test"])
    found = scores(kept)
    assert kept.given == kept.usual or found["accuracy"].value == found["accuracy"].chance
    assert found["accuracy_closed"].value == found["accuracy_closed"].chance == 0.5
    assert Replies.from_frame(kept.to_frame()) == kept


def test_nearest_images_of_the_same_question_answer_it(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    frame = store.samples().set_index("image_id").loc[store.images["image_id"]]
    truth = frame[[f"label:{one['positive']}" for one in LABELS]].to_numpy(float)
    kept = made.fit(subject(store, None, truth), "knn", samples["train"], samples["val"], 0).predict(samples["test"])
    found = scores(kept)
    assert found["accuracy_closed"].value == 1.0, "features that are the labels"
    assert found["accuracy_closed"].chance == 0.5


def test_votes_are_those_of_similar_wordings_of_the_same_sort() -> None:
    known = Questions(
        ["Is it big?", "Is it big?", "Where is it?"], ["yes", "no", "left"], [True, True, False], ["a"] * 3
    )
    vote = Vote(known, np.array([[1.0, 0], [0, 1.0], [1.0, 0]]))
    asked = Questions(["is it BIG", "Where?", "How?"], [""] * 3, [True, False, True], [""] * 3)
    assert vote(asked, np.array([[0.0, 1], [0, 1], [1, 0]]), 1) == ["no", "left", "yes"]
    alone = Vote(Questions(["Where?"], ["left"], [False], ["a"]), np.ones((1, 2)))
    assert alone(Questions(["Is it?"], [""], [True], [""]), np.ones((1, 2)), 1) == [""]


@pytest.mark.parametrize("side", ["random", "text"])
def test_training_comes_again_and_leaves_the_encoder(store: Store, encoder: Encoder, side: str, tmp_path: Path) -> None:
    own = encoder if side == "random" else load_encoder(str(bench_store.make_run(tmp_path)))
    made = task(training={"epochs": 3})
    samples = made.samples(store)
    before = copy.deepcopy(own.image_tower.state_dict())
    few = samples["train"].take(np.arange(0, len(samples["train"]), 2))
    heads = [made.fit(subject(store, own), "frozen", few, samples["val"], 0) for _ in range(2)]
    kept, again = (head.predict(samples["test"]) for head in heads)
    assert kept == again
    assert all(torch.equal(before[name], tensor) for name, tensor in own.image_tower.state_dict().items())
    losses = [entry["loss"] for entry in heads[0].best_params["history"]]
    assert losses[-1] < losses[0]
    expected = "trained with the head" if side == "random" else "text side of the encoder"
    assert heads[0].best_params["question_encoder"] == expected
    alone = heads[0].predict(samples["test"].take(np.array([1])))
    assert alone.given[0] == kept.given[1]
    assert {given for given, closed in zip(kept.given, kept.closed, strict=True) if closed} <= {"yes", "no"}
    assert not {given for given, closed in zip(kept.given, kept.closed, strict=True) if not closed} & {"yes", "no"}


def test_a_tuned_tower_moves_and_can_read_with_words_of_its_own(store: Store, tmp_path: Path) -> None:
    own = load_encoder(str(bench_store.make_run(tmp_path)))
    made = task({"question_text": "trained"}, {"epochs": 1})
    samples = made.samples(store)
    few = samples["train"].take(np.arange(32))
    head = made.fit(subject(store, own), "fine_tune", few, samples["val"], 0)
    assert head.best_params["question_encoder"] == "trained with the head"
    assert len(head.predict(samples["test"]).given) == len(samples["test"])


def test_answers_that_training_lacks_are_wrong_and_counted(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    asked = made.questions(store)(samples["train"])
    kept_rows = np.flatnonzero([answer != "edema" for answer in asked.answers])
    head = made.fit(subject(store, None), "knn", samples["train"].take(kept_rows), samples["val"], 0)
    kept = head.predict(samples["test"])
    lost = [answer == "edema" for answer in kept.answers]
    assert any(lost)
    assert list(kept.seen) == [not one for one in lost]
    assert scores(kept)["unseen_answers"].value == pytest.approx(np.mean(lost))
    assert not any(given == "edema" for given in kept.given)


def test_the_usual_answer_is_that_of_the_kind_and_ties_are_settled() -> None:
    learnt = Learnt.of(
        Questions(["?"] * 5, ["b", "a", "c", "c", "yes"], [False] * 4 + [True], ["x", "x", "y", "y", "z"])
    )
    assert learnt.usual_for(False, "x") == "a"
    assert learnt.usual_for(False, "new") == "c"
    assert learnt.usual_for(True, "new") == "yes"
    assert not learnt.knows("yes", closed=False)
    assert normal_answer("  Left  Lung. ") == "left lung"


def test_a_share_of_training_holds_all_questions_of_its_images(store: Store) -> None:
    made = task()
    train = made.samples(store)["train"]
    small, large = (made.training_subset(train, fraction=part, shots=0, draw=0) for part in (0.3, 0.6))
    assert set(small.sample_ids) < set(large.sample_ids) < set(train.sample_ids)
    for own in (small, large):
        assert set(own.sample_ids) == {
            i for i, row in zip(train.sample_ids, train.rows, strict=True) if row in own.rows
        }
    assert len(np.unique(small.rows)) == round(0.3 * len(np.unique(train.rows)))


def test_a_store_without_questions_and_wrong_settings_are_refused(store: Store) -> None:
    with pytest.raises(UserError, match="The split 'train' has no question"):
        task({"questions": "table"}, labels=[]).samples(store)
    for change, message in (
        ({"labels": []}, "labels must name one label or more"),
        ({"vqa": {"questions": "table"}}, "labels has no effect on vqa"),
        ({"vqa": {"questions": "labels", "languages": ["en"]}}, "languages has no effect"),
        ({"vqa": SIZES | {"heads": 3}}, "must be a multiple of heads"),
        ({"fine_tune": {"augment": {"flip": True}}}, "swaps the sides"),
        ({"type": "classification"}, "vqa has no effect on classification"),
    ):
        with pytest.raises(ValidationError, match=message):
            task(**{key: value for key, value in change.items() if key != "vqa"}, vqa=change.get("vqa"))


def test_a_table_of_questions_is_asked_in_its_languages(store: Store) -> None:
    rows = pd.DataFrame(
        {
            "question_id": [f"q{i}" for i in range(len(store.images))],
            "image_id": store.images["image_id"],
            "split": store.images["split"],
            "kind": "view",
            "closed": False,
            "question": "Which view?",
            "answer": [f"{view}." for view in store.images["view"]],
            "language": ["en", "zh"] * (len(store.images) // 2) + ["en"] * (len(store.images) % 2),
        }
    )
    asked = copy.copy(store)
    asked.__dict__["questions"] = rows
    made = task({"questions": "table", "languages": ["en"]}, labels=[], views=[])
    samples = made.samples(asked)
    wanted = rows[(rows["split"] == "test") & (rows["language"] == "en")]
    assert samples["test"].sample_ids == sorted(wanted["question_id"])
    found = made.questions(asked)(samples["test"])
    assert set(found.answers) <= {"pa", "ap", "lateral"}
