"""Report generation on a tiny phantom: which studies, what is learnt, kept and chosen, and what is refused."""

from __future__ import annotations

import copy
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import phantom_store
import pytest
import torch

from medvlp.config.preprocessing import StoredImageConfig, StoredVideoConfig, StoredVolumeConfig
from medvlp.config.task import PlateauConfig, TaskConfig
from medvlp.data.texts import report_text
from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.tasks import TASKS
from medvlp.tasks._fine_tune import FineTuning, Keeping, plateau_factor, seeded
from medvlp.tasks._report_writer import bleu_4, token_shape
from medvlp.tasks._study_images import StudyImages, joined
from medvlp.tasks.base import Subject
from medvlp.tasks.report_generation import Reports
from medvlp.train.checkpoint import load_newest
from medvlp.zoo import Encoder, load_encoder

DECODER = {"width": 16, "hidden": 16, "layers": 1, "heads": 2, "memory_heads": 2, "dropout": 0.0, "visual_dropout": 0.0}
REPORTS = {"min_count": 1, "max_tokens": 12, "beams": 2, "decoder": DECODER}
PLAIN = {"crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0], "brightness": 0.0, "contrast": 0.0}
TRAINING = {"epochs": 2, "batch_size": 8, "lr": 0.01, "warmup_steps": 1, "augment": PLAIN}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store.open(phantom_store.make_store(tmp_path_factory.mktemp("phantom"), 40))


@pytest.fixture(scope="module")
def encoder(store: Store) -> Encoder:
    return load_encoder("random:test_vit@32", stored=store.image_config)


def task(reports: dict[str, Any] | None = None, training: dict[str, Any] | None = None, **fields: Any) -> Any:
    given: dict[str, Any] = {"name": "x", "version": 1, "type": "report_generation", "dataset": "phantom"}
    given |= {"reports": REPORTS | (reports or {}), "fine_tune": TRAINING | (training or {})}
    return TASKS.get("report_generation")(TaskConfig.model_validate(given | fields))


def subject(store: Store, encoder: Encoder | None, features: np.ndarray | None = None) -> Subject:
    shown = np.zeros((len(store.images), 0)) if features is None else features
    return Subject("x", store, lambda: shown, None if encoder is None else lambda: encoder)


def test_a_sample_is_a_study_with_all_its_images_and_its_words(store: Store) -> None:
    found = task().samples(store)
    frame = store.samples()
    for split, samples in found.items():
        own = frame[frame["split"] == split]
        assert sorted(samples.sample_ids) == sorted(set(own["study_id"].astype(str)))
        images = StudyImages(store, (), 2)
        for study, shown in zip(samples.sample_ids, images.of(samples.rows), strict=True):
            names = sorted(own[own["study_id"].astype(str) == study]["image_id"])[:2]
            assert [store.images["image_id"].iloc[row] for row in shown if row >= 0] == names
    frontal = task(views=["PA", "AP"]).samples(store)
    assert {store.images["view"].iloc[row] for row in frontal["test"].rows} <= {"PA", "AP"}


def test_tokens_of_images_that_are_missing_are_masked() -> None:
    tokens = torch.arange(3 * 2 * 1.0).reshape(3, 2, 1)
    visual = joined(tokens, torch.tensor([[True, True], [True, False]]))
    assert visual.tokens[..., 0].tolist() == [[0, 1, 2, 3], [4, 5, 0, 0]]
    assert visual.mask is not None
    assert visual.mask.tolist() == [[True] * 4, [True, True, False, False]]
    assert joined(tokens, torch.ones(3, 1, dtype=torch.bool)).mask is None


@pytest.mark.parametrize("decoder", ["memory", "causal"])
def test_a_frozen_encoder_stays_and_its_texts_come_again(store: Store, encoder: Encoder, decoder: str) -> None:
    sizes = {k: v for k, v in DECODER.items() if k not in ("memory_heads", "visual_dropout")}
    made = task({"decoder": DECODER if decoder == "memory" else sizes | {"kind": "causal"}})
    samples = made.samples(store)
    before = copy.deepcopy(encoder.image_tower.state_dict())
    heads = [made.fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0) for _ in range(2)]
    kept, again = (head.predict(samples["test"]) for head in heads)
    assert kept == again
    assert heads[0].best_params == heads[1].best_params
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.image_tower.state_dict().items())
    alone = heads[0].predict(samples["test"].take(np.array([1])))
    assert (alone.generated[0], alone.references[0]) == (kept.generated[1], kept.references[1])
    losses = [entry["loss"] for entry in heads[0].best_params["history"]]
    assert losses[1] < losses[0]
    assert all(len(text.replace(",", " ,").replace(".", " .").split()) <= 12 for text in kept.generated)


