"""Label maps: the case that a file belongs to, and the structures that the values of a map mean.

Guarantee: what a value means stands in the card; where the data set ships a list of its own, both must agree, so that
right and left or two parts of a tumour are never swapped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from medvlp.errors import UserError
from medvlp.types import Mask

_SUFFIXES = (".nii.gz", ".nii")


def case_of(name: str) -> str:
    """Return a file name without `.nii.gz` or `.nii`, in any case."""
    return next((name[: -len(end)] for end in _SUFFIXES if name.lower().endswith(end)), name)


def label_map_masks(image_id: str, path: str, structures: Sequence[str]) -> tuple[Mask, ...]:
    """Return one mask per structure of a label map in which value i + 1 is structure i."""
    return tuple(Mask(image_id, name, path, (value,)) for value, name in enumerate(structures, 1))


def values_of(structures: Sequence[str]) -> tuple[int, ...]:
    """Return all values besides 0 of a label map in which value i + 1 is structure i."""
    return tuple(range(1, len(structures) + 1))


def check_label_names(declared: Mapping[str, object], patterns: Sequence[str], where: Path) -> None:
    """Compare the names that a data set gives to its values with what the card says they are.

    Args:
        declared: Value as text -> name, as `labels` of a `dataset.json`; 0 is the background.
        patterns: Regular expression that the lower-case name of value i + 1 must match.
        where: The file that declares them.

    Raises:
        UserError: A value is missing, too many, or has another meaning.
    """
    names = {key: str(name).strip().lower() for key, name in declared.items() if key != "0"}
    expected = {str(value): pattern for value, pattern in enumerate(patterns, 1)}
    wrong = [
        f"{value}: '{names.get(value, 'nothing')}'"
        for value in sorted({*names, *expected}, key=lambda text: (len(text), text))
        if value not in expected or not re.search(expected[value], names.get(value, ""))
    ]
    if wrong:
        raise UserError(
            f"The values of the label maps mean something else than in the data card: {', '.join(wrong)}.",
            where,
            "Use the original files and their list; maps of another numbering would be read with wrong names.",
        )
