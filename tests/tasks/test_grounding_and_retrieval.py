"""Tasks beside classification on a tiny phantom: which samples, what is kept, and what an encoder without text does."""

from __future__ import annotations

import json
from typing import Any

import bench_store
import numpy as np
import phantom_store
import pytest

from medvlp.config.task import TaskConfig
from medvlp.data.texts import report_text
from medvlp.errors import UserError
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks.base import Subject
from medvlp.zoo import Encoder, load_encoder

EFFUSION = {"name": "Effusion", "positive": "Pleural Effusion", "prompts": {"positive": ["effusion", "fluid"]}}
HEART = {"name": "Heart", "positive": "Cardiomegaly", "prompts": {"positive": ["the heart"]}}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(phantom_store.make_store(tmp_path_factory.mktemp("phantom")))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return load_encoder(str(bench_store.make_run(tmp_path_factory.mktemp("run"))))


def task(kind: str, **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": kind, "dataset": "phantom", "views": ["PA", "AP"]}
    if kind == "grounding":
        given["labels"] = [EFFUSION, HEART]
    return TASKS.get(kind)(TaskConfig.model_validate(given | fields))


def subject(store: Store, encoder: Encoder | None) -> Subject:
    return Subject("x", store, lambda: np.zeros((len(store), 0)), None if encoder is None else lambda: encoder)


def boxed(store: Store, label: str, split: str) -> set[str]:
    frame = store.samples()
    frame = frame[(frame["split"] == split) & frame["view"].isin(["PA", "AP"])]
    return {
        row.image_id
        for row in frame.itertuples()
        if any(box["image_id"] == row.image_id and box["label"] == label for box in json.loads(row.boxes))
    }


def test_grounding_takes_the_images_with_a_box_and_asks_for_nothing_else(store: Store, encoder: Encoder) -> None:
    grounding = task("grounding")
    samples = grounding.samples(store)
    for split in ("train", "val", "test"):
        found = samples[split]
        for k, label in enumerate(("Pleural Effusion", "Cardiomegaly")):
            chosen = np.flatnonzero(found.labels[:, k] == 1)
            assert {found.sample_ids[i] for i in chosen} == boxed(store, label, split)
        assert set(np.unique(found.labels[~np.isnan(found.labels)])) == {1.0}
    kept = grounding.fit(subject(store, encoder), "zero_shot", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    pairs = set(zip(kept.sample_ids, kept.findings, strict=True))
    assert pairs == {(i, "Effusion") for i in boxed(store, "Pleural Effusion", "test")} | {
        (i, "Heart") for i in boxed(store, "Cardiomegaly", "test")
    }
    assert len(kept.findings) == len(pairs)
    image, row = kept.sample_ids[0], kept.findings.index("Effusion")
    pixels = store.read(store.images.set_index("image_id").loc[[kept.sample_ids[row]], "index"].to_numpy())
    maps = encoder.token_heat_maps(pixels, ["effusion", "fluid"]).numpy()
    np.testing.assert_allclose(kept.maps[row], maps[0].mean(0), rtol=1e-4, atol=1e-7)
    assert image in samples["test"].sample_ids


def test_regions_are_the_union_of_the_boxes_or_of_the_masks(store: Store, encoder: Encoder) -> None:
    grounding = task("grounding")
    samples = grounding.samples(store)
    head = grounding.fit(subject(store, encoder), "zero_shot", samples["train"], samples["val"], 0)
    kept = head.predict(samples["test"])
    boxes = set(store.studies["boxes"])
    for row, image in enumerate(kept.sample_ids):
        label = {"Effusion": "Pleural Effusion", "Heart": "Cardiomegaly"}[kept.findings[row]]
        expected = np.zeros((64, 64), bool)
        for box in (box for text in boxes for box in json.loads(text)):
            if box["image_id"] == image and box["label"] == label:
                y, x, h, w = (round(box[key]) for key in ("y", "x", "height", "width"))
                expected[y : y + h, x : x + w] = True
        np.testing.assert_array_equal(kept.regions(slice(row, row + 1))[0], expected)
    masked = task("grounding", grounding={"target": "masks"}, labels=[EFFUSION | {"regions": ["effusion"]}])
    samples = masked.samples(store)
    kept = masked.fit(subject(store, encoder), "zero_shot", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    table = store.masks[store.masks["label"] == "effusion"]
    for row, image in enumerate(kept.sample_ids):
        own = store.read_masks(table.loc[table["image_id"] == image, "index"].to_numpy())
        np.testing.assert_array_equal(kept.regions(slice(row, row + 1))[0], own.any(0))


def test_the_location_prior_is_the_mean_region_of_the_training_images(store: Store, encoder: Encoder) -> None:
    grounding = task("grounding")
    samples = grounding.samples(store)
    prior = grounding.fit(subject(store, None), "zero_shot", samples["train"], samples["val"], 0)
    kept, train = prior.predict(samples["test"]), samples["train"]
    asked = grounding.fit(subject(store, encoder), "zero_shot", train, samples["val"], 0).predict(train)
    for finding in ("Effusion", "Heart"):
        rows = [i for i, name in enumerate(asked.findings) if name == finding]
        mean = np.mean([asked.regions(slice(i, i + 1))[0] for i in rows], axis=0)
        expected = mean.reshape(32, 2, 32, 2).mean((1, 3))
        for row, name in enumerate(kept.findings):
            if name == finding:
                np.testing.assert_allclose(kept.maps[row] / kept.maps[row].max(), expected / expected.max(), atol=1e-6)
    pointing = {s.label: s for s in SCORINGS.get("grounding")().scores(kept, {}) if s.metric == "pointing"}
    assert pointing["Heart"].value > 0.9, "the heart is where the heart is"
    assert pointing["Heart"].chance < 0.5


def test_all_images_can_be_asked_and_then_the_prior_knows_those_of_other_patients_only(store: Store) -> None:
    grounding = task("grounding", grounding={"images": "all"}, labels=[HEART])
    samples = grounding.samples(store)
    everywhere = set.union(*(boxed(store, "Cardiomegaly", split) for split in ("train", "val", "test")))
    assert set(samples["test"].sample_ids) == everywhere
    assert samples["train"] is samples["test"] is samples["val"]
    kept = grounding.fit(subject(store, None), "zero_shot", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    regions = np.stack(
        [kept.regions(slice(i, i + 1))[0].reshape(32, 2, 32, 2).mean((1, 3)) for i in range(len(kept.maps))]
    )
    patients = np.array(kept.patient_ids)
    assert len(set(patients)) > 2
    for row, patient in enumerate(patients):
        np.testing.assert_allclose(kept.maps[row], regions[patients != patient].mean(0), atol=1e-6)


def test_retrieval_keeps_vectors_of_images_and_their_reports(store: Store, encoder: Encoder) -> None:
    retrieval = task("retrieval", views=[], retrieval={"sections": ["impression"]})
    samples = retrieval.samples(store)
    kept = retrieval.fit(subject(store, encoder), "zero_shot", samples["train"], samples["val"], 0).predict(
        samples["test"]
    )
    frame = store.samples().set_index("image_id").loc[list(samples["test"].sample_ids)]
    texts = [report_text(report, ["impression"]) for report in frame["report"]]
    assert all(texts)
    assert kept.study_ids == frame["study_id"].tolist()
    np.testing.assert_allclose(kept.reports, encoder.embed_text(texts).numpy(), atol=1e-6)
    features = encoder.encode_stored(store.read(frame["index"].to_numpy()))
    np.testing.assert_allclose(kept.images, encoder.embed_features(features).numpy(), atol=1e-6)
    assert (np.array(kept.texts)[:, None] == kept.texts).tolist() == [[a == b for b in texts] for a in texts]
    assert kept.to_frame()["text"].str.fullmatch("[0-9a-f]{16}").all(), "no text is kept"
    assert (
        len(
            retrieval.fit(subject(store, encoder), "zero_shot", *[samples["train"]] * 2, 0)
            .predict(samples["test"].take(np.arange(0)))
            .texts
        )
        == 0
    )


def test_what_cannot_be_asked_is_said(store: Store, encoder: Encoder) -> None:
    with pytest.raises(UserError, match="has no prompts"):
        task("grounding", labels=[{"name": "x", "positive": "Edema"}]).samples(store)
    with pytest.raises(UserError, match="no image with boxes"):
        task("grounding", labels=[EFFUSION | {"positive": "Pleural Other"}]).samples(store)
    with pytest.raises(UserError, match="two different reports"):
        task("retrieval", views=["OBLIQUE"]).samples(store)
    plain = load_encoder(bench_store.RANDOM, stored=store.image_config)
    for kind in ("grounding", "retrieval"):
        asked = task(kind)
        samples = asked.samples(store)
        head = asked.fit(subject(store, plain), "zero_shot", samples["train"], samples["val"], 0)
        with pytest.raises(UserError, match="no text side"):
            head.predict(samples["test"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "retrieval", "labels": [EFFUSION]}, "labels has no effect on retrieval"),
        ({"type": "grounding"}, "one label or more"),
        ({"type": "classification"}, "one label or more"),
    ],
)
def test_labels_stand_where_they_are_asked(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskConfig.model_validate({"name": "x", "version": 1, "dataset": "phantom"} | fields)
