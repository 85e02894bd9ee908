"""The raw layouts of pathology tiles with captions; see `data_cards/pathology_tiles.md`."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Study

_QUILT = (
    *("", "caption", "image_path", "subset", "split", "pathology", "roi_text", "noisy_text", "corrected_text"),
    *("med_umls_ids", "magnification", "height", "width", "not_histology"),
)


class PathologyTilesLayout(Layout):
    """Coloured tiles; the sections of a report are the captions, and a patient is a video."""

    editions = {"edition": ("csv", "quilt"), "histology": ("all", "only")}  # noqa: RUF012

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their paths."""
        rows: list[list[object]] = []
        studies = []
        quilt = self.options["edition"] == "quilt"
        for example in examples:
            front = example.images[0].pixels
            pixels = np.stack([front, front // 2, 255 - front], axis=-1)
            captions = list(dict.fromkeys([example.sections["findings"], example.caption]))
            foreign = example.number % 3 == 2
            if quilt:
                name = f"Vid{example.patient}_x_image_{example.number:03d}.jpg"
                self.put_image(f"quilt_1m/{name}", pixels)
                for text in captions:
                    start = [len(rows), text, name, "quilt", example.split, "['lung']", "", "", "", "C1", "1.0"]
                    rows.append([*start, *pixels.shape[:2], 1.0 if foreign else 0.0])
            else:
                name = f"images/p{example.patient}/tile {example.number}.png"
                self.put_image(name, pixels)
                rows += [[name, text, f"p{example.patient}", example.split] for text in captions]
            if quilt and foreign and self.options["histology"] == "only":
                continue
            study_id = name.rsplit(".", 1)[0]
            told = {"subset": "quilt", "pathology": "['lung']", "magnification": "1.0", "concepts": "C1"}
            studies.append(
                Study(
                    study_id=study_id,
                    patient_id=f"Vid{example.patient}_x" if quilt else f"p{example.patient}",
                    images=(ImageRef(study_id, f"quilt_1m/{name}" if quilt else name, "SM"),),
                    report="\n".join(captions),
                    attributes=told if quilt else {},
                    language="en",
                    split=example.split,
                )
            )
        if quilt:
            self.put_csv("quilt_1M_lookup.csv", _QUILT, rows)
        else:
            self.put_csv("tiles.csv", ["image", "caption", "patient", "split"], rows)
        return sorted(studies, key=lambda study: study.study_id)
