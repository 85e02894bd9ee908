"""JSON Lines with every field that a line may have."""

from __future__ import annotations

import json
from collections.abc import Iterable

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.findings import NAMES
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import Box, ImageRef, Study


class JsonlLayout(Layout):
    """Texts and sections by turns; uncertain, absent and unmentioned labels; boxes that name their image."""

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the file and its images; return its studies in the order of the lines."""
        lines = []
        studies = []
        for example in examples:
            name, patient = f"s{example.number}", f"p{example.patient}"
            images, boxes = [], []
            for place, image in enumerate(example.images):
                path = f"images/{name}_{place}.png"
                self.put_image(path, image.pixels)
                images.append(ImageRef(path, path, "CR", image.view))
                boxes += [Box(path, box.finding, box.x, box.y, box.width, box.height) for box in image.boxes]
            labels = {
                finding: 1.0 if finding in example.findings else (0.0, -1.0, float("nan"))[(example.number + place) % 3]
                for place, finding in enumerate(NAMES)
            }
            parts = {key: example.sections.get(key, "") for key in ("findings", "impression")}
            text = parts["findings"] if example.number % 2 else ""
            report = text or "\n".join(f"{key.upper()}: {part}" for key, part in parts.items() if part)
            line = {
                "id": name,
                "patient_id": patient,
                "split": example.split,
                "age": example.age,
                "sex": example.sex,
                "language": "en",
                "images": [{"path": image.path, "view": image.view, "modality": "CR"} for image in images],
                "labels": {key: None if value != value else int(value) for key, value in labels.items()},
                "boxes": [
                    {"label": b.label, "x": b.x, "y": b.y, "width": b.width, "height": b.height, "image": b.image_id}
                    for b in boxes
                ],
                **({"text": text} if text else parts),
            }
            lines.append(json.dumps(line))
            studies.append(
                Study(name, patient, tuple(images), report=report or None, labels=labels, boxes=tuple(boxes),
                      language="en", age=float(example.age), sex=example.sex, split=example.split)
            )  # fmt: skip
        self.put_text("studies.jsonl", "\n".join(lines) + "\n")
        return studies
