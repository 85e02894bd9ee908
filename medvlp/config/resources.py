"""Files that ship with the package: configs, benchmark suites and tasks, data cards.

Guarantee: the same relative path works in a source checkout, in an editable install and in an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

import medvlp
from medvlp.errors import UserError


def shipped_root() -> Path:
    """Return the folder that holds `configs/`, `benchmarks/` and `data_cards/`."""
    package = Path(medvlp.__file__).parent
    inside_wheel = package / "_shipped"
    return inside_wheel if inside_wheel.is_dir() else package.parent


def shipped(relative: str) -> Path:
    """Return the path of a shipped file or folder, e.g. `configs/methods`."""
    return shipped_root() / relative


def locate(path: str | Path) -> Path:
    """Return `path` if it exists, else the shipped file of that relative path.

    Raises:
        UserError: Neither exists.
    """
    given = Path(path)
    if given.exists():
        return given
    if not given.is_absolute() and shipped(str(given)).exists():
        return shipped(str(given))
    folder = shipped(str(given.parent)) if not given.is_absolute() else given.parent
    near = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
    raise UserError(
        f"There is no file '{path}'.", given.absolute(), f"There are: {', '.join(near)}." if near else "Check the path."
    )
