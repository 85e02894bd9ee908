"""What a method's YAML says about the method: for tables and pages, never for training.

Guarantee: no method is imported; methods of other packages are told like our own. A mistake in `about` names the file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from medvlp.config.base import Config
from medvlp.config.methods import method_file
from medvlp.config.resources import shipped
from medvlp.config.tree import Tree, read_yaml
from medvlp.errors import UserError

LEGACY = "legacy_"
"""Beginning of the names of options that bring back a mistake of the official code."""


class About(Config):
    """The section `about` of a file in `configs/methods`."""

    title: str
    paper: str = Field("", description="arXiv number, DOI or venue.")
    year: int | None = None
    parts: tuple[str, ...] = ()
    needs: tuple[str, ...] = Field((), description="What a data set must offer, as `Demands.names`.")
    faithful: bool = Field(True, description="false: a stand-in where the paper's formulas are not known.")
    heat_map: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Setting:
    """A key that a configuration may change: its dotted name, its default and what the file says beside it."""

    key: str
    default: Any
    comment: str = ""


@dataclass(frozen=True)
class Described:
    """A method as its file declares it.

    Args:
        name: Name in configurations.
        about: None where the file of another package has no such section.
        objectives: Term -> weight and constants.
        options: Options, legacy switches last.
        recipes: Shipped configurations that train it.
    """

    name: str
    about: About | None
    objectives: tuple[Setting, ...]
    options: tuple[Setting, ...]
    recipes: tuple[str, ...]


def describe(name: str) -> Described:
    """Read what a method's YAML declares.

    Raises:
        UserError: There is no such method, or a mistake in its `about`.
    """
    file = method_file(name)
    tree = read_yaml(file)
    comments = _comments(file.read_text(encoding="utf-8"))
    about = tree.get("about")
    try:
        known = None if about is None else About.model_validate(about)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("about", *first["loc"]))
        raise UserError(f"{where}: {first['msg']}.", file, "Correct the section about.") from None
    options = sorted(_settings(tree.get("options") or {}, "options", comments), key=lambda one: LEGACY in one.key)
    return Described(
        name,
        known,
        tuple(_settings(tree.get("objectives") or {}, "objectives", comments)),
        tuple(options),
        tuple(
            f"configs/pretrain/{recipe.name}"
            for recipe in sorted(shipped("configs/pretrain").glob("*.yaml"))
            if re.fullmatch(rf"{re.escape(name)}([-_].*)?\.yaml", recipe.name)
        ),
    )


def _settings(tree: Tree, path: str, comments: dict[str, str]) -> list[Setting]:
    found = []
    for key, value in tree.items():
        where = f"{path}.{key}"
        if isinstance(value, dict) and value:
            below = _settings(value, where, comments)
            if where in comments:  # the comment of a whole mapping stands at its first key
                below[0] = Setting(below[0].key, below[0].default, below[0].comment or comments[where])
            found += below
        else:
            found.append(Setting(where, value, comments.get(where, "")))
    return found


def _comments(text: str) -> dict[str, str]:
    """Return dotted key -> comment at the end of its line."""
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.-]+):(?:\s.*?)??(?:\s#\s*(.*))?$", line)
        if match is None:
            continue
        indent, key, comment = len(match[1]), match[2], match[3]
        above = [(depth, name) for depth, name in above if depth < indent] + [(indent, key)]
        if comment:
            found[".".join(name for _, name in above)] = comment.strip()
    return found
