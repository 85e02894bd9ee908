"""The thorax phantom: a raw data set that medvlp makes itself (`medvlp phantom write`), read like any other.

Guarantee: importing this package imports neither OpenCV nor numpy. Labels of a study are what is in the patient.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from medvlp.errors import UserError
from medvlp.sources.base import Problem, Source
from medvlp.types import Box, ImageRef, Mask, Study, Triplet

if TYPE_CHECKING:
    from medvlp.sources.phantom.study import PhantomStudy, generate_study
    from medvlp.sources.phantom.write import write_phantom

__all__ = ["Phantom", "PhantomStudy", "generate_study", "write_phantom"]


def __getattr__(name: str) -> Any:
    if name == "write_phantom":
        from medvlp.sources.phantom.write import write_phantom

        return write_phantom
    if name in ("generate_study", "PhantomStudy"):
        from medvlp.sources.phantom import study

        return getattr(study, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Phantom(Source):
    """Reads what `write_phantom` wrote.

    Raises:
        UserError: The folder holds no phantom, or one of another format.
    """

    name = "phantom"

    def studies(self) -> Iterator[Study]:
        """Yield studies in the order of their number; rows that cannot be used go to `problems`."""
        rows = self.root / "studies.jsonl"
        again = "Run `medvlp phantom write` with the same arguments again: it finishes what is missing."
        try:
            marker = json.loads((self.root / "phantom.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise UserError("The folder holds no phantom data set (no phantom.json).", self.root, again) from None
        if marker.get("format") != self.card.adapter["format"]:
            raise UserError(
                f"The phantom has format {marker.get('format')}, this version reads {self.card.adapter['format']}.",
                self.root,
                "Write it again with this version of medvlp.",
            )
        if not rows.is_file():
            raise UserError("The phantom is not finished: studies.jsonl is missing.", self.root, again)
        self.counts.clear()
        seen: set[str] = set()
        with rows.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                where = f"studies.jsonl:{number}"
                try:
                    study = self._study(json.loads(line))
                except (ValueError, KeyError, TypeError) as error:
                    self.problems.append(Problem(where, f"The row cannot be read: {error!r}", again))
                    continue
                if study.study_id in seen:
                    self.problems.append(Problem(where, "The study id occurs twice.", again, study.study_id))
                    continue
                seen.add(study.study_id)
                gone = [image.path for image in study.images if not (self.root / image.path).is_file()]
                if gone:
                    self.problems.extend(Problem(path, "The image is missing.", again, study.study_id) for path in gone)
                    continue
                self.counts["studies"] += 1
                self.counts["images"] += len(study.images)
                self.counts[f"studies_{study.split}"] += 1
                yield study

    def _study(self, row: dict[str, Any]) -> Study:
        unknown = sorted(set(row["labels"]) - set(self.card.labels))
        if unknown:
            raise ValueError(f"unknown labels {unknown}")
        return Study(
            study_id=row["study_id"],
            patient_id=row["patient_id"],
            images=tuple(ImageRef(image["image_id"], image["path"], "CR", image["view"]) for image in row["images"]),
            report=row["report"],
            labels={name: float(value) for name, value in row["labels"].items()},
            boxes=tuple(
                Box(box["image_id"], box["label"], box["x"], box["y"], box["width"], box["height"])
                for box in row["boxes"]
            ),
            masks=tuple(Mask(box["image_id"], box["finding"], box["mask"]) for box in row["boxes"]),
            triplets=tuple(Triplet(t["anatomy"], t["finding"], float(t["value"])) for t in row["triplets"]),
            age=float(row["age"]),
            sex=row["sex"],
            split=row["split"],
        )
