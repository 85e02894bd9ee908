"""Triplets against sentences with known reading, hand-read real sentences, and the phantom's truth."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from medvlp.errors import UserError
from medvlp.text.lexicon import compile_lexicon, lexicon
from medvlp.text.statements import normalise, normalise_with_offsets
from medvlp.text.triplets import cells_of, read_mentions, read_sentence_triplets, report_triplets
from medvlp.types import Triplet

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("triplets_benchmark", REPOSITORY / "benchmarks" / "triplets.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def iu_reports(test_data: Path) -> dict[str, str]:
    from medvlp.sources.iu_xray_reports import IuXrayReports

    studies = IuXrayReports(test_data / "iu_xray_reports" / "NLMCXR_reports.tgz").studies()
    return {study.study_id: study.report or "" for study in studies}


def read(sentence: str) -> str:
    return "; ".join(
        f"{mention.place}: {mention.finding} {int(mention.value)}"
        for mention in read_sentence_triplets(normalise(sentence))
    )


SENTENCES = [
    ("No pleural effusion.", "pleural space: effusion 0"),
    ("Small left effusion.", "left pleural space: effusion 1"),
    ("Bilateral pleural effusions.", "left pleural space: effusion 1; right pleural space: effusion 1"),
    ("A pleural effusion is seen on the right.", "right pleural space: effusion 1"),
    ("Left apical pneumothorax.", "left pleural space: pneumothorax 1"),
    ("Right upper lobe consolidation.", "right upper lobe: consolidation 1"),
    ("There is consolidation in the right upper lobe.", "right upper lobe: consolidation 1"),
    ("The left lower lobe shows consolidation.", "left lower lobe: consolidation 1"),
    ("There is a nodule projecting over the left upper lobe.", "left upper lobe: nodule 1"),
    ("Pulmonary nodule in the right upper lobe.", "right upper lobe: nodule 1"),
    ("Focal consolidation.", "lung: consolidation 1"),
    (
        "Collapse of the left upper and lower lobes.",
        "left lower lobe: collapse 1; left upper lobe: collapse 1",
    ),
    (
        "Atelectasis or scar is noted within the left midlung.",
        "left mid lung: atelectasis -1; left mid lung: scar -1",
    ),
    (
        "Opacity in the left base may represent atelectasis or pneumonia.",
        "left lung base: opacity 1; left lung base: atelectasis -1; left lung base: pneumonia -1",
    ),
    (
        "Right lower lobe opacity and pleural effusion.",
        "right lower lobe: opacity 1; pleural space: effusion 1",
    ),
    ("Right upper lobe mass without consolidation.", "right upper lobe: mass 1; lung: consolidation 0"),
    ("Right upper lobe opacity not consistent with pneumonia.", "right upper lobe: opacity 1; lung: pneumonia 0"),
    ("The effusion on the left has resolved.", "left pleural space: effusion 0"),
    ("Heart size is normal.", "heart: cardiomegaly 0; heart: normal 1"),
    ("The heart is enlarged.", "heart: cardiomegaly 1; heart: enlarge 1"),
    ("The heart is not enlarged.", "heart: cardiomegaly 0; heart: enlarge 0"),
    ("The cardiac silhouette is borderline enlarged.", "heart: cardiomegaly -1; heart: borderline 1"),
    ("Stable cardiomegaly.", "heart: cardiomegaly 1"),
    ("Stable heart size.", "heart: stable 1"),
    (
        "Heart size and mediastinal contours are within normal limits.",
        "heart: cardiomegaly 0; heart: normal 1; mediastinum: normal 1",
    ),
    ("The lungs are clear.", "left lung: clear 1; right lung: clear 1"),
    (
        "Lungs are hyperexpanded but clear.",
        "left lung: hyperinflate 1; right lung: hyperinflate 1; left lung: clear 1; right lung: clear 1",
    ),
    (
        "Thoracic aorta is mildly tortuous and demonstrates calcification.",
        "aorta: tortuous 1; aorta: calcification 1",
    ),
    ("Calcified granuloma in the right lung base.", "right lung base: calcification 1; right lung base: granuloma 1"),
    ("Blunting of the left costophrenic angle.", "left costophrenic angle: blunt 1"),
    ("No acute cardiopulmonary abnormality.", "cardiopulmonary: abnormality 0"),
    ("Further evaluation of these findings is recommended.", ""),
    ("Displaced fracture of the left fifth rib.", "left 5th rib: fracture 1"),
    ("Acute right 8th rib fracture.", "right 8th rib: fracture 1"),
    ("Right PICC line with tip in the mid SVC.", "svc: picc 1; svc: tip 1"),
    ("The endotracheal tube tip is above the carina.", "trachea: endotracheal tube 1; trachea: tip 1"),
    ("Left chest wall pacemaker.", "left chest wall: pacemaker 1"),
    ("Free air under the diaphragm.", "diaphragm: air 1"),
    ("Lingular opacity.", "lingula: opacity 1"),
    ("Low lung volumes with bibasilar atelectasis.", "lung volumes: low 1; left lung base: atelectasis 1; "
     "right lung base: atelectasis 1"),
    ("Comparison with the prior examination.", ""),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES, ids=[s for s, _ in SENTENCES])
def test_a_sentence_is_read_as_known(sentence: str, expected: str) -> None:
    assert read(sentence) == expected


CELLS = [
    ("No pleural effusion.", {("pleural_unspec", "effusion", 0.0)}),
    ("Small left effusion.", {("left_pleural", "effusion", 1.0)}),
    ("Bibasilar atelectasis.", {("lung_bases", "atelectasis", 1.0)}),
    ("Left basilar atelectasis.", {("left_lower_lung", "atelectasis", 1.0)}),
    ("Lingular opacity.", {("upper_left_lobe", "opacity", 1.0)}),
    ("Right middle lobe opacity.", {("middle_right_lobe", "opacity", 1.0)}),
    ("The lungs are clear.", {("left_lung_unspec", "clear", 1.0), ("right_lung_unspec", "clear", 1.0)}),
    ("Pulmonary fibrosis.", {("pulmonary", "tail_abnorm_obs", 1.0)}),
    ("Dislocation of the left humerus.", {("other", "tail_abnorm_obs", 1.0)}),
    ("No acute disease.", {("unspecified", "disease", 0.0)}),
    ("Left IJ central venous catheter with tip in the SVC.", {("svc", "catheter", 1.0), ("svc", "tip", 1.0)}),
]  # fmt: skip


@pytest.mark.parametrize(("sentence", "expected"), CELLS, ids=[s for s, _ in CELLS])
def test_cells_are_entries_of_the_books(sentence: str, expected: set[tuple[str, str, float]]) -> None:
    cells = cells_of(read_sentence_triplets(normalise(sentence)))
    assert {(c.anatomy, c.finding, c.value) for c in cells} == expected


def test_offsets_point_at_the_words_of_the_report() -> None:
    report = "INDICATION: Rule out PNEUMONIA.\nFINDINGS:  Small\n left   Effusion.  No pneumothorax.\n"
    mentions = read_mentions(report)
    assert [report[m.start : m.end] for m in mentions] == ["Effusion", "pneumothorax"]
    assert report_triplets(report) == (
        Triplet("left pleural space", "effusion", 1.0),
        Triplet("pleural space", "pneumothorax", 0.0),
    )


@pytest.mark.parametrize("text", ["", " ", "...", "\n\n", "FINDINGS:", "İstanbul ß ﬁbrosis", "No", "left " * 400])
def test_odd_text_is_read_without_error(text: str) -> None:
    for mention in read_mentions(text):
        assert 0 <= mention.start < mention.end <= len(text)


def test_normalised_text_leads_back_to_its_places() -> None:
    text = "  İnterval\tCHANGE \n of X  "
    normal, offsets = normalise_with_offsets(text)
    assert normal == normalise(text)
    assert len(offsets) == len(normal)
    assert all(char in text[offset].lower() for char, offset in zip(normal, offsets, strict=True) if char != " ")
    assert text[offsets[normal.index("change")] :].startswith("CHANGE")


def test_the_phantom_is_read_right(benchmark: ModuleType) -> None:
    pairs = [(benchmark.in_phantom_words(text), truth) for text, truth in benchmark.phantom_reports(211, 150)]
    found = benchmark.agreement(pairs)
    assert found["all"]["f1"] >= 0.97
    assert min(row["f1"] for row in found["by_value"].values()) >= 0.95
    assert min(row["f1"] for row in found["by_finding"].values()) >= 0.9


@pytest.mark.data
@pytest.mark.parametrize(("name", "sentences", "least"), [("iu_hand_triplets.csv", 60, 0.94),
                                                          ("iu_hand_triplets_held_out.csv", 40, 0.93)])  # fmt: skip
def test_hand_read_sentences(
    name: str, sentences: int, least: float, benchmark: ModuleType, iu_reports: dict[str, str]
) -> None:
    found = benchmark.agreement(benchmark.hand_read(Path(__file__).with_name(name), iu_reports))
    assert found["texts"] == sentences
    assert found["all"]["f1"] >= least


def test_agreement_counts_each_kind_of_error(benchmark: ModuleType) -> None:
    a, b, c = ("p", "x", 1.0), ("p", "y", 0.0), ("q", "x", -1.0)
    found = benchmark.agreement([({a, b}, {a, c}), (set(), {b})])
    assert found["all"] == {"agree": 1, "extra": 1, "missed": 2, "precision": 0.5, "recall": 0.3333, "f1": 0.4}
    assert found["by_value"]["present"]["f1"] == 1


def test_lexicon_mistakes_name_their_entry() -> None:
    place = {"kind": "lung", "none": ["pulmonary"], "words": ["lung"]}
    good = {"places": {"lung": place}, "findings": {"scar": {"words": ["scar"]}}}
    assert compile_lexicon(good).findings["scar"].book == "scar"
    for broken, what in [
        ({"places": good["places"]}, "missing"),
        ({**good, "findings": {"scar": {"words": ["("]}}}, "regular expression"),
        ({**good, "findings": {"scar": {"words": ["scar"], "home": "moon"}}}, "moon"),
        ({**good, "findings": {"scar": {"words": ["scar"], "at": ["moon"]}}}, "moon"),
    ]:
        with pytest.raises(UserError, match=what):
            compile_lexicon(broken)


def test_every_word_of_the_lexicon_can_be_found() -> None:
    for entry in (*lexicon().findings.values(), *lexicon().places.values()):
        assert entry.pattern.pattern
        assert not entry.pattern.search("")
