"""Files of a raw data set: images by name, and JSON.

Guarantee: files come in the order of their paths on every machine, hidden files (`.DS_Store`, `._name`) are passed
over, and a second file of the same name is a recorded problem, never a silent replacement.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._csv import read_text
from medvlp.sources.base import Source

PICTURES = (".png", ".jpg", ".jpeg")


def index_files(
    source: Source,
    patterns: Iterable[str],
    suffixes: Collection[str],
    *,
    by: str | Callable[[str], str] = "stem",
) -> dict[str, str]:
    """Return file name -> path relative to the root, for the files that match any of the patterns.

    Args:
        source: The data set; it records files whose name occurs before.
        patterns: Globs below the root, such as `images/*` or `dicom-images-train/**/*`.
        suffixes: Lower-case endings such as `.png`, matched in any case.
        by: `stem` (name without suffix), `name`, `path` (relative to the root), or what a function makes of that path.
    """
    found: dict[str, str] = {}
    seen: set[str] = set()
    for pattern in patterns:
        for path in sorted(source.root.glob(pattern)):
            relative = path.relative_to(source.root).as_posix()
            if path.name.startswith(".") or path.suffix.lower() not in suffixes or relative in seen:
                continue
            if not path.is_file():
                continue
            seen.add(relative)
            key = by(relative) if callable(by) else {"stem": path.stem, "name": path.name, "path": relative}[by]
            if key in found:
                fix = "Remove one of the two files; the first is kept."
                source.problem(relative, f"the image is also at {found[key]}", fix, path.stem)
                continue
            found[key] = relative
    return found


def require_files(source: Source, found: Collection[str], where: str) -> None:
    """Raise `UserError` where no file was found at all; `where` names the folders, as the card's layout does."""
    if not found:
        fix = f"Unpack the data set so that the root holds {where}."
        raise UserError(f"There is no image in {where}.", source.root, fix)


def table_path(source: Source, *names: str) -> Path:
    """Return the first of these files that is there.

    Raises:
        UserError: None of them is.
    """
    for name in names:
        path = source.root / name
        if path.is_file():
            return path
    raise UserError(f"{names[0]} is missing.", source.root, f"Put {' or '.join(names)} into the root folder.")


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        UserError: It cannot be read, or is no JSON.
    """
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"The file is no JSON: {error}", path, "Download it again.") from None


@contextmanager
def expected_json(path: Path) -> Iterator[None]:
    """Turn what goes wrong while entries of a JSON file are taken apart into a `UserError` about the file."""
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = f"missing key {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"The file has another structure than expected: {what}.", path, "Download it again.") from error
