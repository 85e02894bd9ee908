"""Left and right of a mirrored image."""

from __future__ import annotations

import pytest

from medvlp.knowledge.books import anatomy_names
from medvlp.text.sides import mirrored_order, swap_sides


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("Left pleural effusion.", "Right pleural effusion."),
        ("RLL opacity, left-sided PICC", "LLL opacity, right-sided PICC"),
        ("Mediastinal shift rightward; bilateral effusions.", "Mediastinal shift leftward; bilateral effusions."),
        ("The left atrium and RIGHT VENTRICLE are enlarged.", "The left atrium and RIGHT VENTRICLE are enlarged."),
        ("Mild dextroscoliosis", "Mild levoscoliosis"),
        ("The mass is cleft and bright.", "The mass is cleft and bright."),
    ],
)
def test_sides_are_swapped_and_swapped_back(text: str, mirrored: str) -> None:
    assert swap_sides(text) == mirrored
    assert swap_sides(mirrored) == text


def test_places_of_the_book_change_sides() -> None:
    names = anatomy_names()
    order = mirrored_order(names)
    pairs = {name: None if to is None else names[to] for name, to in zip(names, order, strict=True)}
    assert pairs["left_hilar"] == "right_hilar"
    assert pairs["lower_right_lobe"] == "lower_left_lobe"
    assert pairs["right_atrium"] == "right_atrium"
    assert pairs["spine"] == "spine"
    assert [name for name, to in pairs.items() if to is None] == ["middle_right_lobe"]
    assert mirrored_order(["Left Effusion", "Right Effusion", "Edema"]) == [1, 0, 2]
