"""Boxes of a data set against the image files that they are said to lie on.

Guarantee: a store has no box that lies mostly outside its image. Boxes are in pixels of the released image; a copy that
was reduced to another size does not fit them, and where that shows in most images no box of the data set is kept, since
the others merely happen to lie inside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from medvlp.sources.base import Problem
from medvlp.types import Box, Study

LEAST_INSIDE = 0.5
"""Share of a box that must lie on the image; hand-drawn boxes reach a little over its edges."""
_FIX = "Use the images at the size at which they were released, or tables whose boxes were reduced as the images were."


def boxes_that_fit(studies: Sequence[Study], images: Sequence[Mapping[str, Any]]) -> tuple[list[Study], list[Problem]]:
    """Return the studies without the boxes that cannot be right, and a problem for each image that loses its boxes.

    Args:
        studies: Studies with boxes in pixels of the file.
        images: Rows with `image_id`, `path`, and `height` and `width` of the file.
    """
    files = {row["image_id"]: row for row in images if row["height"] and row["width"]}
    boxed = {box.image_id for study in studies for box in study.boxes} & files.keys()
    outside = {
        box.image_id
        for study in studies
        for box in study.boxes
        if box.image_id in boxed and _inside(box, files[box.image_id]) < LEAST_INSIDE
    }
    dropped = boxed if 2 * len(outside) > len(boxed) else outside
    kept, problems = [], []
    for study in studies:
        for name in sorted({box.image_id for box in study.boxes} & dropped):
            size = f"{files[name]['width']} x {files[name]['height']} pixels"
            reason = f"a box lies outside the image of {size}; none of its boxes is kept"
            if name not in outside:
                reason = "the boxes of most images lie outside them, so those of this one are not kept either"
            problems.append(Problem(files[name]["path"] or f"image {name}", reason, _FIX, study.study_id))
        boxes = tuple(box for box in study.boxes if box.image_id not in dropped)
        kept.append(study if boxes == study.boxes else dataclasses.replace(study, boxes=boxes))
    return kept, problems


def _inside(box: Box, file: Mapping[str, Any]) -> float:
    """Return the share of the box's area that lies on the image."""
    width = min(box.x + box.width, file["width"]) - max(box.x, 0)
    height = min(box.y + box.height, file["height"]) - max(box.y, 0)
    return max(width, 0) * max(height, 0) / (box.width * box.height)
