"""VQA-RAD, SLAKE and the 5x200 list: faults of the tables, splits of questions, store and audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from raw import put

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.mimic_cxr_jpg import MimicCxrJpg
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.sources.slake import Slake
from medvlp.sources.vqa_rad import VqaRad, split_by_hash
from medvlp.store.array_store import Store
from medvlp.store.audit import audit
from medvlp.store.prepare import prepare

TABLE = "VQA_RAD Dataset Public.json"


def row(image: str, question: str = "Is it large?", **changes: Any) -> dict[str, Any]:
    given = {"qid": "1", "phrase_type": "freeform", "qid_linked_id": "g1", "image_name": f"{image}.jpg"}
    given |= {"image_case_url": "https://medpix.nlm.nih.gov/case?id=c1", "image_organ": "CHEST", "question": question}
    return given | {"question_type": "SIZE", "answer": "Yes", "answer_type": "CLOSED"} | changes


def rad(root: Path, rows: list[Any], images: tuple[str, ...] = ("a", "b"), **options: Any) -> VqaRad:
    for name in images:
        put(root, [f"VQA_RAD Image Folder/{name}.jpg"])
    (root / TABLE).write_text(json.dumps(rows))
    return VqaRad(root, options)


def test_numbers_and_blanks_are_read_and_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [
        row("a", answer=4, answer_type="OPEN "),
        row("a", answer=" Yes ", answer_type="closed"),
        row("a", question=""),
        row("gone"),
        row("a", phrase_type="framed"),
        row("a", answer_type="both"),
        "nothing",
        row("a", answer=None),
    ]
    source = rad(tmp_path, rows)
    (study,) = source.studies()
    assert [(one.answer, one.closed, one.kind) for one in study.questions] == [
        ("4", False, "SIZE"),
        ("Yes", True, "SIZE"),
    ]
    assert (study.patient_id, study.images[0].modality) == ("c1", "CR")
    reasons = [problem.reason for problem in source.problems]
    assert [problem.path for problem in source.problems] == [f"{TABLE}:{place}" for place in range(3, 9)]
    words = ["no question", "gone.jpg is missing", "'framed'", "neither OPEN nor CLOSED", "no record", "no answer"]
    assert all(word in reason for word, reason in zip(words, reasons, strict=True))
    assert source.counts["images without a question, left out"] == 1


def test_the_official_split_is_one_of_questions_and_the_own_one_of_cases(tmp_path: Path) -> None:
    rows = [row("a"), row("a", phrase_type="test_para"), row("b", phrase_type="test_freeform"), row("c")]
    rows[2]["image_case_url"] = rows[3]["image_case_url"] = "https://medpix.nlm.nih.gov/case?id=c2"
    official = {s.study_id: s for s in rad(tmp_path, rows, ("a", "b", "c"), split="official").studies()}
    assert {name: s.split for name, s in official.items()} == {"a": "train", "b": "test", "c": "train"}
    assert [one.split for one in official["a"].questions] == [None, "test"]
    own = list(VqaRad(tmp_path).studies())
    assert all(one.split is None for study in own for one in study.questions)
    assert {study.split for study in own if study.patient_id == "c2"} == {split_by_hash("c2")}
    shares = [split_by_hash(str(i)) for i in range(2000)]
    assert 0.17 < shares.count("test") / 2000 < 0.23
    assert 0.08 < shares.count("val") / 2000 < 0.12


def test_a_full_edition_must_have_the_official_number_of_test_questions(tmp_path: Path) -> None:
    source = rad(tmp_path, [row("a")] * 2248)
    with pytest.raises(UserError, match="test questions: 0 found, 451 declared"):
        list(source.studies())


def test_the_store_holds_the_questions_and_the_audit_names_those_that_leak(tmp_path: Path) -> None:
    write_layout("vqa_rad", tmp_path / "raw", 20, seed=3, size=32, image_size=64)
    stores = {}
    for split in ("official", "image"):
        given: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "options": {"split": split}}
        out = tmp_path / split
        prepare(PrepareConfig(source="vqa_rad", root=tmp_path / "raw", out=out, **given))
        stores[split] = Store.open(out)
    asked = stores["official"].questions
    assert len(asked) == 8 * len(stores["official"]) == stores["official"].meta["counts"]["questions"]
    assert set(asked["split"]) == {"train", "val", "test"}, "validation is set aside by patient"
    shared = set(asked.loc[asked["split"] == "test", "image_id"]) & set(asked.loc[asked["split"] != "test", "image_id"])
    assert shared
    sentence = next(text for text in audit([tmp_path / "official"]).findings if "test questions" in text)
    assert sentence.startswith("Leak: ")
    assert f"({len(shared)} images)" in sentence
    clean = audit([tmp_path / "image"])
    assert not clean.divided_questions
    assert stores["image"].questions.groupby("image_id")["split"].nunique().max() == 1


def test_hashed_ids_reach_questions_and_listed_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLP_SALT", str(tmp_path / "salt"))
    for name in ("vqa_rad", "mimic_cxr_jpg"):
        write_layout(name, tmp_path / name, 12, seed=3, size=32, image_size=32)
        given: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "identifiers": {"ids": "hash"}}
        prepare(PrepareConfig(source=name, root=tmp_path / name, out=tmp_path / f"{name}_store", **given))
    asked = Store.open(tmp_path / "vqa_rad_store")
    assert set(asked.questions["image_id"]) == set(asked.images["image_id"])
    assert not asked.questions["question_id"].str.contains("synpic").any()
    store = Store.open(tmp_path / "mimic_cxr_jpg_store")
    facts = [json.loads(text) for text in store.studies["attributes"]]
    listed = {own["image_5x200"] for own in facts if "image_5x200" in own}
    assert listed
    assert listed <= set(store.images["image_id"])


def slake(root: Path, rows: dict[str, list[dict[str, Any]]]) -> None:
    for number in range(3):
        put(root, [f"imgs/xmlab{number}/source.jpg"])
    for name in ("train", "validate", "test"):
        (root / f"{name}.json").write_text(json.dumps(rows.get(name, [])))


def ask(number: int, qid: int, language: str = "en", **changes: Any) -> dict[str, Any]:
    given = {"img_id": number, "img_name": f"xmlab{number}/source.jpg", "question": "Where?", "answer": "Left"}
    given |= {"q_lang": language, "location": "Lung", "modality": "X-Ray", "answer_type": "OPEN", "qid": qid}
    return given | {"content_type": "Position", "base_type": "vqa", "triple": ["vhead", "_", "_"]} | changes


def test_slake_keeps_images_of_one_split_and_sound_boxes(tmp_path: Path) -> None:
    rows = {
        "train": [ask(0, 0), ask(1, 1, "zh"), ask(0, 2, answer_type="?"), ask(9, 3)],
        "test": [ask(1, 4), ask(2, 5)],
    }
    slake(tmp_path, rows)
    places = [{"Lung": [1, 2, 3, 4]}, {"Heart": [1, 2, 0, 4]}, {"Liver": [1, 2]}]
    (tmp_path / "imgs/xmlab0/detection.json").write_text(json.dumps(places))
    source = Slake(tmp_path)
    found = {study.study_id: study for study in source.studies()}
    assert {name: study.split for name, study in found.items()} == {
        "xmlab0": "train",
        "xmlab1": "test",
        "xmlab2": "test",
    }
    assert [(box.label, box.width) for box in found["xmlab0"].boxes] == [("Lung", 3.0)]
    reasons = " ".join(problem.reason for problem in source.problems)
    assert all(text in reasons for text in ("neither OPEN nor CLOSED", "xmlab9", "without an area", "2 numbers"))
    both = Slake(tmp_path, {"language": "all"})
    assert {study.study_id for study in both.studies()} == {"xmlab0", "xmlab2"}
    assert any("in test and train" in problem.reason for problem in both.problems)


def test_a_question_that_stands_twice_has_one_answer_or_none(tmp_path: Path) -> None:
    rows = [ask(0, 1), ask(0, 2), ask(0, 2, answer="Right"), ask(0, 3), ask(0, 3)]
    slake(tmp_path, {"train": rows, "test": [ask(1, 1)]})
    source = Slake(tmp_path)
    assert [one.question_id for study in source.studies() for one in study.questions] == [
        "train_1",
        "train_3",
        "test_1",
    ]
    assert [f"{problem.path}: {problem.reason}" for problem in source.problems] == [
        "train.json:2: several rows of qid 2 differ; none is used",
        "train.json:3: several rows of qid 2 differ; none is used",
        "train.json:5: the row repeats another one of qid 3",
    ]


def test_slake_without_images_says_what_to_unpack(tmp_path: Path) -> None:
    for name in ("train", "validate", "test"):
        (tmp_path / f"{name}.json").write_text(json.dumps([ask(0, 0)]))
    with pytest.raises(UserError, match="No question") as caught:
        list(Slake(tmp_path).studies())
    assert "imgs.zip" in str(caught.value)


def test_a_list_of_ids_alone_names_images_without_classes(tmp_path: Path) -> None:
    write_layout("mimic_cxr_jpg", tmp_path, 12, seed=3, size=32, image_size=32)
    before = {s.study_id: s for s in MimicCxrJpg(tmp_path).studies() if "5x200" in s.subsets}
    assert before
    ids = [study.attributes["image_5x200"] for study in before.values()]
    (tmp_path / "mimic_5x200.csv").write_text("dicom_id\n" + "\n".join([*ids, "not-here"]) + "\n")
    source = MimicCxrJpg(tmp_path)
    after = {s.study_id: s for s in source.studies() if "5x200" in s.subsets}
    assert {name: s.attributes["image_5x200"] for name, s in after.items()} == {
        name: s.attributes["image_5x200"] for name, s in before.items()
    }
    assert not any("class_5x200" in s.attributes for s in after.values())
    assert source.counts["images of the list 5x200"] == len(ids)
    (tmp_path / "mimic_5x200.csv").write_text("name\nx\n")
    with pytest.raises(UserError, match="no column 'Path'"):
        list(MimicCxrJpg(tmp_path).studies())
