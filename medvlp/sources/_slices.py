"""Volumes saved as pictures, one per slice: which files of a folder they are, and in which order.

Guarantee: slices are ordered by their numbers (2 before 10); a name without a number, and two slices of one number, are
never ordered by guess.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from medvlp.sources._files import PICTURES

_NAME = re.compile(r"(?P<prefix>\D*)(?P<number>\d+)")


def numbered_slices(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return the pictures of a folder in the order of their numbers, and those whose names are no numbers.

    Where no name is a number alone, one text before the numbers is allowed (`IM1`, `IM2`, ...), if all that end in a
    number have the same. Hidden files are passed over.

    Raises:
        ValueError: There is no picture, or two have the same number.
    """
    pictures = [path for path in folder.iterdir() if path.suffix.lower() in PICTURES and not path.name.startswith(".")]
    parts = {path: match for path in pictures if (match := _NAME.fullmatch(path.stem))}
    prefixes = {match["prefix"] for match in parts.values()}
    prefix = "" if "" in prefixes or len(prefixes) != 1 else prefixes.pop()
    numbers = {path: int(match["number"]) for path, match in parts.items() if match["prefix"] == prefix}
    if not numbers:
        raise ValueError("the folder holds no numbered picture")
    slices = sorted(numbers, key=lambda path: (numbers[path], path.name))
    for one, other in pairwise(slices):
        if numbers[one] == numbers[other]:
            raise ValueError(f"two slices have the number {numbers[one]}: {one.name} and {other.name}")
    return slices, sorted(path for path in pictures if path not in numbers)


def of_common_size(slices: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the slices of the most frequent size, in their order, and the others; headers are read, no pixels.

    Of sizes that are equally frequent the one that comes first counts. A file that is no picture is among the others.
    """
    sizes = {path: _size(path) for path in slices}
    known = Counter(size for size in sizes.values() if size is not None)
    common = known.most_common(1)[0][0] if known else None
    kept = [path for path in slices if common is not None and sizes[path] == common]
    return kept, [path for path in slices if path not in set(kept)]


def _size(path: Path) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError):
        return None
