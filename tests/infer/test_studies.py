"""Reading of studies by retrieval: the released code of EchoPrime through the reader, and loops of the phantom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import clip_stores
import numpy as np
import pytest
import torch

from medvlp.errors import UserError
from medvlp.infer.studies import KnownStudies, SectionWeights, StudyReader
from medvlp.store.array_store import Store
from medvlp.zoo import load_encoder
from tests.objectives.official import cases_3d, load

SECTIONS = tuple(f"section {n}" for n in range(15))
VIEWS = tuple(f"view {n}" for n in range(11))


class Silent:
    """An encoder of which only its text side is asked for."""

    _text = None


@pytest.mark.parametrize("file", cases_3d("echoprime/study_aggregation"), ids=lambda file: file.stem)
def test_answers_and_texts_are_those_of_the_official_code(file: Path) -> None:
    case = load(file)
    labels, has = case["candidate_labels"].numpy(), case["candidate_has_section"].numpy()
    questions = [f"question {n}" for n in range(len(labels))]
    about = {name: SECTIONS[n] for name, n in zip(questions, case["section_of_phenotype"].tolist(), strict=True)}
    texts = {
        name: [f"{name} of {m}" if there else None for m, there in enumerate(row)]
        for name, row in zip(SECTIONS, has, strict=True)
    }
    answers = dict(zip(questions, labels, strict=True))
    known = KnownStudies(case["candidate_embeddings"], answers, texts, about)
    weights = SectionWeights(SECTIONS, VIEWS, case["section_weights"].numpy())
    encoder: Any = Silent()
    reader = StudyReader(encoder, known, weights, int(case["k"]))
    reading = reader.of_vectors(case["video_embeddings"], [VIEWS[n] for n in case["views"].tolist()])
    if not case["section_embeddings"].any():
        assert reading.texts == {}
        assert all(np.isnan(value) for value in reading.answers.values())
        return
    np.testing.assert_allclose(list(reading.answers.values()), case["prediction"].numpy(), rtol=2e-6)
    chosen = zip(SECTIONS, case["report_candidate"].tolist(), strict=True)
    assert reading.texts == {name: f"{name} of {place}" for name, place in chosen}


def test_one_clip_alone_is_a_study() -> None:
    known = KnownStudies(torch.eye(3), {"EF": np.array([40.0, 60.0, np.nan])}, {"report": ["a", "b", "c"]})
    encoder: Any = Silent()
    reading = StudyReader(encoder, known, neighbours=1).of_vectors(torch.tensor([[0.1, 0.9, 0.0]]), [None])
    assert reading.answers == {"EF": 60.0}
    assert reading.texts == {"report": "b"}
    reading = StudyReader(encoder, known, neighbours=1).of_vectors(torch.tensor([[0.0, 0.0, 1.0]]), [None])
    assert np.isnan(reading.answers["EF"])


def test_equally_near_studies_share_the_last_places() -> None:
    known = KnownStudies(
        torch.eye(3)[[0, 1, 1, 1, 2]], {"EF": np.array([70.0, 20, 40, np.nan, 90])}, {"report": ["a"] * 5}
    )
    encoder: Any = Silent()
    clip = torch.tensor([[0.9, 0.4, 0.1]])
    # With 2 neighbours each of three equal places counts a third, and one of them has no answer.
    for neighbours, expected in ((1, 70.0), (2, (70 + (20 + 40) / 3) / (1 + 2 / 3)), (4, (70 + 20 + 40) / 3)):
        reading = StudyReader(encoder, known, neighbours=neighbours).of_vectors(clip, [None])
        assert reading.answers["EF"] == pytest.approx(expected)


def test_what_has_no_weights_is_refused() -> None:
    encoder: Any = Silent()
    known = KnownStudies(torch.eye(2), {}, {"valve": ["a", "b"]})
    with pytest.raises(UserError, match="no weights for valve"):
        StudyReader(encoder, known, SectionWeights(("ventricle",), ("A4C",), np.ones((1, 1))))
    reader = StudyReader(encoder, known, SectionWeights(("valve",), ("A4C",), np.ones((1, 1))))
    with pytest.raises(UserError, match="no weights for the view None"):
        reader.of_vectors(torch.eye(2)[:1], [None])


def test_loops_of_the_phantom_are_read_from_others(tmp_path: Path) -> None:
    store = Store.open(clip_stores.make_echo(tmp_path, 24, size=16))
    taken = {"size": 32, "frames": 2, "every": 4}
    run = clip_stores.make_model(tmp_path / "run", store.config.resolved(), taken, options={"study_clips": 2})
    encoder = load_encoder(run)
    known = KnownStudies.of_store(encoder, store)
    train = store.studies[store.studies["split"] == "train"]
    measured = np.array([json.loads(values)["EF"] for values in train["values"]])
    np.testing.assert_allclose(known.answers["EF"], measured)
    reader = StudyReader(encoder, known, neighbours=len(train))
    rows = np.flatnonzero(store.images["study_id"].isin(store.studies[store.studies["split"] == "test"]["study_id"]))
    reading = reader.read(store, rows[:1])
    assert reading.answers["EF"] == pytest.approx(measured.mean())
    assert reading.texts["report"] in known.texts["report"]
    one = reader.read(store, rows[:1], neighbours=1).answers["EF"]
    vector = encoder.embed_features(encoder.encode_rows(store, rows[:1]))
    likeness = (known.vectors @ vector[0]).numpy()  # of an untrained encoder nearly the same for all
    nearest = likeness > likeness.max() - 2e-6
    assert measured[nearest].min() - 1e-6 <= one <= measured[nearest].max() + 1e-6
    assert not [name for name in reading.answers if name.startswith("frame_")]
    with pytest.raises(UserError, match="split 'nowhere'"):
        KnownStudies.of_store(encoder, store, split="nowhere")