def test_kept_are_whole_reports_of_the_store(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    kept = made.fit(subject(store, None), "knn", samples["train"], samples["val"], 0).predict(samples["test"])
    frame = kept.to_frame()
    assert list(frame.columns) == ["sample_id", "patient_id", "generated", "reference", "words"]
    assert set(frame["words"]) == {"simple"}
    assert Reports.from_frame(frame) == kept
    reports = store.studies.set_index("study_id")["report"]
    for study, text in zip(kept.sample_ids, kept.references, strict=True):
        assert text == " ".join(report_text(reports[study], ("findings", "impression")).split())
    assert kept.patient_ids == samples["test"].patient_ids


def test_the_nearest_study_lends_its_report_and_without_features_the_usual_one(store: Store) -> None:
    made = task()
    samples = made.samples(store)
    train, test = samples["train"], samples["test"]
    features = np.random.default_rng(0).normal(size=(len(store.images), 3)) * [1, 100, 0] + 5
    images = StudyImages(store, (), 2)
    wanted = 3
    near = images.of(test.rows[:1])
    features[near[near >= 0]] = features[images.of(train.rows)[wanted][:1]] + 1e-9
    features[images.of(train.rows)[wanted]] = features[images.of(train.rows)[wanted][0]]
    kept = made.fit(subject(store, None, features), "knn", train, samples["val"], 0).predict(test)
    told = made._references(store)(train.rows)
    assert kept.generated[0] == told[wanted]
    usual = made.fit(subject(store, None), "knn", train, samples["val"], 0).predict(test)
    assert set(usual.generated) == {max(told, key=told.count)}


def test_references_as_benchx_scores_them_are_cut_and_have_unknown_words(store: Store) -> None:
    made = task({"legacy_references": True, "min_count": 20, "max_tokens": 6, "words": "r2gen"})
    samples = made.samples(store)
    kept = made.fit(subject(store, None), "knn", samples["train"], samples["val"], 0).predict(samples["test"])
    tokens = made._tokens(made._references(store)(samples["train"].rows))
    whole = task()._references(store)(samples["test"].rows)
    assert list(kept.references) == [tokens.decode(ids[1:]) for ids in tokens.encode(whole, 6)[0]]
    assert any("<unk>" in text for text in kept.references)
    assert kept.words == "r2gen"


def test_training_by_likelihood_and_with_a_tuned_encoder(store: Store, encoder: Encoder) -> None:
    changed = {"augment": PLAIN | {"brightness": 0.2}, "encoder_lr_ratio": 0.5}
    made = task({"select": "log_likelihood"}, changed, views=["PA", "AP"])
    samples = made.samples(store)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        frozen, tunable = (
            made._by(protocol).tunable(encoder, store, samples["train"], samples["val"], 0)
            for protocol in ("frozen", "fine_tune")
        )
    assert not any(p.requires_grad for p in frozen.network.tower.parameters())
    assert not frozen.network.train().tower.training
    assert tunable.kept is None
    batch = next(iter(tunable.loader.epoch(0)))
    value, count = tunable.terms(tunable.network, batch)["words"]
    value.backward()
    assert count > 0
    assert all(p.grad is not None for p in tunable.network.decoder.parameters())
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in tunable.network.tower.parameters())
    with torch.no_grad():
        terms = [tunable.terms(tunable.network.eval(), b)["words"] for b in tunable._batches(samples["val"])]
    mean = sum(float(v * n) for v, n in terms) / sum(float(n) for _, n in terms)
    assert tunable.validate(tunable.network) == pytest.approx(-mean, rel=1e-6)


