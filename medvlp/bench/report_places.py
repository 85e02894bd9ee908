"""Heat maps of a grounding task in a report: one test image for each finding, as every encoder explains it.

Guarantee: maps and regions are the kept ones that the scores were computed from.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.report_charts import read_predictions
from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import Setting
from medvlp.html import data_uri
from medvlp.html.heat import laid_over, scale_of
from medvlp.html.pictures import COLOURS, edge
from medvlp.io.enlarge import to_square
from medvlp.metrics.grounding import pointing
from medvlp.tasks.grounding import HeatMaps

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

logger = logging.getLogger(__name__)

SIDE = 160
"""Pixels of a tile."""


def places(found: Results) -> Iterator[dict[str, Any]]:
    """Yield for each example its image with the region outlined, and a tile for each encoder with heat maps."""
    kept: dict[str, list[tuple[Setting, HeatMaps]]] = {}
    for group in found.groups:
        task = group.setting.task
        if found.tasks.get(task, {}).get("type") == "grounding" and group.cells:
            frame = read_predictions(group.cells[0])
            if frame is not None:
                kept.setdefault(task, []).append((group.setting, HeatMaps.from_frame(frame)))
    for entry in found.places:
        path = found.root / "examples" / str(entry.get("file", ""))
        tiles = []
        grey = grey_picture(path, SIDE)
        for setting, maps in kept.get(str(entry.get("task")), []):
            row = _row(maps, entry)
            if grey is None or row is None:
                continue
            own, region = to_square(maps.maps[[row]], SIDE), _small(maps.regions(slice(row, row + 1))[0])
            hit = pointing(maps.maps[[row]], maps.regions(slice(row, row + 1)))[0]
            about = {"encoder": setting.encoder, "setting": setting.id, "hit": float(hit)}
            tiles.append(about | {"image": _tile(grey, own[0], region)})
        if tiles:
            yield {**{key: entry[key] for key in ("task", "finding", "sample_id")}, "tiles": tiles}


def _row(maps: HeatMaps, entry: dict[str, Any]) -> int | None:
    wanted = (entry.get("sample_id"), entry.get("finding"))
    return next((i for i, key in enumerate(zip(maps.sample_ids, maps.findings, strict=True)) if key == wanted), None)


def grey_picture(path: Path, side: int) -> Float[np.ndarray, "p q"] | None:
    """Return an example image, its longer side `side` pixels, 0 black to 1 white; None where it cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = (max(1, round(length * side / max(image.size))) for length in image.size)
            return np.asarray(image.convert("L").resize((width, height), Image.Resampling.BOX), dtype=np.float64) / 255
    except OSError as error:
        logger.warning("example image %s left out: %s", path.name, error)
        return None


def _small(region: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "s s"]:
    at = ((np.arange(SIDE) + 0.5) * len(region) / SIDE).astype(np.intp)
    return region[np.ix_(at, at)]


def _tile(grey: Float[np.ndarray, "s s"], heat: Float[np.ndarray, "s s"], region: Bool[np.ndarray, "s s"]) -> str:
    """Return the image with its map, each on a scale of its own, and the outline of the region."""
    shown = laid_over(grey, heat, *scale_of([heat]))
    shown[edge(region)] = [int(COLOURS[1][at : at + 2], 16) for at in (1, 3, 5)]
    return data_uri(shown)
