"""Prompts of zero-shot classification: where they come from, how they are reduced, and BenchX's standardised logits."""

from __future__ import annotations

from typing import Any

import bench_store
import numpy as np
import phantom_store
import pytest
from pydantic import ValidationError
from scipy.special import expit

from medvlp.config.load import load_config
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError
from medvlp.knowledge import zero_shot
from medvlp.knowledge.books import finding_book, finding_names
from medvlp.metrics import benchx
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks.base import Subject
from medvlp.tasks.classification import _standardised
from medvlp.zoo import Encoder, load_encoder

EFFUSION = {"name": "Pleural Effusion", "positive": "Pleural Effusion"}
HEART = {"name": "Cardiomegaly", "positive": "Cardiomegaly"}
PROMPTS = {"positive": ["effusion", "fluid"], "negative": ["no effusion"]}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(phantom_store.make_store(tmp_path_factory.mktemp("phantom"), 40))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(bench_store.make_run(tmp_path_factory.mktemp("run"))))


def task(labels: list[dict[str, Any]], **how: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "dataset": "phantom", "labels": labels, "zero_shot": how}
    return TASKS.get("classification")(TaskConfig.model_validate(given))


def scores(store: Store, encoder: Encoder, made: Any) -> tuple[np.ndarray, np.ndarray]:
    samples = made.samples(store)
    head = made.fit(
        Subject("x", store, lambda: None, lambda: encoder), "zero_shot", samples["train"], samples["val"], 0
    )
    pixels = store.read(store.images["index"].to_numpy()[samples["test"].rows])
    return head.predict(samples["test"]).scores, pixels


def test_an_ensemble_is_the_mean_over_sentences(store: Store, encoder: Encoder) -> None:
    found, pixels = scores(
        store, encoder, task([EFFUSION | {"prompts": PROMPTS}, HEART | {"prompts": PROMPTS}], prompts="ensemble")
    )
    positive, negative = (zero_shot.ensemble(PROMPTS[side]) for side in ("positive", "negative"))
    assert len(positive) == 2 * len(negative) > 2
    images = encoder.embed_features(encoder.encode_stored(pixels)).numpy()
    means = [(images @ encoder.embed_text(own).numpy().T).mean(axis=1) for own in (positive, negative)]
    scale = float(encoder._text_side().method.logit_scale.detach())
    np.testing.assert_allclose(found[:, 0], expit(scale * (means[0] - means[1])), rtol=1e-4)


def test_descriptions_are_those_of_the_book_against_a_denial(store: Store, encoder: Encoder) -> None:
    found, pixels = scores(store, encoder, task([EFFUSION, HEART], prompts="description"))
    notes = {note.name: note for note in finding_book()}
    positives = [zero_shot.descriptions(name) for name in ("effusion", "cardiomegaly")]
    assert [len(own) for own in positives] == [1 + len(notes[name].appearance) for name in ("effusion", "cardiomegaly")]
    assert positives[0][1] == "effusion: blunted costophrenic angle"
    wanted = encoder.zero_shot_stored(pixels, positives, [["no effusion"], ["no cardiomegaly"]]).numpy()
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_benchx_logits_are_standardised_over_the_images_at_hand(store: Store, encoder: Encoder) -> None:
    made = task([EFFUSION, HEART], prompts="generated", per_class=3, seed=7, legacy_standardised=True)
    found, pixels = scores(store, encoder, made)
    images = encoder.embed_features(encoder.encode_stored(pixels)).double().numpy()
    tables = [
        images @ encoder.embed_text(zero_shot.generated(name, 3, 7)).double().numpy().T
        for name in ("effusion", "cardiomegaly")
    ]
    wanted = benchx.zero_shot_scores(tables, np.eye(2, dtype=int)[np.arange(len(images)) % 2]).logits
    np.testing.assert_allclose(found, expit(wanted), atol=1e-6)
    np.testing.assert_allclose(np.log(found / (1 - found)).mean(axis=0), 0, atol=1e-9)


def test_generated_prompts_are_drawn_without_repeats_by_the_seed() -> None:
    every = zero_shot.generated("effusion", 10_000, 0)
    assert len(every) == len(set(every)) == 5 * 4 * 4
    assert all("  " not in text and text == text.strip() for text in every)
    assert zero_shot.generated("effusion", 5, 0) == every[:5]
    assert zero_shot.generated("effusion", 5, 1) != every[:5]


@pytest.mark.parametrize(
    ("name", "finding"),
    [("Pleural Effusion", "effusion"), ("Effusion", "effusion"), ("Edema", "edema"), ("Pneumothorax", "pneumothorax"),
     ("Atelectasis", "atelectasis"), ("Cardiomegaly", "cardiomegaly"), ("Consolidation", "consolidation"),
     ("Pneumonia", "pneumonia"), ("Nodule", "nodule"), ("Mass", "mass")],
)  # fmt: skip
def test_labels_name_entries_of_the_book(name: str, finding: str) -> None:
    assert zero_shot.finding_of(name) == finding
    assert zero_shot.generated(finding, 1, 0)
    assert finding in finding_names()


def test_the_prompts_that_were_used_are_recorded() -> None:
    made = task([EFFUSION], prompts="generated", per_class=2)
    positives, negatives = made.settings("zero_shot")["made_prompts"]
    assert (positives, negatives) == ([zero_shot.generated("effusion", 2, 0)], [["no effusion"]])
    assert "made_prompts" not in task([EFFUSION | {"prompts": PROMPTS}]).settings("zero_shot")
    assert "made_prompts" not in made.settings("linear_probe")


def test_what_cannot_be_prompted_is_refused(store: Store, encoder: Encoder) -> None:
    with pytest.raises(UserError, match="names no finding of the book"):
        task([EFFUSION | {"name": "Something"}], prompts="description").settings("zero_shot")
    with pytest.raises(UserError, match=r"no entry 'efusion'.*Did you mean 'effusion'"):
        task([EFFUSION | {"finding": "efusion"}], prompts="description").settings("zero_shot")
    with pytest.raises(UserError, match="no words to make prompts of 'hernia'"):
        task([EFFUSION | {"finding": "hernia"}], prompts="generated").settings("zero_shot")
    with pytest.raises(UserError, match="has no prompts"):
        scores(store, encoder, task([EFFUSION, HEART], prompts="ensemble"))
    for how, message in (
        ({"seed": 1}, "generated prompts only"),
        ({"legacy_standardised": True, "reduce": "best"}, "reduce has no effect"),
    ):
        with pytest.raises(ValidationError, match=message):
            task([EFFUSION | {"prompts": PROMPTS}], **how)


@pytest.mark.parametrize(
    "name", ["phantom_ensemble", "phantom_descriptions", "phantom_generated", "benchx_phantom_generated"]
)
def test_shipped_tasks_make_prompts(name: str) -> None:
    made = TASKS.get("classification")(load_config(f"benchmarks/tasks/{name}.yaml", [], TaskConfig))
    positives, negatives = made.settings("zero_shot")["made_prompts"]
    assert len(positives) == len(negatives) == 7
    assert all(positives)
    assert all(negatives)


def test_a_label_on_which_all_images_are_equal_gets_one_half() -> None:
    np.testing.assert_array_equal(_standardised(np.array([[1.0, 0.0], [1.0, 2.0]]))[:, 0], [0.5, 0.5])
    np.testing.assert_array_equal(_standardised(np.array([[0.0]])), [[0.5]])
