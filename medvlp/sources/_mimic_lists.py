"""Lists of images that benchmarks choose from MIMIC-CXR, such as the 5x200 pairs of BenchX.

Guarantee: images are matched by their DICOM id, not by a path that depends on where a list was made; a row without one
is a recorded problem. Images that are not at hand are left to be counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from medvlp.sources._csv import read_csv
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import PRESENT


@dataclass(frozen=True, slots=True)
class Listed:
    """An image of a list.

    Args:
        image_id: Its DICOM id.
        classes: Names of the classes that the list says are present, joined by |; blank where it says none.
    """

    image_id: str
    classes: str


def read_lists(source: Source) -> dict[str, dict[str, Listed]]:
    """Return name of a list -> DICOM id -> image, for the lists of the card that lie in the root folder.

    Raises:
        UserError: A list cannot be read, or has neither `Path` nor `dicom_id`.
    """
    found: dict[str, dict[str, Listed]] = {}
    for name, about in source.card.adapter.get("lists", {}).items():
        path = source.root / about["file"]
        if not path.is_file():
            continue
        by_path = "dicom_id" not in path.read_text(encoding="utf-8-sig").partition("\n")[0].split(",")
        column = "Path" if by_path else "dicom_id"
        own = found.setdefault(str(name), {})
        for row in read_csv(path, (column,), tuple(about["classes"])):
            image = PurePosixPath(row.cells[column]).stem
            if not image:
                source.problem(f"{path.name}:{row.line}", f"the row has no {column}", "Download the list again.")
                continue
            present = [label for label in about["classes"] if number(row.cells.get(label, "")) == PRESENT]
            own[image] = Listed(image, "|".join(present))
    return found
