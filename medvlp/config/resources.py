"""Files that ship with the package: configs, benchmark suites and tasks, data cards.

Guarantee: the same relative path works in a source checkout, in an editable install and in an installed wheel.
"""

from __future__ import annotations

from pathlib import Path

import medvlp
from medvlp.errors import UserError, nearest

_YAML = ("configs", "benchmarks/suites", "benchmarks/tasks")


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
    there = sorted(str(p) for p in given.parent.glob("*.yaml") if not p.name.startswith("."))
    ours = sorted(str(p.relative_to(shipped_root())) for top in _YAML for p in shipped(top).rglob("*.yaml"))
    close = [p for p in ours if Path(p).stem == given.stem] or [p for p in ours if Path(p).parent == given.parent]
    near = close or there or ours
    raise UserError(
        f"There is no file '{path}'.{nearest(str(path), near)}", given.absolute(), f"There are: {', '.join(near)}."
    )
