"""Splits, array rows and odd data sets: several images per study, none at all, repeated ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import nih_layout as nih
import numpy as np
import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.base import Source
from medvlp.sources.cards import Card
from medvlp.store import prepare as prepare_module
from medvlp.store.array_store import Store
from medvlp.store.plan import differences, make_plan
from medvlp.store.prepare import prepare
from medvlp.types import UNKNOWN_PATIENT, Box, ImageRef, Mask, Study, Triplet

CARD = "---\nname: fake\n---\n"


class Fake(Source):
    name = "fake"
    given: list[Study] = []  # noqa: RUF012

    def __init__(self, root: Path, options: object = None) -> None:
        self.root, self.problems, self.options, self.counts, self._edition = root, [], {}, Counter(), {}
        fields = dict.fromkeys(("name", "title", "source", "licence", "access"), "fake")
        self.card = Card(**fields, modality="CR", layout=(), labels=("Mass", "Edema"))
        self.card._text = CARD

    def studies(self) -> Iterator[Study]:
        yield from self.given


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PrepareConfig:
    class Only:
        def get(self, name: str) -> type[Source]:
            return Fake

    (tmp_path / "raw").mkdir()
    monkeypatch.setattr(prepare_module, "SOURCES", Only())
    fields = {"source": "fake", "root": tmp_path / "raw", "out": tmp_path / "store", "image": {"size": 16}}
    return PrepareConfig.model_validate(fields | {"num_workers": 1, "shard_images": 3})


def study(number: int, patient: object, split: str | None = "train", **more: object) -> Study:
    return Study(f"s{number}", str(patient), split=split, **more)  # type: ignore[arg-type]


def plan(config: PrepareConfig, studies: list[Study], **changes: object) -> dict[str, str | None]:
    Fake.given = studies
    planned = make_plan(Fake(config.root), config.model_copy(update=changes))
    return {study.study_id: study.split for study in planned.studies}


def test_validation_is_by_patient_seeded_and_independent_of_order(fake: PrepareConfig) -> None:
    studies = [study(n, n // 3, "test" if n >= 90 else "train") for n in range(120)]
    first = plan(fake, studies, val_fraction=0.2)
    patients = {
        split: {s.patient_id for s in studies if first[s.study_id] == split} for split in ("train", "val", "test")
    }
    assert [len(patients[split]) for split in ("train", "val", "test")] == [24, 6, 10]
    assert not patients["train"] & patients["val"]
    assert plan(fake, studies[::-1], val_fraction=0.2) == first
    assert plan(fake, studies, val_fraction=0.2, split_seed=1) != first
    assert "val" not in plan(fake, studies, val_fraction=0).values()
    larger = plan(fake, studies, val_fraction=0.4)
    assert all(larger[name] == "val" for name, split in first.items() if split == "val")


def test_given_validation_missing_splits_and_unknown_patients_are_left_alone(fake: PrepareConfig) -> None:
    given = [study(0, 0), study(1, 1, "val"), study(2, 2, "test"), study(3, 3)]
    assert list(plan(fake, given, val_fraction=0.5).values()) == ["train", "val", "test", "train"]
    assert set(plan(fake, [study(n, n, None) for n in range(9)], val_fraction=0.5).values()) == {None}
    unknown = [study(n, UNKNOWN_PATIENT) for n in range(9)]
    found = plan(fake, [*unknown, study(10, 1), study(11, 2)], val_fraction=0.5)
    assert [name for name, split in found.items() if split == "val"] in (["s10"], ["s11"])
    with pytest.raises(UserError, match="validation split would be empty: there are 0 known training patients"):
        plan(fake, unknown, val_fraction=0.5)


def test_a_data_set_without_splits_is_parted_by_patient_where_they_are_known(fake: PrepareConfig) -> None:
    studies = [study(n, n // 3, None) for n in range(90)] + [study(99, UNKNOWN_PATIENT, None)]
    first = plan(fake, studies, test_fraction=0.2, val_fraction=0.25)
    patients = {split: {n // 3 for n in range(90) if first[f"s{n}"] == split} for split in ("train", "val", "test")}
    assert [len(own) for own in patients.values()] == [18, 6, 6]
    assert len(set.union(*patients.values())) == 30
    assert first["s99"] is None
    assert plan(fake, studies[::-1], test_fraction=0.2, val_fraction=0.25) == first
    tested = {name for name, split in first.items() if split == "test"}
    assert tested == {
        n for n, split in plan(fake, studies, test_fraction=0.2, val_fraction=0).items() if split == "test"
    }
    with pytest.raises(UserError, match="has splits of its own: train"):
        plan(fake, [study(n, n) for n in range(9)], test_fraction=0.2)
    with pytest.raises(UserError, match="there are 0 known patients"):
        plan(fake, [study(n, UNKNOWN_PATIENT, None) for n in range(9)], test_fraction=0.2)


def test_several_images_of_a_study_and_none(fake: PrepareConfig) -> None:
    for place, name in enumerate(("a_pa", "a_lat", "b_pa", "c_pa")):
        cv2.imwrite(str(fake.root / f"{name}.png"), nih.picture(place, 20))
    (fake.root / "c_pa.png").write_bytes(b"broken")
    Fake.given = [
        study(1, 1, images=(ImageRef("a1", "a_pa.png", view="PA"), ImageRef("a2", "a_lat.png", view="LATERAL"))),
        study(2, 2, images=(ImageRef("b1", "b_pa.png"), ImageRef("b2", "b_missing.png")), labels={"Mass": -1.0}),
        study(3, 3, images=(ImageRef("c1", "c_pa.png"),)),
        study(4, 4, report="Lungs are clear.", site="X", triplets=(Triplet("left lung", "mass", 0.0),),
              boxes=(Box("none", "Mass", 1, 2, 3, 4),), masks=(Mask("none", "heart", "m/heart.png"),)),
    ]  # fmt: skip
    summary = prepare(fake.model_copy(update={"max_quarantine_share": 0.5}))
    store = Store.open(fake.out)
    assert (summary.studies, summary.images, summary.quarantined) == (3, 3, 2)
    assert list(store.images["image_id"]) == ["a1", "a2", "b1"]
    assert list(store.images["study_id"]) == ["s1", "s1", "s2"]
    assert list(store.images["view"])[:2] == ["PA", "LATERAL"]
    assert store.images["view"].isna()[2]
    assert list(store.studies["study_id"]) == ["s1", "s2", "s4"]
    assert np.isnan(store.studies["label:Mass"][0])
    assert store.studies["label:Mass"][1] == -1
    last = store.studies.iloc[2]
    assert last["report"] == "Lungs are clear."
    assert json.loads(last["triplets"]) == [{"anatomy": "left lung", "finding": "mass", "value": 0.0}]
    assert json.loads(last["boxes"])[0]["width"] == 3
    assert json.loads(last["masks"])[0]["path"] == "m/heart.png"
    lines = [json.loads(line) for line in (fake.out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["path"], line["study_id"]) for line in lines] == [("b_missing.png", "s2"), ("c_pa.png", "s3")]
    assert lines[0]["reason"] == "The file is missing."


def test_a_source_without_images(fake: PrepareConfig) -> None:
    Fake.given = [study(n, n, None, report=f"report {n}") for n in range(5)]
    summary = prepare(fake)
    store = Store.open(summary.store)
    assert (summary.studies, summary.images) == (5, 0)
    assert store.images.empty
    assert list(store.samples().columns)
    assert store.studies["split"].isna().all()
    assert store.read(np.array([], dtype=int)).shape == (0, 16, 16)
    assert prepare(fake).already_complete


def test_repeated_ids_keep_the_first_study(fake: PrepareConfig) -> None:
    for name in ("a", "b"):
        cv2.imwrite(str(fake.root / f"{name}.png"), nih.picture(1, 20))
    Fake.given = [
        study(1, 1, images=(ImageRef("a", "a.png"),)),
        study(1, 2, images=(ImageRef("b", "b.png"),)),
        study(2, 2, images=(ImageRef("a", "b.png"),)),
        study(3, 3, images=(ImageRef("c", "a.png"),)),
    ]
    found = make_plan(Fake(fake.root), fake.model_copy(update={"val_fraction": 0}))
    assert [s.patient_id for s in found.studies] == ["1"]
    assert [problem.reason for problem in found.problems] == [
        "the study id 's1' occurs a second time",
        "the image id 'a' occurs a second time",
        "the image path 'a.png' occurs a second time",
    ]


@pytest.mark.parametrize("path", ["/data/a.png", "../a.png"])
def test_paths_outside_the_root_are_refused(fake: PrepareConfig, path: str) -> None:
    with pytest.raises(UserError, match="outside the root"):
        plan(fake, [study(1, 1, images=(ImageRef("a", path),))])


def test_a_label_that_the_card_lacks(fake: PrepareConfig) -> None:
    Fake.given = [study(1, 1, None, labels={"Edemaa": 1.0})]
    with pytest.raises(UserError, match=r"'Edemaa', which the data card does not list. Did you mean 'Edema'"):
        prepare(fake)


def test_limit_takes_the_first_studies(fake: PrepareConfig) -> None:
    assert list(plan(fake, [study(n, n, None) for n in range(9)], limit=3)) == ["s0", "s1", "s2"]


def test_differences_name_the_path_and_both_values() -> None:
    before, now = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert differences(before, now) == [
        "a.c: 2 in the store, 5 now",
        "d: 3 in the store, None now",
        "e: None in the store, 4 now",
    ]


def test_without_a_wish_unknown_patients_give_no_validation_split(fake: PrepareConfig) -> None:
    assert set(plan(fake, [study(n, UNKNOWN_PATIENT) for n in range(9)]).values()) == {"train"}
    known = plan(fake, [study(n, n) for n in range(40)])
    assert sorted(known.values()).count("val") == 4


def test_patients_that_nobody_knows_are_not_counted(fake: PrepareConfig) -> None:
    Fake.given = [study(1, 1, None), study(2, UNKNOWN_PATIENT, None), study(3, UNKNOWN_PATIENT, None)]
    counts = Store.open(prepare(fake).store).meta["counts"]
    assert (counts["studies"], counts["patients"], counts["splits"]["None"]["patients"]) == (3, 1, 1)
