"""`medvlp data show`: what is in a prepared store, as one self-contained HTML page.

Guarantee: the page asks the network for nothing and shows neither a machine path nor a patient identifier; the same
store and seed give the same page; boxes lie where the stored pixels are, through the transform that made them.
"""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.html import data_uri, render_page, write_page
from medvlp.html.charts import histogram
from medvlp.html.markdown import to_html
from medvlp.html.numbers import count
from medvlp.html.private import public, scrub

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Int

    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

TILE_PIXELS = 224
GREY_IMAGES = 512
REPORTS = 6
WITH_BOXES = 8
STATES = ((1.0, "present"), (0.0, "absent"), (-1.0, "uncertain"))


def show(store: Path, html: Path, *, images: int = 48, seed: int = 0) -> None:
    """Write the page of a store.

    Args:
        store: A prepared store.
        html: The page to write; it is replaced in one step.
        images: Number of images on the contact sheet.
        seed: Which images and reports are shown.

    Raises:
        UserError: The store cannot be opened, or the page cannot be written.
    """
    import medvlp
    from medvlp.store.array_store import Store

    opened = Store.open(Path(store))
    samples = opened.samples().reset_index(drop=True)
    rng = np.random.default_rng(seed)
    context: dict[str, Any] = {
        "card": opened.card,
        "made_by": f"medvlp {medvlp.__version__}",
        "facts": list(_facts(opened)),
        "preprocessing": opened.image_config.model_dump(mode="json"),
        "tiles": list(_tiles(opened, samples, choose(samples, opened.label_names, images, rng))),
        "charts": list(_charts(opened, samples, rng)),
        "groups": list(_groups(samples)),
        "splits": _splits(opened.studies),
        "labels": list(label_rows(opened.studies, opened.label_names)),
        "reports": list(_reports(opened.studies, rng)),
        "quarantine": quarantine_summary(opened.path / "quarantine.jsonl"),
        "body": to_html(scrub(opened.card.body)),
        "seed": seed,
    }
    optional = [
        ("images", "Images", "tiles"),
        ("distributions", "Distributions", "charts"),
        ("labels", "Labels", "labels"),
    ]
    optional.append(("reports", "Reports", "reports"))
    sections = [(key, name) for key, name, needed in optional if context[needed]]
    context["sections"] = [*sections, ("quarantine", "Quarantine"), ("card", "Data card")]
    write_page(Path(html), render_page("medvlp.store", "show.html.j2", **context))
    logger.info("page of %s: %d images shown", opened.dataset, len(context["tiles"]))


def _facts(store: Store) -> Iterator[tuple[str, str, str]]:
    config = store.image_config
    yield "Images", count(len(store.images)), f"of {count(len(store.studies))} studies"
    yield "Patients", count(store.studies["patient_id"].nunique()), ""
    declared = store.card.counts.get("images")
    if declared and declared > len(store.images):
        yield (
            "Full data set",
            f"{count(declared)} images",
            f"this store holds {100 * len(store.images) / declared:.1f} %",
        )
    yield "Stored as", f"{config.size} × {config.size} px", f"{config.dtype}, {config.aspect}, {config.interpolation}"
    yield "Store", store.hash[:12], f"format {store.meta.get('format_version', '–')}"
    yield "Access", store.card.access, ""


def _splits(studies: pd.DataFrame) -> list[str]:
    found = set(studies["split"].dropna().astype(str))
    return [name for name in ("train", "val", "test") if name in found] + sorted(found - {"train", "val", "test"})


def choose(
    samples: pd.DataFrame, labels: Sequence[str], number: int, rng: np.random.Generator
) -> Int[np.ndarray, " n"]:
    """Return rows of `samples` for the contact sheet: some with boxes, then each label in turn, the rarest first.

    Args:
        samples: Images joined with their studies.
        labels: Label names.
        number: How many rows; all of them if there are fewer.
        rng: Decides which.
    """
    order = rng.permutation(len(samples))
    boxed = (
        samples["boxes"].fillna("[]").str.len().to_numpy()[order] > 2
        if "boxes" in samples
        else np.zeros(len(order), bool)
    )
    picked = dict.fromkeys(order[boxed][:WITH_BOXES].tolist())
    present = {name: order[samples[f"label:{name}"].to_numpy()[order] == 1].tolist() for name in labels}
    queues = [collections.deque(rows) for rows in sorted(present.values(), key=len) if rows]
    while queues and len(picked) < min(number, len(samples)):
        for queue in queues:
            while queue and queue[0] in picked:
                queue.popleft()
            if queue and len(picked) < number:
                picked[queue.popleft()] = None
        queues = [queue for queue in queues if queue]
    for row in order.tolist():
        if len(picked) >= number:
            break
        picked.setdefault(row)
    return np.asarray(list(picked)[:number], dtype=np.int64)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)