def test_a_training_that_was_stopped_goes_on_with_the_same_bits(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    made = task({"decoder": DECODER | {"dropout": 0.2}})
    samples = made.samples(store)

    def tuning(stop: bool, **more: Any) -> FineTuning:
        keeping = Keeping(tmp_path, 100, 100, {}, lambda metrics, step: None, threading.Event())
        if stop:
            keeping.asked.set()
        tunable = made.tunable(encoder, store, samples["train"], samples["val"], 0)
        return FineTuning(tunable, made.config.fine_tune, 0, keeping, **more)

    with seeded(0, "cpu"):
        whole = tuning(False)
        chosen = whole.run()
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)
    with seeded(0, "cpu"), pytest.raises(KeyboardInterrupt):
        tuning(True).run()
    checkpoint = load_newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 1
    with seeded(1, "cpu"):
        again = tuning(False, checkpoint=checkpoint)
        assert again.run() == chosen
    states = (whole.network.state_dict(), again.network.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


def test_the_rate_falls_when_validation_stands_still() -> None:
    config = PlateauConfig(factor=0.5, patience=1, min_ratio=0.2)
    scores = [0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
    assert [plateau_factor(scores[:n], config) for n in range(len(scores) + 1)] == [
        *(1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2),
    ]


def test_what_cannot_be_learnt_is_refused(store: Store, encoder: Encoder, tmp_path: Path) -> None:
    made = task()
    samples = made.samples(store)
    with pytest.raises(UserError, match="stand there 100000 times or more"):
        task({"min_count": 100_000}).fit(subject(store, encoder), "frozen", samples["train"], samples["val"], 0)
    causal = {"kind": "causal", "folder": str(tmp_path)}
    with pytest.raises(UserError, match=r"no config\.json"):
        task({"decoder": causal}).samples(store)
    broken = copy.copy(encoder)
    broken.image_tower = copy.deepcopy(encoder.image_tower)
    with torch.no_grad():
        next(broken.image_tower.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        made.fit(subject(store, broken), "frozen", samples["train"], samples["val"], 0)
    silent = copy.copy(store)
    silent.__dict__["studies"] = store.studies.assign(report=["FINDINGS: ..."] * len(store.studies))
    with pytest.raises(UserError, match="'train' has no report with the sections findings or impression") as caught:
        made.samples(silent)
    assert "reports.sections" in caught.value.fix


def test_one_normalisation_for_all_encoders_where_the_task_sets_it() -> None:
    from medvlp.config.preprocessing import ModelInputConfig
    from medvlp.tasks._report_writer import model_input

    config = task({"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3]}, {"input_size": 64}).config
    colour = model_input(config, ModelInputConfig(size=32, channels=3, mean=(0.1,), std=(0.9,)))
    assert (colour.size, colour.mean, colour.std) == (64, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    grey = model_input(config, ModelInputConfig(size=32))
    assert (grey.mean, grey.std) == (pytest.approx((0.5,)), pytest.approx((0.2,)))
    assert model_input(task().config, ModelInputConfig(size=32, mean=(0.1,))).mean == (0.1,)


def test_bleu_of_validation_is_that_of_the_scores() -> None:
    from medvlp.metrics.report.bleu import bleu, bleu_counts
    from medvlp.metrics.report.pairs import TextPairs

    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abc"), size=n)) for n in (9, 4, 12, 7, 8, 1)]
    pairs = TextPairs(texts[:3], [[text] for text in texts[3:]])
    expected = bleu(bleu_counts(pairs).sum(axis=0))[3]
    own = bleu_4([(a.split(), b.split()) for a, b in zip(texts[:3], texts[3:], strict=True)])
    assert own == pytest.approx(expected, rel=1e-6)
    assert bleu_4([(list("abcde"), list("abcde"))]) == pytest.approx(1.0)
    assert 0 < bleu_4([(["a", "b"], ["a", "c"])]) < bleu_4([(["a", "b"], ["a", "b"])]) < 1e-3
    assert bleu_4([([], ["a"])]) == 0.0


def test_a_folder_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    for name, content in (("one", "{}"), ("two", "{}"), ("three", "{ }")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(content)
    tasks = [task({"decoder": {"kind": "causal", "folder": str(tmp_path / name)}}) for name in ("one", "two", "three")]
    one, two, three = ((made.config.sha256(), made.settings("frozen")) for made in tasks)
    assert one == two
    assert one != three
    assert str(tmp_path) not in str(one)


def test_fewer_training_studies_are_contained_in_more(store: Store) -> None:
    made = task()
    train = made.samples(store)["train"]
    few, more = (made.training_subset(train, fraction=share, shots=0, draw=1) for share in (0.2, 0.5))
    assert set(few.sample_ids) < set(more.sample_ids) < set(train.sample_ids)
    assert replace(few, labels=few.labels).sha256 != more.sha256


@pytest.mark.parametrize(
    ("spec", "stored"),
    [
        ("random:test_vit@32", StoredImageConfig(size=32)),
        ("random:vit_tiny_patch16_224@16/8", StoredVolumeConfig()),
        ("random:test_vit@32", StoredVideoConfig()),
    ],
)
def test_tokens_are_counted_as_an_encoder_gives_them(spec: str, stored: Any) -> None:
    encoder = load_encoder(spec, stored=stored)
    taken: Any = encoder.preprocessing.input
    sides = taken.size if isinstance(taken.size, tuple) else (taken.size, taken.size)
    frames = (taken.frames,) if isinstance(stored, StoredVideoConfig) else ()
    pixels = torch.zeros(2, 1, *frames, *sides, dtype=torch.int16 if len(sides) == 3 else torch.uint8)
    with torch.no_grad():
        found = encoder.image_tower.eval()(normalise(pixels, taken)).tokens
    assert token_shape(encoder.image_tower, taken) == tuple(found.shape[1:])
