"""Volumes that a reader can scroll through: axial slices with masks and heat maps of every encoder over them.

Guarantee: masks and maps are the kept ones that the scores were computed from; a voxel is drawn where it lies in the
volume. What a volume weighs on the page is bounded.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.report_charts import read_predictions
from medvlp.bench.report_data import Results, read_json
from medvlp.bench.report_scores import PROTOCOL_NAMES
from medvlp.bench.volume_examples import INDEX, sheet
from medvlp.data.volume_views import cut, stretched
from medvlp.html.heat import OPACITY, colours
from medvlp.html.pictures import colour, edge
from medvlp.tasks.volume_grounding import VolumeHeatMaps
from medvlp.tasks.volume_segmentation import VolumeOutlines

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, UInt8

logger = logging.getLogger(__name__)

MOST_LAYERS = 12
"""Masks and maps of one volume."""
FILL, LINE = 70, 255


def volumes(found: Results) -> Iterator[dict[str, Any]]:
    """Yield for each example volume its slices, and the layers that can be laid over them."""
    outlines: list[tuple[str, str, VolumeOutlines]] = []
    maps: list[tuple[str, VolumeHeatMaps]] = []
    for group in sorted(found.groups, key=lambda each: each.setting.fraction):
        kind = found.tasks.get(group.setting.task, {}).get("type")
        if kind not in ("volume_segmentation", "volume_grounding") or not group.cells:
            continue
        frame = read_predictions(group.cells[0])
        setting = group.setting
        if frame is not None and kind == "volume_segmentation":
            name = f"{setting.encoder}, {PROTOCOL_NAMES.get(setting.protocol, setting.protocol).lower()}"
            outlines.append((setting.task, name, VolumeOutlines.from_frame(frame)))
        elif frame is not None:
            maps.append((setting.encoder, VolumeHeatMaps.from_frame(frame)))
    for number, entry in enumerate(read_json(found.root / "examples" / INDEX) or []):
        strip = _strip(found, entry)
        if strip is None:
            continue
        layers = [*_masks(outlines, entry), *_maps(maps, entry)][:MOST_LAYERS]
        start = next((layer["at"] for layer in layers), len(entry["slices"]) // 2)
        yield {
            key: entry[key] for key in ("sample_id", "dataset", "labels", "tile", "columns", "letters", "slices")
        } | {
            "id": f"volume-{number}",
            "strip": strip,
            "rows": -(-len(entry["slices"]) // entry["columns"]),
            "layers": layers,
            "start": start,
        }


def _strip(found: Results, entry: dict[str, Any]) -> str | None:
    from PIL import Image

    path = found.root / "examples" / str(entry.get("file", ""))
    try:
        with Image.open(path) as image:
            return _uri(image.convert("L"), format="WEBP", quality=72)
    except OSError as error:
        logger.warning("example volume %s left out: %s", path.name, error)
        return None


def _masks(kept: list[tuple[str, str, VolumeOutlines]], entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the reference of each task, and the masks of each encoder."""
    drawn: set[str] = set()
    for task, name, outlines in kept:
        rows = [row for row, sample in enumerate(outlines.sample_ids) if sample == entry["sample_id"]]
        if not rows:
            continue
        pairs = [outlines.masks(row) for row in rows]
        names = [outlines.labels[row] for row in rows]
        if task not in drawn:
            drawn.add(task)
            yield _mask_layer(f"{task}: reference", [pair[0] for pair in pairs], names, outlines, entry)
        yield _mask_layer(f"{task}: {name}", [pair[1] for pair in pairs], names, outlines, entry)


def _mask_layer(
    title: str, masks: list[Bool[np.ndarray, "d h w"]], names: list[str], kept: VolumeOutlines, entry: dict[str, Any]
) -> dict[str, Any]:
    places = [list(kept.label_names).index(name) for name in names]
    tile = tuple(entry["tile"])
    layer = np.zeros((len(entry["slices"]), *tile, 4), np.uint8)
    area = np.zeros(len(layer))
    for mask, place in zip(masks, places, strict=True):
        rgb = [int(colour(place)[at : at + 2], 16) for at in (1, 3, 5)]
        for number, at in enumerate(entry["slices"]):
            shown = _nearest(mask[at, ::-1, ::-1], tile)
            layer[number][shown] = [*rgb, FILL]
            layer[number][edge(shown)] = [*rgb, LINE]
            area[number] += shown.sum()
    keys = [(name, colour(place)) for name, place, mask in zip(names, places, masks, strict=True) if mask.any()]
    return {"title": title, "image": _coloured(sheet(layer)), "at": int(area.argmax()), "keys": keys, "low": None}


def _maps(kept: list[tuple[str, VolumeHeatMaps]], entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for encoder, maps in kept:
        for row, sample in enumerate(maps.sample_ids):
            if sample == entry["sample_id"]:
                title = f"evidence of {encoder} for: {maps.findings[row]}"
                yield _map_layer(title, maps.maps[row], entry)


def _map_layer(title: str, cells: Float[np.ndarray, "d h w"], entry: dict[str, Any]) -> dict[str, Any]:
    shape, tile = entry["shape"], tuple(entry["tile"])
    covered = stretched(shape, cells.shape).inverse(shape)
    fine = cut(cells, covered.view(stretched(shape, (shape[0], *tile))), np.nan)
    fine = fine[entry["slices"], ::-1, ::-1]
    known = np.isfinite(fine)
    low, high = (float(np.nanmin(fine)), float(np.nanmax(fine))) if known.any() else (0.0, 0.0)
    low = min(low, 0.0)
    shares = np.where(known, (fine - low) / (high - low) if high > low else 0.0, 0.0)
    layer = np.empty((*shares.shape, 4), np.uint8)
    layer[..., :3] = np.rint(255 * colours(shares))
    layer[..., 3] = np.rint(255 * OPACITY * shares)
    at = int(np.argmax(np.where(known, fine, -np.inf).max(axis=(1, 2))))
    return {"title": title, "image": _coloured(sheet(layer)), "at": at, "keys": [], "low": low, "high": high}


def _nearest(mask: Bool[np.ndarray, "h w"], tile: tuple[int, ...]) -> Bool[np.ndarray, "y x"]:
    return cut(mask[None], stretched((1, *mask.shape), (1, *tile)), 0, labels=True)[0]


def _coloured(image: UInt8[np.ndarray, "h w 4"]) -> str:
    from PIL import Image

    return _uri(Image.fromarray(image).quantize(64), format="PNG", optimize=True)


def _uri(image: Any, **how: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, **how)
    kind = str(how["format"]).lower()
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
