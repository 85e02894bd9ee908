"""The phantom in the raw layout of a data set, on disk.

Guarantee: the folder appears whole or not at all; the same arguments give the same files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.progress import progress_bar
from medvlp.sources.phantom.examples import Example, phantom_examples
from medvlp.sources.phantom.layouts import LAYOUTS

SPLITS = ("train", "val", "test")


def write_layout(
    name: str,
    out: Path,
    studies: int,
    seed: int,
    *,
    size: int = 64,
    image_size: int = 256,
    options: dict[str, Any] | None = None,
) -> int:
    """Write phantom examinations as the raw data set `name`; return how many studies its adapter will read.

    Args:
        name: Data set.
        out: Folder to make; it must not exist, or be empty.
        studies: Number of phantom examinations.
        seed: Seed of the phantom.
        size: Voxels per axis of the volumes.
        image_size: Pixels per side of a radiograph.
        options: What the data set's card declares; decides which edition is written.

    Raises:
        UserError: There is no such layout or option, the folder is not empty, or the disk cannot be written.
    """
    kind = LAYOUTS.get(name)
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError("The folder is not empty.", out, "Choose an empty or new folder for --out.")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        layout = kind(part, options)
        made = phantom_examples(studies, seed, size, image_size, needs=kind.needs)
        with progress_bar(f"phantom as {name}", studies, "studies") as advance:
            written = layout.write(_counted(_all_splits(made, studies), advance))
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return len(written)


def _counted(examples: Iterable[Example], advance: Any) -> Iterator[Example]:
    for example in examples:
        yield example
        advance(1)


def _all_splits(examples: Iterable[Example], studies: int) -> Iterator[Example]:
    """Give the first three patients of a small data set one split each, so that none is empty."""
    small = studies < 20
    for example in examples:
        yield replace(example, split=SPLITS[example.patient]) if small and example.patient < len(SPLITS) else example


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Return the options of `options.<name>=<value>` texts, values as YAML.

    Raises:
        UserError: A text has another form.
    """
    from medvlp.config.tree import parse_override

    given: dict[str, Any] = {}
    for text in texts:
        tree = parse_override(text)
        if set(tree) != {"options"} or not isinstance(tree["options"], dict):
            raise UserError(
                f"'{text}' is no option of a layout.", json.dumps(text), "Write options.NAME=VALUE, as the card says."
            )
        given |= tree["options"]
    return given
