"""The raw layout of COVIDx CXR-4; see `data_cards/covidx.md`."""

from __future__ import annotations

from collections.abc import Iterable

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import PRESENT, ImageRef, Study

_SOURCES = ("ricord", "bimcv", "rsna", "sirm")
_SUFFIXES = (".png", ".jpg", ".jpeg")


class CovidxLayout(Layout):
    """Three folders of mixed picture formats and three lists without a header; some names differ by suffix alone."""

    label_values = (1.0, 0.0)

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by split and file name."""
        lists: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        studies = []
        for example in examples:
            front = next(image for image in example.images if image.view != "LATERAL")
            source = _SOURCES[example.patient % len(_SOURCES)]
            name = f"case {example.number // 3}{_SUFFIXES[example.number % 3]}"
            path = f"{example.split}/{name}"
            self.put_image(path, front.pixels)
            labels = self.labels(example)
            word = "positive" if labels["COVID-19"] == PRESENT else "negative"
            lists[example.split].append(f"{example.patient} {name} {word} {source}")
            image = ImageRef(path, path, "CR")
            patient = f"{source}/{example.patient}"
            attributes = {"source": source}
            studies.append(Study(path, patient, (image,), labels=labels, attributes=attributes, split=example.split))
        for split, lines in lists.items():
            self.put_text(f"{split}.txt", "\n".join(lines) + "\n")
        order = list(lists)
        return sorted(studies, key=lambda study: (order.index(str(study.split)), study.study_id))
