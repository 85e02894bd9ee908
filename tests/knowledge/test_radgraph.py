"""RadGraph files of both label styles, with and without entities, with two labelers, and broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from medvlp.errors import UserError
from medvlp.knowledge.matrix import ternary_matrix
from medvlp.knowledge.radgraph import finding_of, place_of, radgraph_mentions, read_radgraph
from medvlp.text.triplets import cells_of, triplets_of
from medvlp.types import Triplet

TEXT = (
    "The lungs are clear . Small left pleural effusion . No pneumothorax . Possible opacity in the right lower lobe ."
)


def entity(words: str, label: str, first: int, *relations: list[str]) -> dict[str, Any]:
    last = first + len(words.split()) - 1
    assert TEXT.split(" ")[first : last + 1] == words.split()
    return {"tokens": words, "label": label, "start_ix": first, "end_ix": last, "relations": list(relations)}


def entities(present: str, absent: str, uncertain: str, anatomy: str) -> dict[str, Any]:
    return {
        "1": entity("lungs", anatomy, 1),
        "2": entity("clear", present, 3, ["located_at", "1"]),
        "3": entity("Small", present, 5, ["modify", "6"]),
        "4": entity("left", anatomy, 6, ["modify", "5"]),
        "5": entity("pleural", anatomy, 7),
        "6": entity("effusion", present, 8, ["located_at", "5"]),
        "7": entity("pneumothorax", absent, 11),
        "8": entity("opacity", uncertain, 14, ["located_at", "11"]),
        "9": entity("right", anatomy, 17, ["modify", "11"]),
        "10": entity("lower", anatomy, 18, ["modify", "11"]),
        "11": entity("lobe", anatomy, 19),
    }


OLD = entities("OBS-DP", "OBS-DA", "OBS-U", "ANAT-DP")
XL = entities(
    "Observation::definitely present",
    "Observation::definitely absent",
    "Observation::uncertain",
    "Anatomy::definitely present",
)


def write(folder: Path, data: object) -> Path:
    path = folder / "graphs.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize("given", [OLD, XL], ids=["1.0", "XL"])
def test_entities_become_triplets_and_cells(tmp_path: Path, given: dict[str, Any]) -> None:
    (report,) = read_radgraph(write(tmp_path, {"p10/s1.txt": {"text": TEXT, "entities": given}}))
    mentions = radgraph_mentions(report)
    assert set(triplets_of(mentions)) == {
        Triplet("left lung", "clear", 1.0),
        Triplet("right lung", "clear", 1.0),
        Triplet("left pleural space", "effusion", 1.0),
        Triplet("unspecified", "pneumothorax", 0.0),
        Triplet("right lower lobe", "opacity", -1.0),
    }
    assert set(cells_of(mentions)) == {
        Triplet("left_lung_unspec", "clear", 1.0),
        Triplet("right_lung_unspec", "clear", 1.0),
        Triplet("left_pleural", "effusion", 1.0),
        Triplet("unspecified", "pneumothorax", 0.0),
        Triplet("lower_right_lobe", "opacity", -1.0),
    }
    assert (ternary_matrix(cells_of(mentions)) == -1).sum() == 51 * 75 - 4  # the uncertain one is not in it
    assert {TEXT[m.start : m.end] for m in mentions} == {"clear", "effusion", "pneumothorax", "opacity"}


def test_reports_without_entities_are_kept(tmp_path: Path) -> None:
    data = {"a": {"text": "Nothing .", "entities": {}}, "b": {"text": "", "entities": None}}
    reports = list(read_radgraph(write(tmp_path, data)))
    assert [report.key for report in reports] == ["a", "b"]
    assert all(radgraph_mentions(report) == [] for report in reports)


def test_a_labeler_is_chosen_where_there_are_two(tmp_path: Path) -> None:
    one = {
        "labeler_1": {"entities": {"1": OLD["7"]}},
        "labeler_2": {"entities": {"1": {**OLD["7"], "label": "OBS-DP"}}},
    }
    path = write(tmp_path, {"a": {"text": TEXT, **one}})

    def values(labeler: str | None) -> list[float]:
        return [m.value for report in read_radgraph(path, labeler) for m in radgraph_mentions(report)]

    assert values(None) == values("labeler_1") == [0.0]
    assert values("labeler_2") == [1.0]
    with pytest.raises(UserError, match="labeler_3"):
        values("labeler_3")


@pytest.mark.parametrize(
    ("words", "name", "book"),
    [
        ("effusions", "effusion", "effusion"), ("Opacities", "opacity", "opacity"), ("masses", "mass", "mass"),
        ("enlarged", "enlarge", "enlarge"), ("fibrosis", "fibrosis", "tail_abnorm_obs"),
        ("Port-A-Cath", "port", "catheter"), ("xyzzy", "xyzzy", "tail_abnorm_obs"),
    ],
)  # fmt: skip
def test_observations_are_mapped_by_lemma_then_lexicon(words: str, name: str, book: str) -> None:
    assert finding_of(words) == (name, book)


@pytest.mark.parametrize(
    ("words", "books"),
    [
        ("left lower lobe", ("lower_left_lobe",)), ("lungs", ("left_lung_unspec", "right_lung_unspec")),
        ("hilar", ("hilar_unspec",)), ("right hemidiaphragm", ("right_diaphragm",)), ("heart", ("heart_size",)),
        ("bases", ("lung_bases",)), ("left ventricle", ("other",)), ("toe", ("other",)), ("SVC", ("svc",)),
    ],
)  # fmt: skip
def test_places_are_mapped_to_the_book(words: str, books: tuple[str, ...]) -> None:
    assert place_of(words)[1] == books


@pytest.mark.parametrize(
    "data",
    [
        [], {"p10/s1": {"text": TEXT}}, {"p10/s1": {"entities": {}}},
        {"p10/s1": {"text": TEXT, "entities": {"1": {"tokens": "x"}}}},
        {"p10/s1": {"text": TEXT, "entities": {"1": {**OLD["7"], "label": "OBS-XX"}}}},
        {"p10/s1": {"text": "short", "entities": {"1": OLD["7"]}}}, {"p10/s1": 3},
    ],
)  # fmt: skip
def test_a_file_that_breaks_the_format_is_refused(tmp_path: Path, data: object) -> None:
    with pytest.raises(UserError, match=r"RadGraph|format") as caught:
        list(read_radgraph(write(tmp_path, data)))
    assert "p10/" not in str(caught.value)
    with pytest.raises(UserError, match="cannot be read"):
        list(read_radgraph(tmp_path / "missing.json"))


@pytest.mark.parametrize(
    "place",
    [{"start_ix": -13, "end_ix": -13}, {"start_ix": 11, "end_ix": 10}, {"start_ix": 10, "end_ix": 11},
     {"start_ix": 12, "end_ix": 12}],
    ids=["from the end", "backwards", "a word too many", "another word"],
)  # fmt: skip
def test_an_entity_must_stand_where_it_says(tmp_path: Path, place: dict[str, int]) -> None:
    data = {"p10/s1": {"text": TEXT, "entities": {"7": {**OLD["7"], **place}}}}
    with pytest.raises(UserError, match="breaks the format"):
        list(read_radgraph(write(tmp_path, data)))


@pytest.mark.parametrize(
    ("words", "book"), [("free air", "air"), ("airspace disease", "opacity"), ("air space disease", "opacity"),
                        ("pleural effusion", "effusion"), ("free", "free")]
)  # fmt: skip
def test_a_phrase_is_more_than_its_first_word(words: str, book: str) -> None:
    assert finding_of(words)[1] == book
