"""What the raw layouts of CheXpert and CheXpert Plus share."""

from __future__ import annotations

from medvlp.sources.phantom.examples import Example, ExampleImage

_FIRST = {"train": 1, "valid": 64541, "test": 64741}
"""Number of the first patient of each split in the released data set."""


def split_of(example: Example) -> str:
    """Return the name of the example's split in the tables."""
    return {"val": "valid"}.get(example.split, example.split)


def study_of(example: Example, split: str) -> tuple[str, str]:
    """Return patient and study as folders have them."""
    return f"patient{_FIRST[split] + example.patient:05d}", f"study{example.visit + 1}"


def view_of(place: int, image: ExampleImage) -> str:
    """Return the name of an image file without its suffix."""
    return f"view{place + 1}_{'lateral' if image.view == 'LATERAL' else 'frontal'}"