def _tiles(store: Store, samples: pd.DataFrame, rows: Int[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    from PIL import Image

    if not len(rows):
        return
    pixels = _grey(store.read(samples["index"].to_numpy()[rows]))
    for row, image in zip(samples.iloc[rows].to_dict("records"), pixels, strict=True):
        small = Image.fromarray(image)
        small.thumbnail((TILE_PIXELS, TILE_PIXELS), Image.Resampling.LANCZOS)
        labels = [name for name in store.label_names if row.get(f"label:{name}") == 1]
        unsure = [name for name in store.label_names if row.get(f"label:{name}") == -1]
        facts = [
            row.get("view"),
            f"{row['age']:.0f} y" if row.get("age") == row.get("age") and row.get("age") else None,
            row.get("sex"),
        ]
        yield {
            "id": scrub(str(row["image_id"])),
            "image": data_uri(np.asarray(small)),
            "labels": labels,
            "unsure": unsure,
            "split": row.get("split") or "no split",
            "view": row.get("view") or "unknown",
            "facts": " · ".join(str(fact) for fact in facts if isinstance(fact, str)),
            "boxes": list(stored_boxes(row, store)),
        }


def stored_boxes(row: Mapping[Any, Any], store: Store) -> Iterator[dict[str, Any]]:
    """Yield the boxes of an image in percent of the stored square, cut at its edges; those outside are left out."""
    from medvlp.io import stored_transform

    boxes = json.loads(row.get("boxes") or "[]")
    if not boxes:
        return
    scale_y, scale_x, offset_y, offset_x = stored_transform(int(row["height"]), int(row["width"]), store.image_config)
    size = store.image_config.size

    def edge(value: float, scale: float, offset: float) -> float:
        return min(max(100 * (value * scale + offset) / size, 0.0), 100.0)

    for box in boxes:
        if box["image_id"] != row["image_id"]:
            continue
        left, right = (edge(x, scale_x, offset_x) for x in (box["x"], box["x"] + box["width"]))
        top, bottom = (edge(y, scale_y, offset_y) for y in (box["y"], box["y"] + box["height"]))
        if right > left and bottom > top:
            yield {"label": box["label"], "x": left, "y": top, "width": right - left, "height": bottom - top}


def _charts(store: Store, samples: pd.DataFrame, rng: np.random.Generator) -> Iterator[tuple[str, str, Any]]:
    if not len(samples):
        return
    rows = np.sort(rng.choice(len(samples), size=min(GREY_IMAGES, len(samples)), replace=False))
    totals = np.zeros(64)
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        totals += np.bincount(_grey(store.read(samples["index"].to_numpy()[part])).ravel() >> 2, minlength=64)
    share = (100 * totals / totals.sum()).tolist()
    about = f"of {count(len(rows))} images; 0 is black, 255 white, padding included"
    yield (
        "Grey values",
        about,
        histogram(share, np.arange(0, 257, 4).tolist(), "Grey value", "Share of pixels, %", "Grey values"),
    )
    for column, title, label, bins in (
        ("mean", "Mean brightness", "Mean grey value (0 to 1)", 30),
        ("age", "Age", "Years", 20),
    ):
        values = samples[column].dropna().to_numpy(dtype="float64") if column in samples else np.empty(0)
        if len(values):
            high = 1.0 if column == "mean" else max(100.0, float(values.max()))
            counts, edges = np.histogram(values, bins=bins, range=(0.0, high))
            note = f"{count(len(values))} of {count(len(samples))} images"
            yield title, note, histogram(counts.tolist(), edges.tolist(), label, "Images", title)


def _groups(samples: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, int, str]]]]:
    """Categories with their counts, the most frequent first."""
    size = samples["width"].astype("Int64").astype(str) + " × " + samples["height"].astype("Int64").astype(str)
    columns = {"View": samples["view"], "Sex": samples["sex"], "Split": samples["split"], "Size of the file, px": size}
    columns |= {"Modality": samples["modality"], "Site": samples["site"]}
    for title, column in columns.items():
        counts = column.astype(object).where(column.notna(), "not stated").value_counts()
        if len(counts) == 1 and counts.index[0] == "not stated":
            continue
        shown = [
            (str(name), int(k), f"{count(int(k))} ({100 * k / len(samples):.1f} %)")
            for name, k in counts.head(8).items()
        ]
        rest = int(counts.iloc[8:].sum())
        yield title, shown + ([(f"{len(counts) - 8} others", rest, count(rest))] if rest else [])


def label_rows(studies: pd.DataFrame, labels: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield for every label its states over all studies, its prevalence, and its present studies per split.

    Prevalence is present / (present + absent), None where neither occurs.
    """
    splits = _splits(studies)
    for name in labels:
        values = studies[f"label:{name}"]
        row: dict[str, Any] = {"name": name} | {state: int((values == value).sum()) for value, state in STATES}
        row["not_mentioned"] = int(values.isna().sum())
        decided = row["present"] + row["absent"]
        row["prevalence"] = row["present"] / decided if decided else None
        row["splits"] = [int((values[studies["split"] == split] == 1).sum()) for split in splits]
        yield row


def _reports(studies: pd.DataFrame, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    with_text = studies[studies["report"].fillna("").str.strip() != ""]
    for row in rng.permutation(len(with_text))[:REPORTS]:
        study = with_text.iloc[int(row)]
        yield {"id": scrub(str(study["study_id"])), "text": str(study["report"]).strip()}


def quarantine_summary(path: Path) -> list[dict[str, Any]]:
    """Return the reasons of a quarantine file, the most frequent first, each with its next step and some file names."""
    found: dict[str, dict[str, Any]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = public(json.loads(line))
            group = found.setdefault(
                str(entry.get("reason")), {"count": 0, "next": entry.get("next") or "", "names": []}
            )
            group["count"] += 1
            group["names"].append(Path(str(entry.get("path") or entry.get("study_id") or "")).name)
    ordered = sorted(found.items(), key=lambda pair: -pair[1]["count"])
    return [{"reason": reason, **group, "names": group["names"][:5]} for reason, group in ordered]
