"""Outlines of a segmentation task in a report: one test image for each label, as every encoder's head outlines it.

Guarantee: outlines are those of the kept masks that the scores were computed from; reference and prediction differ by
their line, not by colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.report_charts import read_predictions
from medvlp.bench.report_data import Results
from medvlp.bench.report_places import grey_picture
from medvlp.bench.report_scores import PROTOCOL_NAMES
from medvlp.html import data_uri
from medvlp.metrics.overlap import dice
from medvlp.tasks.segmentation import Outlines

if TYPE_CHECKING:
    from jaxtyping import Bool

SIDE = 256
"""Pixels of a picture."""


def outlines(found: Results) -> Iterator[dict[str, Any]]:
    """Yield for each example its picture, and a tile with both outlines for each encoder and protocol.

    Of several fractions of the labels the largest is shown.
    """
    kept: dict[str, dict[tuple[str, str], tuple[str, Outlines]]] = {}
    for group in sorted(found.groups, key=lambda each: each.setting.fraction):
        setting = group.setting
        if found.tasks.get(setting.task, {}).get("type") == "segmentation" and group.cells:
            frame = read_predictions(group.cells[0])
            if frame is not None:
                kept.setdefault(setting.task, {})[setting.encoder, setting.protocol] = (
                    setting.id,
                    Outlines.from_frame(frame),
                )
    for number, entry in enumerate(found.places):
        own = kept.get(str(entry.get("task")), {})
        grey = grey_picture(found.root / "examples" / str(entry.get("file", "")), SIDE) if own else None
        tiles = [
            {"encoder": encoder, "protocol": PROTOCOL_NAMES.get(protocol, protocol), "setting": setting, **tile}
            for (encoder, protocol), (setting, each) in own.items()
            if (tile := _tile(each, entry)) is not None
        ]
        if grey is not None and tiles:
            picture = data_uri(np.rint(255 * grey).astype(np.uint8))
            about = {key: entry[key] for key in ("task", "finding", "sample_id")}
            whole = {"reference": tiles[0]["reference"], "side": tiles[0]["side"]}
            yield {**about, **whole, "id": f"outlined-{number}", "picture": picture, "tiles": tiles}


def _tile(kept: Outlines, entry: dict[str, Any]) -> dict[str, Any] | None:
    wanted = (entry.get("sample_id"), entry.get("finding"))
    row = next((i for i, key in enumerate(zip(kept.sample_ids, kept.labels, strict=True)) if key == wanted), None)
    if row is None:
        return None
    (reference,), (predicted,) = kept.masks(slice(row, row + 1))
    counts = np.array([(reference & predicted).sum(), predicted.sum(), reference.sum()])
    return {
        "side": kept.side,
        "reference": contours(reference),
        "predicted": contours(predicted),
        "dice": float(dice(counts, "left_out")),
    }


def contours(mask: Bool[np.ndarray, "h w"]) -> str:
    """Return the outlines of a mask as the path of an SVG, a quarter of a pixel inside its edges."""
    import cv2

    # OpenCV runs through the centres of the outermost pixels: twice as large, these are nearer to the edge.
    large = np.pad(mask.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1), 1)
    found, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for contour in found:
        points = (cv2.approxPolyDP(contour, 0.7, True).reshape(-1, 2) - 0.5) / 2
        parts.append("M" + "L".join(f"{x:g} {y:g}" for x, y in points) + "Z")
    return "".join(parts)
