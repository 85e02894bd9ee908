"""What a method demands is what its batches hold: each part against a plain reading of the store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tiny_store
import torch

from medvlp.data.demands import Demands, View
from medvlp.data.groups import SemanticGroups
from medvlp.data.pretraining import load_data
from medvlp.errors import UserError
from medvlp.knowledge.books import anatomy_names, finding_names
from medvlp.store.array_store import Store
from medvlp.text.sections import split_sentences
from medvlp.text.sides import swap_sides

LEFT = "FINDINGS: Left pleural effusion. No pneumothorax is seen in the right lung. Stable cardiomegaly."
NORMAL = "FINDINGS: No pleural effusion. No pneumothorax."


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tiny_store.make_store(tmp_path_factory.mktemp("tiny"))
    studies = pd.read_parquet(folder / "studies.parquet")
    texts = [LEFT if number % 2 else NORMAL for number in range(len(studies))]
    studies["report"] = pd.array(texts, dtype=studies["report"].dtype)
    studies.to_parquet(folder / "studies.parquet")
    return folder


def batches(store: Path, folder: Path, demands: Demands, epoch: int = 0, **changes):
    config = tiny_store.config(store, folder, "convirt", **changes)
    data = load_data(config, tokenizer_folder=folder / "tokenizer", demands=demands)
    return data, list(data.loader(config).epoch(epoch))


def reports(store: Path, rows: torch.Tensor) -> list[str]:
    return [Store.open(store).samples()["report"].iloc[row].removeprefix("FINDINGS: ") for row in rows.tolist()]


def test_a_sentence_is_drawn_anew_in_every_epoch(store, tmp_path):
    seen: dict[int, set[str]] = {}
    for epoch in range(6):
        for batch in batches(store, tmp_path, Demands(text_unit="sentence"), epoch)[1]:
            for row, text, report in zip(
                batch.index.tolist(), batch.text.texts, reports(store, batch.index), strict=True
            ):
                assert text in split_sentences(report)
                seen.setdefault(row, set()).add(text)
    assert max(map(len, seen.values())) == 3


def test_triplets_are_those_of_the_report(store, tmp_path):
    _, made = batches(store, tmp_path, Demands(triplets=True))
    places, findings = anatomy_names(), finding_names()
    for batch in made:
        assert batch.triplets.shape == (len(batch.index), 51, 75)
        for matrix, report in zip(batch.triplets, reports(store, batch.index), strict=True):
            stated = {(places[a], findings[f], int(matrix[a, f])) for a, f in (matrix >= 0).nonzero().tolist()}
            if report.startswith("Left"):
                assert ("left_pleural", "effusion", 1) in stated
                assert ("heart_size", "cardiomegaly", 1) in stated
                assert all(value == 0 for _, finding, value in stated if finding == "pneumothorax")
            else:
                assert {value for _, _, value in stated} == {0}


def test_a_mirrored_image_has_mirrored_texts_and_triplets(store, tmp_path):
    flip = {"augment": {"flip": True, "crop_scale": [1, 1], "crop_ratio": [1, 1], "brightness": 0, "contrast": 0}}
    plain = {"augment": {**flip["augment"], "flip": False}}
    demands = Demands(triplets=True, concepts=True)
    _, without = batches(store, tmp_path / "a", demands, data=plain)
    _, made = batches(store, tmp_path / "b", demands, data=flip)
    left, right = (anatomy_names().index(name) for name in ("left_pleural", "right_pleural"))
    mirrored = 0
    for before, batch in zip(without, made, strict=True):
        for i in range(len(batch.index)):
            if torch.equal(before.pixels[i], batch.pixels[i]):
                assert batch.text.texts[i] == before.text.texts[i]
                assert torch.equal(batch.triplets[i], before.triplets[i])
                continue
            mirrored += 1
            torch.testing.assert_close(batch.pixels[i], before.pixels[i].flip(-1))
            assert batch.text.texts[i] == swap_sides(before.text.texts[i])
            assert torch.equal(batch.triplets[i, right], before.triplets[i, left])
            assert torch.equal(batch.text.concepts[i], before.text.concepts[i])
    assert mirrored > 4


def test_concepts_are_named_where_their_tokens_say(store, tmp_path):
    data, made = batches(store, tmp_path, Demands(concepts=True))
    tokenizer = data.table.tokenizer
    words = {"effusion": "effusion", "pneumothorax": "pneumothorax", "cardiomegaly": "cardiomegaly"}
    named = 0
    for batch in made:
        for ids, spans, concepts in zip(batch.text.ids, batch.text.spans, batch.text.concepts, strict=True):
            assert torch.equal(spans[:, 0] >= 0, concepts >= 0)
            for (first, last), concept in zip(spans.tolist(), concepts.tolist(), strict=True):
                if concept >= 0:
                    named += 1
                    assert words[data.concepts.ids[concept]] in tokenizer.decode(ids[first:last].tolist()).replace(
                        " ", ""
                    )
    assert named > 40


def test_hidden_tokens_are_whole_words_or_whole_concepts(store, tmp_path):
    _, made = batches(store, tmp_path, Demands(hidden_share=0.3, concepts=True, hide_concepts=True))
    _, again = batches(store, tmp_path, Demands(hidden_share=0.3, concepts=True, hide_concepts=True))
    _, other = batches(store, tmp_path, Demands(hidden_share=0.3, concepts=True, hide_concepts=True), epoch=1)
    for batch, same in zip(made, again, strict=True):
        assert torch.equal(batch.text.hidden, same.text.hidden)
        for hidden, words, spans in zip(batch.text.hidden, batch.text.word_ids, batch.text.spans, strict=True):
            assert hidden.any()
            assert not hidden[words < 0].any()
            for word in words[words >= 0].unique():
                assert len(hidden[words == word].unique()) == 1
            for first, last in spans.tolist():
                assert first < 0 or len(hidden[first:last].unique()) == 1
    assert any(
        not torch.equal(a.text.hidden[i], b.text.hidden[j])
        for a in made for b in other
        for i in range(len(a.index)) for j in range(len(b.index))
        if a.index[i] == b.index[j]
    )  # fmt: skip


def test_views_are_drawn_on_their_own_and_scaled_pixels_are_larger(store, tmp_path):
    demands = Demands(views=(View(32), View(16, (0.1, 0.3))), image_scale=2)
    _, made = batches(store, tmp_path, demands)
    for batch in made:
        assert batch.pixels.shape[2:] == (64, 64)
        assert [view.shape[2:] for view in batch.views] == [(32, 32), (16, 16)]
        half = torch.nn.functional.avg_pool2d(batch.pixels.float(), 2)
        assert (half - batch.views[0].float()).abs().mean() > 2


def test_images_of_a_study_come_with_it(store, tmp_path):
    opened = Store.open(store)
    _, made = batches(store, tmp_path, Demands(study_images=3))
    for batch in made:
        assert batch.study.shape[1] == 3
        assert torch.equal(batch.study[:, 0], batch.pixels)
        of = opened.images["study_id"].to_numpy()[batch.index]
        assert len(set(of)) == len(of)


def test_groups_are_neighbours_that_share_a_finding(store, tmp_path):
    demands = Demands(group_size=2)
    data, made = batches(store, tmp_path, demands)
    names = data.sources.groups.concepts
    assert set(names) == {"effusion", "cardiomegaly", "normal"}
    captions = 0
    for batch in made:
        assert batch.groups.tolist() == np.repeat(np.arange(len(batch.index) // 2), 2).tolist()
        assert batch.related.diagonal().all()
        kinds = [report.startswith("Left") for report in reports(store, batch.index)]
        for first, second in zip(kinds[::2], kinds[1::2], strict=True):
            assert first == second
        for g, h in (~batch.related).nonzero().tolist():
            assert g != h
        whole = set(reports(store, batch.index))
        captions += sum(text not in whole for text in batch.text.texts)
    assert captions > 4
    assert (
        data.facts["places_in_groups"] == sum(len(batch.index) for batch in made) + data.facts["places_in_groups"] % 8
    )


def test_groups_that_share_an_image_or_a_finding_are_related():
    members = [np.array(rows) for rows in ([0, 1, 2, 3], [3, 4, 5], [6, 7], [8, 9])]
    related = np.eye(4, dtype=bool)
    related[2, 3] = related[3, 2] = True  # one concept lies above the other
    groups = SemanticGroups(("effusion", "edema", "fracture", "old fracture"), tuple(members), related, None)
    assert groups.shown[3].tolist() == [0, 1]
    places = np.array([[0, 0], [1, 0], [2, 0], [3, 0], [4, 1], [5, 1], [6, 2], [7, 2], [8, 3], [9, 3]])
    expected = [[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 1, 1]]
    # Image 3 of the second group shows edema as well; the first group is of the same concept.
    assert groups.relations(places, 2).astype(int).tolist() == expected


def test_ranks_know_how_their_groups_are_related_to_those_of_all(store, tmp_path):
    demands, changes = Demands(group_size=2), {"train": {"batch_size": 8}}
    data, made = batches(store, tmp_path, demands, **changes)
    config = tiny_store.config(store, tmp_path, "convirt", **changes)
    parts = [list(data.loader(config, rank=rank, world_size=2).epoch(0)) for rank in (0, 1)]
    for whole, *ranks in zip(made, *parts, strict=True):
        assert torch.equal(torch.cat([part.related for part in ranks]), whole.related)
        assert torch.equal(torch.cat([part.index for part in ranks]), whole.index)
        assert torch.equal(whole.related, whole.related.T)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_captions_is_what_is_asked_for(store, tmp_path, share):
    for batch in batches(store, tmp_path, Demands(group_size=2, caption_share=share))[1]:
        of_reports = [text in reports(store, batch.index) for text in batch.text.texts]
        assert of_reports == [share == 0.0] * len(of_reports)


def test_mirroring_is_refused_where_readings_would_differ(store, tmp_path):
    with pytest.raises(UserError, match="cannot mirror"):
        batches(store, tmp_path, Demands(views=(View(32),)), data={"augment": {"flip": True}})


def test_knowledge_without_use_and_texts_without_findings_are_refused(store, tmp_path):
    with pytest.raises(UserError, match=r"no use for data\.knowledge"):
        batches(store, tmp_path, Demands(), data={"knowledge": "bank"})
    with pytest.raises(UserError, match="No concept is named in 99 texts"):
        batches(store, tmp_path, Demands(concepts=True), data={"min_concept_count": 99})
    with pytest.raises(UserError, match="groups of 3"):
        batches(store, tmp_path, Demands(group_size=3))
    with pytest.raises(UserError, match="one of these views"):
        batches(store, tmp_path, Demands(), data={"views": ["LATERAL"]})


def test_reports_without_findings_give_no_triplets(store, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    studies = pd.read_parquet(copy / "studies.parquet")
    studies["report"] = pd.array(["FINDINGS: See the report of yesterday."] * len(studies), studies["report"].dtype)
    studies.to_parquet(copy / "studies.parquet")
    with pytest.raises(UserError, match="states a finding"):
        batches(copy, tmp_path, Demands(triplets=True))
    with pytest.raises(UserError, match="fewer than two concepts"):
        batches(copy, tmp_path, Demands(group_size=2))


def test_long_texts_are_cut_and_counted(store, tmp_path):
    data, made = batches(store, tmp_path, Demands(concepts=True), method={"text": {"max_tokens": 10}})
    assert data.facts["texts_cut"] == len(data.table.texts) // 2 or data.facts["texts_cut"] > 0
    for batch in made:
        assert batch.text.ids.shape[1] <= 10
        assert batch.text.spans.max() <= 9
