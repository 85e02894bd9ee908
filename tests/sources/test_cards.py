"""Data cards: what the code reads from them, and what a wrong card says."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from medvlp.config.resources import shipped
from medvlp.errors import UserError
from medvlp.sources import SOURCES
from medvlp.sources.cards import load_card, read_card

GOOD = """---
name: made_up
title: Made up
modality: CR
source: nowhere
licence: CC0
access: open
layout: [one.csv]
---

# Made up
Some text
---
with a rule.
"""


@pytest.mark.parametrize("name", SOURCES.names())
def test_every_data_set_has_a_card_and_one_class(name: str) -> None:
    assert load_card(name).name == name
    assert SOURCES.get(name).name == name


def test_helpers_are_no_data_sets() -> None:
    assert "cards" not in SOURCES.names()
    assert "base" not in SOURCES.names()


def test_nih_card_holds_the_official_numbers() -> None:
    card = load_card("nih_chestxray14")
    first, *_, last = card.labels
    assert (first, last, len(card.labels)) == ("Atelectasis", "Hernia", 14)
    assert card.label_columns == (*card.labels, "No Finding")
    assert (card.splits["train_val"].images, card.splits["test"].images) == (86524, 25596)
    assert card.counts["images"] == 112120 == 86524 + 25596
    assert card.counts["view_PA"] + card.counts["view_AP"] == card.counts["images"]
    assert card.counts["patients"] == 28008 + 2797


def test_text_body_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "made_up.md"
    path.write_text(GOOD)
    card = read_card(path)
    assert card.text == GOOD
    assert card.body == "# Made up\nSome text\n---\nwith a rule."
    assert card.text_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("---\nname", "name"), "starts with YAML front matter"),
        (("licence: CC0", "licence: [CC0"), "no YAML"),
        (("title: Made up", "titel: Made up"), r"(?s)title: Field required.*titel: Extra.*Did you mean 'title'"),
        (("layout: [one.csv]", "layout: [one.csv]\nsplits: {test: {images: -1}}"), "splits.test.images"),
    ],
)
def test_wrong_cards(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    path = tmp_path / "made_up.md"
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(UserError, match=message) as caught:
        read_card(path)
    assert caught.value.where == str(path)


def test_a_card_of_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_up.md").write_text(shipped("data_cards/nih_chestxray14.md").read_text())
    monkeypatch.setattr("medvlp.sources.cards.shipped", lambda relative: tmp_path / Path(relative).name)
    with pytest.raises(UserError, match="name: nih_chestxray14, expected made_up"):
        load_card("made_up")
