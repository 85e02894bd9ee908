"""Plain YAML mappings: read one, lay one over another, make one from `key.path=value`."""

from __future__ import annotations

import datetime
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from medvlp.errors import UserError

Tree = dict[str, Any]
ALTERNATIVES = {
    "validate_every": ("validate_epochs", "first_validation"),
    "validate_epochs": ("validate_every",),
}
"""Key -> keys beside it that it takes the place of when it is laid over them."""
OF_A_KIND = "augment"
"""Section that one of another `kind` takes the place of as a whole: none of its keys means the same there."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe YAML in which a key given twice is a mistake, not a silent choice of the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"{key} cannot be a key", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _parsed(text: str) -> Any:
    """Return the value of a YAML text; whatever it cannot mean (the date 2026-13-45, say) is a `YAMLError`."""
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path) -> Tree:
    """Return the mapping in a YAML file.

    Raises:
        UserError: The file cannot be read, is no YAML, or holds no mapping.
    """
    try:
        tree = _parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The file cannot be read: {error}.", path, "Give a YAML text file.") from error
    except yaml.YAMLError as error:
        raise UserError(
            f"The file is not valid YAML: {' '.join(str(error).split())}.", path, "Mend the line named above."
        ) from error
    if not isinstance(tree, dict):
        raise UserError("The file holds no mapping of keys to values.", path, "Write `key: value` lines.")
    return tree


def merge(base: Tree, changes: Tree) -> Tree:
    """Return `base` with `changes` laid over it, mapping by mapping; other values replace."""
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = (
            merge(merged[key], value) if isinstance(value, dict) and isinstance(merged.get(key), dict) else value
        )
    return merged


def overlay(base: Tree, changes: Tree) -> Tree:
    """As `merge`, but a value that is given takes the place of its alternatives in `base`; see `ALTERNATIVES`."""
    return merge(without_alternatives(base, changes), changes)


def without_alternatives(base: Tree, changes: Tree) -> Tree:
    """Return `base` without the keys whose place is taken by what is given in `changes`; see `OF_A_KIND`, too."""
    replaced = {other for key, value in changes.items() if value is not None for other in ALTERNATIVES.get(key, ())}
    return {
        key: without_alternatives(value, changes[key])
        if isinstance(value, dict) and isinstance(changes.get(key), dict)
        else value
        for key, value in base.items()
        if key not in replaced and not (key == OF_A_KIND and _of_other_kinds(value, changes.get(key)))
    }


def _of_other_kinds(one: Any, other: Any) -> bool:
    """Return whether a section names another kind than the one that it is laid over, which is of images by default."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    kind = one.get("kind", "image")
    return bool(other.get("kind", kind) != kind)


def parse_override(text: str) -> Tree:
    """Return the nested mapping of one `key.path=value`; the value is read as YAML."""
    key, equals, value = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(
            f"'{text}' is not of the form key.path=value.", "command line", "Write for example train.steps=100."
        )
    try:
        tree = _parsed(value)
    except yaml.YAMLError as error:
        raise UserError(
            f"The value of '{key}' is not valid YAML: {value}.", "command line", "Quote it for the shell."
        ) from error
    # On a command line "#" begins no comment, and 2026-01-31 is a name: both would else change a path silently.
    if isinstance(tree, datetime.date) or (" #" in f" {value}" and (tree is None or isinstance(tree, str))):
        tree = value.strip()
    for part in reversed(parts):
        tree = {part: tree}
    return dict(tree)
