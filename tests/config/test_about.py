"""What a method's YAML tells of the method: keys with defaults and comments, in the order of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from medvlp.config import about
from medvlp.config.about import describe
from medvlp.config.methods import METHODS
from medvlp.config.resources import shipped
from medvlp.errors import UserError

FILE = """\
about:
  title: Toy
  year: 2030
  needs: [reports]
name: toy
text: null                # not an option
objectives:
  first: {weight: 1.0, temperature: 0.07}   # both of the paper
  second:
    weight: 0.5           # the paper: 1
options:
  legacy_sign: false      # true: "a # b" as published
  # a line of its own
  parts:                  # how it is cut
    width: 8
    name: "a:b"           # quoted
  empty: {}
"""


def leaves(tree: dict[str, Any], path: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= leaves(value, f"{path}.{key}") if isinstance(value, dict) and value else {f"{path}.{key}": value}
    return found


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_is_described_with_all_its_keys(name: str) -> None:
    tree = yaml.safe_load((shipped("configs/methods") / f"{name}.yaml").read_text())
    found = describe(name)
    assert found.about is not None
    assert found.about.title
    for section, settings in (("objectives", found.objectives), ("options", found.options)):
        assert {one.key: one.default for one in settings} == leaves(tree.get(section) or {}, section)
    assert all(Path(shipped(recipe)).is_file() for recipe in found.recipes)


def test_the_list_holds_methods_alone() -> None:
    assert "convirt" in METHODS.names()
    assert not {"base", "context", "_artifact"} & set(METHODS.names())


def test_comments_stand_at_their_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy.yaml").write_text(FILE)
    monkeypatch.setattr(about, "method_file", lambda name: tmp_path / f"{name}.yaml")
    found = describe("toy")
    settings = {one.key: (one.default, one.comment) for one in (*found.objectives, *found.options)}
    assert settings == {
        "objectives.first.weight": (1.0, "both of the paper"),
        "objectives.first.temperature": (0.07, ""),
        "objectives.second.weight": (0.5, "the paper: 1"),
        "options.parts.width": (8, "how it is cut"),
        "options.parts.name": ("a:b", "quoted"),
        "options.empty": ({}, ""),
        "options.legacy_sign": (False, 'true: "a # b" as published'),
    }
    assert [one.key for one in found.options][-1] == "options.legacy_sign", "legacy switches come last"
    assert found.about is not None
    assert (found.about.faithful, found.about.heat_map, found.recipes) == (True, None, ())
    (tmp_path / "toy.yaml").write_text(FILE.replace("year: 2030", "yeer: 2030"))
    with pytest.raises(UserError, match=r"about\.yeer"):
        describe("toy")
    (tmp_path / "toy.yaml").write_text(FILE[FILE.index("name:") :])
    assert describe("toy").about is None


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UserError, match="Did you mean 'medslip'"):
        describe("medslp")
