"""What a layout is: it writes examples as the files of one data set and says what its adapter must read back.

Guarantee: files have exactly the names, columns, codes and orders of the released data set; the returned studies follow
from the examples alone, never from reading the files again.
"""

from __future__ import annotations

import csv
import io
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from medvlp.sources.cards import Card, load_card
from medvlp.sources.phantom.examples import Example
from medvlp.types import ABSENT, PRESENT, Study

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Shaped


Needs = Literal["radiographs", "lungs", "volumes", "organs", "abdomen", "heart", "surgery", "nothing"]
"""What examples must hold: radiographs (with lung masks), volumes of the thorax (with organs and findings outlined) or
the abdomen, echo loops, operations."""


class Layout(ABC):
    """The raw layout of the data set whose name the module has.

    Args:
        root: Folder to write into; it exists and is empty.
        options: What the data set's card declares; decides which edition is written.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs] = "radiographs"
    label_values: ClassVar[tuple[float, ...]] = ()
    """Values that every label of the data set may have on its own; empty where labels follow from findings."""
    editions: ClassVar[dict[str, tuple[object, ...]]] = {}
    """Options of the card that decide what is written -> the values to write; the tests go through all of them."""

    def __init_subclass__(cls, **arguments: object) -> None:
        super().__init_subclass__(**arguments)
        if "name" not in cls.__dict__:
            cls.name = cls.__module__.rsplit(".", 1)[-1]

    def __init__(self, root: Path, options: dict[str, object] | None = None) -> None:
        self.root = Path(root)
        self.card: Card = load_card(self.name)
        self.options = self.card.resolve_options(options or {})

    @abstractmethod
    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return the studies that its adapter must yield, in their order."""

    def labels(self, example: Example) -> dict[str, float]:
        """Return the example's labels in the names of the card: what it gives, or what its findings mean.

        A label that no finding of the phantom means is absent. The card's `normal_label` is present where no other
        label is.
        """
        if example.labels is not None:
            return dict(example.labels)
        means = {label: set(names.split("|")) for label, names in self.card.phantom.items()}
        found = {label: PRESENT if means.get(label, set()) & example.findings else ABSENT for label in self.card.labels}
        normal = self.card.normal_label
        if normal is not None:
            others = [value for label, value in found.items() if label != normal]
            found[normal] = ABSENT if PRESENT in others else PRESENT
        return found

    def labels_of(self, finding: str) -> list[str]:
        """Return the labels that a finding of the phantom means here, in the order of the card."""
        return [label for label in self.card.labels if finding in self.card.phantom.get(label, "").split("|")]

    def put_text(self, path: str, text: str) -> None:
        """Write a UTF-8 text file."""
        self.put_bytes(path, text.encode())

    def put_csv(self, path: str, header: Sequence[str], rows: Iterable[Sequence[object]], delimiter: str = ",") -> None:
        """Write a table, gzipped where the name ends in .gz. None is a blank cell, a whole float keeps its `.0`."""
        import gzip

        text = io.StringIO(newline="")
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
        writer.writerow(header)
        writer.writerows([["" if cell is None else cell for cell in row] for row in rows])
        data = text.getvalue().encode()
        self.put_bytes(path, gzip.compress(data, mtime=0) if path.endswith(".gz") else data)

    def put_image(self, path: str, pixels: Shaped[np.ndarray, "h w *c"]) -> None:
        """Write uint8 or uint16 grey, or uint8 RGB pixels as PNG or JPEG, by the suffix."""
        import cv2

        good, data = cv2.imencode(Path(path).suffix, pixels[..., ::-1] if pixels.ndim == 3 else pixels)
        if not good:
            raise OSError(f"OpenCV could not encode {path}")
        self.put_bytes(path, data.tobytes())

    def put_bytes(self, path: str, data: bytes) -> None:
        """Write a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)

    def put_nifti(self, path: str, array: Shaped[np.ndarray, "d h w"], affine: Float[np.ndarray, "4 4"]) -> None:
        """Write a gzipped NIfTI of a volume `[d h w]` in RAS, with the affine of `medvlp.types.Volume`."""
        from medvlp.sources.phantom.write import nifti

        self.put_bytes(path, nifti(array, affine))
