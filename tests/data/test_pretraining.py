"""Texts and labels of pre-training: pairs stay pairs, drawn sentences fit the images, nothing is filled in or lost."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_store
import torch
import volume_source

from medvlp.data.demands import Demands
from medvlp.data.labels import map_labels
from medvlp.data.pretraining import load_data
from medvlp.data.studies import split_of_images
from medvlp.data.texts import SentenceChoice, Sentences, collect_sentences, report_text
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.text.labeler import FINDINGS
from medvlp.text.sections import split_sentences

UNPAIRED = Demands(labels=True, paired=False)
PAIRED = Demands()


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tiny_store.make_store(tmp_path_factory.mktemp("tiny"))


def loaded(config, folder: Path, kind=UNPAIRED, **options):
    return load_data(config, tokenizer_folder=folder / "tokenizer", demands=kind, **options)


def test_a_paired_text_belongs_to_its_image(store, tmp_path):
    config = tiny_store.config(store, tmp_path, "convirt")
    data = loaded(config, tmp_path, PAIRED)
    reports = Store.open(store).samples()["report"]
    seen = 0
    for batch in data.loader(config).epoch(0):
        assert batch.paired
        for row, text in zip(batch.index.tolist(), batch.text.texts, strict=True):
            assert text == report_text(reports[row], ("findings", "impression"))
            seen += 1
    assert seen == data.facts["train_images"] == 24
    ids, mask = batch.text.ids, batch.text.mask
    assert data.table.tokenizer.encode(batch.text.texts, 24)[0].tolist() == ids.tolist()
    assert (ids[~mask] == data.table.tokenizer.pad_id).all()


def test_a_report_that_is_too_long_is_read_in_other_sentences_every_epoch(store, tmp_path):
    config = tiny_store.config(store, tmp_path, "convirt")
    data = loaded(config, tmp_path, Demands(sample_sentences=True))
    reports = Store.open(store).samples()["report"]
    assert data.facts["texts_cut"] > 0
    read: dict[int, set[str]] = {}
    for epoch in range(4):
        for batch, again in zip(data.loader(config).epoch(epoch), data.loader(config).epoch(epoch), strict=True):
            assert batch.text.texts == again.text.texts
            assert batch.text.ids.shape[1] <= 24
            for row, text in zip(batch.index.tolist(), batch.text.texts, strict=True):
                whole = report_text(reports[row], ("findings", "impression"))
                sentences = split_sentences(whole)
                assert set(split_sentences(text)) <= set(sentences)
                assert text.startswith(sentences[0])
                read.setdefault(row, set()).add(text)
    assert any(len(texts) > 1 for texts in read.values())


def test_a_part_of_a_report_is_drawn_as_often_as_the_report(store, tmp_path):
    data = loaded(tiny_store.config(store, tmp_path, "convirt"), tmp_path, Demands(text_unit="part"))
    first, count = data.sources.first_text, data.sources.text_count
    reports = Store.open(store).samples()["report"]
    for row in np.flatnonzero(first >= 0):
        texts = data.table.texts[first[row] : first[row] + count[row]]
        whole = report_text(reports[row], ("findings", "impression"))
        parts = [text for text in texts if text != whole]
        assert texts.count(whole) >= max(1, len(parts))
        assert all(set(split_sentences(part)) <= set(split_sentences(whole.replace("\n", " "))) for part in parts)


def test_images_without_text_are_left_out_and_counted(store, tmp_path):
    studies = pd.read_parquet(store / "studies.parquet")
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    first = studies.index[studies["split"] == "train"][:3]
    studies.loc[first, "report"] = [None, "  ", "INDICATION: Cough."]
    studies.to_parquet(copy / "studies.parquet")
    config = tiny_store.config(copy, tmp_path, "convirt")
    data = loaded(config, tmp_path, PAIRED)
    assert data.facts["images_without_text"] == 3
    assert data.facts["train_images"] == 21
    assert all(text for batch in data.loader(config).epoch(0) for text in batch.text.texts)


def test_the_tokenizer_learns_from_training_texts_only(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    studies = pd.read_parquet(copy / "studies.parquet")
    studies.loc[studies["split"] == "test", "report"] = "FINDINGS: " + "zyxwv " * 50
    studies.to_parquet(copy / "studies.parquet")
    tokenizer = loaded(tiny_store.config(copy, tmp_path, "convirt"), tmp_path, PAIRED).table.tokenizer
    assert tokenizer.tokens(tokenizer.encode(["zyxwv"], 9)[0][0]) != ["[CLS]", "zyxwv", "[SEP]"]


@pytest.mark.parametrize("world_size", [2, 4])
def test_unpaired_batches_do_not_depend_on_ranks_or_workers(store, tmp_path, world_size):
    augment = {"shuffle_sentences": True, "drop_words": 0.3}
    config = tiny_store.config(store, tmp_path, data={"augment": augment, "num_workers": 0})
    threaded = tiny_store.config(store, tmp_path, data={"augment": augment, "num_workers": 4})
    data = loaded(config, tmp_path)
    parts = [list(data.loader(threaded, rank=r, world_size=world_size).epoch(1)) for r in range(world_size)]
    for step, whole in enumerate(data.loader(config).epoch(1)):
        assert not whole.paired
        assert [t for part in parts for t in part[step].text.texts] == whole.text.texts
        assert [t for part in parts for t in part[step].text_augmented.texts] == whole.text_augmented.texts
        assert torch.equal(torch.cat([p[step].labels for p in parts]).nan_to_num(9), whole.labels.nan_to_num(9))
        assert torch.equal(
            torch.cat([p[step].text.labels for p in parts]).nan_to_num(9), whole.text.labels.nan_to_num(9)
        )


def test_sentences_are_distinct_counted_and_labelled(store, tmp_path):
    reports = [
        "FINDINGS: No  pneumothorax. Lungs are clear. Comparison of films.",
        "FINDINGS: no pneumothorax. INDICATION: pain.",
    ]
    found = collect_sentences(reports, ("findings", "impression"))
    assert found.texts[0] == "No  pneumothorax."
    assert dict(zip(found.texts, found.counts.tolist(), strict=True)) == {"No  pneumothorax.": 2, "Lungs are clear.": 1}
    assert found.dropped == 1
    column = list(FINDINGS).index("Pneumothorax")
    assert found.labels[0, column] == 0
    assert np.isnan(found.labels[1, column])


def sentences(stated: list[list[int]], counts: list[int]) -> Sentences:
    labels = np.array(stated, dtype=np.float32)
    return Sentences([f"s{i}" for i in range(len(stated))], labels, np.array(counts), 0)


CORPUS = sentences([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [70, 10, 15, 5])
IMAGES = np.array([[1, 0, 0]] * 9 + [[0, 1, 0]], dtype=np.float32)


@pytest.mark.parametrize(
    ("how", "expected"),
    [("images", [0.45, 0.45, 0.1, 0]), ("findings", [0.25, 0.25, 0.5, 0]), ("reports", [0.7, 0.1, 0.15, 0.05])],
)
def test_sentences_are_drawn_as_often_as_said(how, expected):
    drawn = Counter(SentenceChoice(CORPUS, IMAGES, how, seed=0).draw(0, np.arange(20_000)).tolist())
    assert [drawn[i] / 20_000 for i in range(4)] == pytest.approx(expected, abs=0.012)


def test_without_a_common_finding_nothing_starts():
    with pytest.raises(UserError, match="No finding is present both"):
        SentenceChoice(CORPUS, np.zeros((4, 3), np.float32), "images", seed=0)


def test_labels_map_by_the_card_and_nothing_is_filled_in():
    names = ["Effusion", "Mass", "Nodule", "Pneumonia", "Hernia"]
    values = np.array([[1, 0, 1, 0, 1], [0, -1, 0, np.nan, 0], [np.nan, np.nan, 0, 1, 1]], dtype=np.float32)
    mapping = {"Effusion": "Pleural Effusion", "Mass": "Lung Lesion", "Nodule": "Lung Lesion"}
    mapped = pd.DataFrame(map_labels(values, names, mapping, FINDINGS), columns=list(FINDINGS))
    assert mapped["Pleural Effusion"].fillna(9).tolist() == [1, 0, 9]
    assert mapped["Lung Lesion"].fillna(9).tolist() == [1, -1, 0]
    assert mapped["Pneumonia"].fillna(9).tolist() == [0, 9, 1]
    others = mapped.drop(columns=["Pleural Effusion", "Lung Lesion", "Pneumonia"])
    assert others.isna().all(axis=None)


def test_nih_labels_come_in_the_columns_of_the_labeler(store, tmp_path):
    data = loaded(tiny_store.config(store, tmp_path), tmp_path)
    assert data.label_names == tuple(FINDINGS)
    frame = pd.DataFrame(data.sources.labels, columns=list(FINDINGS))
    samples = Store.open(store).samples()
    for finding, label in {
        "Pleural Effusion": "Effusion",
        "Pneumonia": "Pneumonia",
        "No Finding": "No Finding",
    }.items():
        assert frame[finding].tolist() == samples[f"label:{label}"].tolist()
    assert frame[["Fracture", "Support Devices", "Enlarged Cardiomediastinum"]].isna().all(axis=None)


def test_a_report_collection_gives_the_sentences(store, tmp_path):
    folder = tmp_path / "ecgen-radiology"
    folder.mkdir()
    (folder / "1.xml").write_text(
        '<eCitation><uId id="CXR1"/><MedlineCitation><Article><Abstract>'
        '<AbstractText Label="FINDINGS">Right lower lobe pneumonia. Lungs are otherwise clear.</AbstractText>'
        '<AbstractText Label="IMPRESSION">Pneumonia.</AbstractText>'
        "</Abstract></Article></MedlineCitation></eCitation>"
    )
    config = tiny_store.config(store, tmp_path, data={"reports": str(tmp_path)})
    data = loaded(config, tmp_path)
    assert "Right lower lobe pneumonia." in data.sentences.texts
    assert not any("consolidation" in text for text in data.sentences.texts)


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"data": {"split": "training"}}, UNPAIRED, r"split 'training' has no image. There are: .*train \(24\)"),
        ({"data": {"labels": ["Pneumonai"]}}, UNPAIRED, "no label 'Pneumonai'. Did you mean 'Pneumonia'"),
        ({"data": {"reports": "x.tgz", "sentences": "reports"}}, PAIRED, "no use for data.reports and data.sentences"),
        ({"data": {"labels": ["Pneumonia"]}}, PAIRED, "no use for data.labels"),
        ({"train": {"batch_size": 4, "accumulate": 4}}, PAIRED, "nothing would be learnt"),
        ({"train": {"batch_size": 64}}, PAIRED, "24 training images, fewer than one batch of 64"),
    ],
)
def test_what_cannot_train_is_refused_before_it_starts(store, tmp_path, changes, kind, message):
    with pytest.raises(UserError, match=message):
        loaded(tiny_store.config(store, tmp_path / "run", **changes), tmp_path / "run", kind)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("kind", "message"), [(PAIRED, "No training image has a report"), (UNPAIRED, "needs reports")])
def test_a_store_without_reports_is_refused(tmp_path, kind, message):
    bare = tiny_store.make_store(tmp_path / "bare", patients=20, reports=False)
    with pytest.raises(UserError, match=message):
        loaded(tiny_store.config(bare, tmp_path / "run"), tmp_path / "run", kind)


def test_a_run_is_not_validated_on_what_it_trains_on(store, tmp_path, caplog):
    config = tiny_store.config(store, tmp_path, data={"split": "val"}, train={"batch_size": 4})
    assert loaded(config, tmp_path).facts["val_images"] == 0
    loaded(tiny_store.config(store, tmp_path, data={"split": "test"}), tmp_path)
    assert "no benchmark on this store is valid" in caplog.text


def test_validation_images_of_which_no_report_names_a_concept_make_no_group(store, tmp_path):
    silent = tmp_path / "store"
    shutil.copytree(store, silent)
    studies = pd.read_parquet(silent / "studies.parquet")
    images = pd.read_parquet(silent / "images.parquet")
    of_val = studies["study_id"].isin(images["study_id"][split_of_images(Store.open(silent)) == "val"])
    studies.loc[of_val, "report"] = "FINDINGS: Study of the chest."
    studies.to_parquet(silent / "studies.parquet")
    data = loaded(tiny_store.config(silent, tmp_path / "run", "keep"), tmp_path, Demands(group_size=4))
    assert len(data.val) == 0
    assert len(data.train) == 24


def test_ranks_that_do_not_divide_the_batch_are_refused(store, tmp_path):
    with pytest.raises(UserError, match="batch of 8 does not split over 3 processes"):
        loaded(tiny_store.config(store, tmp_path / "run"), tmp_path / "run", world_size=3)


def test_validation_is_the_same_every_time_and_leaves_training_sentences_alone(store, tmp_path):
    config = tiny_store.config(store, tmp_path)
    data = loaded(config, tmp_path)
    first, second = (list(data.loader(config, validation=True).epoch(0)) for _ in range(2))
    assert [b.text.texts for b in first] == [b.text.texts for b in second]
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))
    assert set(torch.cat([b.index for b in first]).tolist()) <= set(data.val.tolist())
    assert not set(data.val.tolist()) & set(data.train.tolist())


def test_a_store_of_volumes_is_refused(tmp_path):
    volume_source.run(volume_source.write(tmp_path / "raw"), tmp_path / "volumes")
    config = tiny_store.config(tmp_path / "volumes", tmp_path, "convirt")
    with pytest.raises(UserError, match="The store holds volumes, and the method takes images"):
        loaded(config, tmp_path, PAIRED)
