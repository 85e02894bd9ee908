"""The two books: their orders, that words are there, and that the lexicon and the matrix agree with them."""

from __future__ import annotations

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.knowledge.books import NORMAL_FINDINGS, anatomy_book, anatomy_names, finding_book, finding_names
from medvlp.knowledge.matrix import anatomy_labels, finding_labels, ternary_matrix
from medvlp.text.lexicon import lexicon
from medvlp.types import Triplet

FINDINGS = (
    "normal clear sharp sharply unremarkable intact stable free effusion opacity pneumothorax edema atelectasis tube "
    "consolidation process abnormality enlarge tip low pneumonia line congestion catheter cardiomegaly fracture air "
    "tortuous lead disease calcification prominence device engorgement picc clip elevation expand nodule wire fluid "
    "degenerative pacemaker thicken marking scar hyperinflate blunt loss widen collapse density emphysema aerate mass "
    "crowd infiltrate obscure deformity hernia drainage distention shift stent pressure lesion finding borderline "
    "hardware dilation chf redistribution aspiration tail_abnorm_obs excluded_obs"
)
PLACES = (
    "trachea left_hilar right_hilar hilar_unspec left_pleural right_pleural pleural_unspec heart_size heart_border "
    "left_diaphragm right_diaphragm diaphragm_unspec retrocardiac lower_left_lobe upper_left_lobe lower_right_lobe "
    "middle_right_lobe upper_right_lobe left_lower_lung left_mid_lung left_upper_lung left_apical_lung "
    "left_lung_unspec right_lower_lung right_mid_lung right_upper_lung right_apical_lung right_lung_unspec lung_apices "
    "lung_bases left_costophrenic right_costophrenic costophrenic_unspec cardiophrenic_sulcus mediastinal spine "
    "clavicle rib stomach right_atrium right_ventricle aorta svc interstitium parenchymal cavoatrial_junction "
    "cardiopulmonary pulmonary lung_volumes unspecified other"
)


def test_the_orders_are_the_published_ones() -> None:
    assert list(finding_names()) == FINDINGS.split()
    assert list(anatomy_names()) == PLACES.split()
    assert (len(finding_names()), len(anatomy_names())) == (75, 51)
    assert finding_names()[NORMAL_FINDINGS - 1 : NORMAL_FINDINGS + 1] == ("free", "effusion")


def test_every_entry_has_its_words() -> None:
    for note in finding_book():
        assert note.definition.endswith(".")
        assert note.appearance
        assert all(text[0].isupper() and not text.endswith(".") for text in note.appearance), note
        assert note.description.startswith(note.definition)
    assert all(note.description.endswith(".") for note in anatomy_book())
    assert len({note.definition for note in finding_book()}) == 75
    assert len({note.description for note in anatomy_book()}) == 51


def test_prompts_of_both_methods() -> None:
    note = anatomy_book()[1]
    assert note.prompt() == "It is located at left_hilar. "
    assert note.prompt(trailing=False) == "It is located at left_hilar"


def test_the_lexicon_names_entries_of_the_books_only() -> None:
    used = {entry.book for entry in lexicon().findings.values()}
    assert used <= set(finding_names())
    assert set(finding_names()) - used == {"excluded_obs"}
    places = {book for entry in lexicon().places.values() for books in entry.books.values() for book in books}
    assert places == set(anatomy_names())
    for entry in lexicon().places.values():
        for side, other in (("left", "right"), ("right", "left")):
            assert not any(other in book.split("_") for book in entry.books[side]), (entry.name, side)


def test_a_matrix_holds_what_is_stated() -> None:
    cells = [
        Triplet("left_pleural", "effusion", 1.0),
        Triplet("left_pleural", "effusion", 0.0),
        Triplet("right_pleural", "effusion", 0.0),
        Triplet("heart_size", "cardiomegaly", -1.0),
    ]
    for order in (cells, cells[::-1]):
        matrix = ternary_matrix(order)
        assert matrix.shape == (51, 75)
        assert matrix.dtype == np.int8
        assert matrix[4, 8] == 1
        assert matrix[5, 8] == 0
        assert (matrix == -1).sum() == 51 * 75 - 2
    assert (ternary_matrix([]) == -1).all()
    with pytest.raises(UserError, match=r"left_plural.*left_pleural"):
        ternary_matrix([Triplet("left_plural", "effusion", 1.0)])


def test_stream_labels_follow_the_published_rule() -> None:
    rng = np.random.default_rng(0)
    matrices = rng.choice([-1, 0, 1], size=(20, 51, 75), p=[0.98, 0.015, 0.005]).astype(np.int8)

    def label(values: np.ndarray) -> int:
        return 1 if (values == 1).any() else 0 if (values == 0).any() else -1

    findings, places = finding_labels(matrices), anatomy_labels(matrices)
    for k, matrix in enumerate(matrices):
        assert findings[k].tolist() == [label(matrix[:, j]) for j in range(75)]
        assert places[k].tolist() == [label(matrix[i]) for i in range(51)]
    assert findings[0].tolist() == finding_labels(matrices[0]).tolist()
