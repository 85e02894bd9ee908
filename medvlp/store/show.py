"""`medvlp data show`: what is in a prepared store, as one self-contained HTML page.

Guarantee: the page asks the network for nothing and shows neither a machine path nor a patient identifier; the same
store and seed give the same page; boxes and masks lie where the stored pixels are, through the transform that made
them.
"""

from __future__ import annotations

import collections
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.config.preprocessing import AnyStored, StoredImageConfig, StoredVolumeConfig
from medvlp.html import data_uri, render_page, write_page
from medvlp.html.markdown import to_html
from medvlp.html.numbers import count
from medvlp.html.pictures import colour, marks_uri
from medvlp.html.private import public, scrub
from medvlp.store import manifest
from medvlp.store.show_charts import charts, eight_bits, groups
from medvlp.store.show_clips import clip_cards
from medvlp.store.show_volumes import HU_WINDOWS, stated, volume_cards
from medvlp.types import UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Int, UInt8

    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

TILE_PIXELS = 224
REPORTS = 6
WITH_MARKS = 8
CARDS_OF_IMAGES = 8
"""One volume or clip is shown for so many images of a contact sheet: it takes more room."""
STATES = ((1.0, "present"), (0.0, "absent"), (-1.0, "uncertain"))


def show(stores: Path | Sequence[Path], html: Path, *, images: int = 48, seed: int = 0) -> None:
    """Write the page of one store, or of several.

    Args:
        stores: Prepared stores.
        html: The page to write; it is replaced in one step.
        images: Number of images on a contact sheet.
        seed: Which images and reports are shown.

    Raises:
        UserError: A store cannot be opened, two have the same name, or the page cannot be written.
    """
    import medvlp
    from medvlp.errors import UserError
    from medvlp.store.array_store import Store

    paths = [Path(path) for path in (stores if isinstance(stores, Sequence) else [stores])]
    if len({path.name for path in paths}) < len(paths):
        raise UserError(
            "Two stores have the same name.", ", ".join(map(str, paths)), "Show them on pages of their own."
        )
    alone = len(paths) == 1
    pages = [_page(Store.open(path), images, seed, "" if alone else f"{path.name}-") for path in paths]
    write_page(
        Path(html),
        render_page(
            "medvlp.store",
            "show.html.j2",
            title=pages[0]["card"].title if alone else f"{len(pages)} data sets",
            made_by=f"medvlp {medvlp.__version__}",
            pages=pages,
            windows=list(dict.fromkeys(window for page in pages for window in page["windows"])),
            sections=pages[0]["sections"]
            if alone
            else [("overview", "Overview"), *((page["key"],) * 2 for page in pages)],
        ),
    )


def _page(store: Store, images: int, seed: int, prefix: str) -> dict[str, Any]:
    """Return what the template shows of one store; `prefix` begins its ids."""
    samples = store.samples().reset_index(drop=True)
    rng = np.random.default_rng(seed)
    number = images if store.kind == "image" else -(-images // CARDS_OF_IMAGES)
    rows = choose(samples, store.label_names, number, rng, marked=_marked(store, samples))
    page: dict[str, Any] = {
        "key": store.path.name,
        "p": prefix,
        "card": store.card,
        "kind": store.kind,
        "amounts": [store.meta["counts"][name] for name in ("images", "studies", "patients")]
        + [store.meta["quarantine"]["entries"]],
        "facts": list(_facts(store)),
        "preprocessing": store.config.model_dump(mode="json"),
        "tiles": list(_tiles(store, samples, rows)) if store.kind == "image" else [],
        "volumes": list(volume_cards(store, samples, rows)) if store.kind == "volume" else [],
        "clips": list(clip_cards(store, samples, rows)) if store.kind == "video" else [],
        "windows": HU_WINDOWS if store.kind == "volume" and (samples["intensity"] == "hu").any() else (),
        "charts": list(charts(store, samples, rng)),
        "groups": list(groups(store.kind, samples)),
        "structures": list(_structures(store)),
        "splits": _splits(store.studies),
        "labels": list(label_rows(store.studies, store.label_names)),
        "reports": list(_reports(store.studies, rng)),
        "quarantine": quarantine_summary(store.path / "quarantine.jsonl"),
        "body": to_html(scrub(store.card.body)),
        "seed": seed,
    }
    optional = [
        ("images", "Images", "tiles"),
        ("volumes", "Volumes", "volumes"),
        ("clips", "Clips", "clips"),
        ("distributions", "Distributions", "charts"),
        ("structures", "Masks", "structures"),
        ("labels", "Labels", "labels"),
        ("reports", "Reports", "reports"),
    ]
    sections = [(key, name) for key, name, needed in optional if page[needed]]
    page["sections"] = [*sections, ("quarantine", "Quarantine"), ("card", "Data card")]
    logger.info("page of %s: %d %s shown", store.dataset, len(rows), manifest.UNITS[store.kind])
    return page


def _facts(store: Store) -> Iterator[tuple[str, str, str]]:
    if store.kind == "none":
        yield "Studies", count(len(store.studies)), "no images"
    else:
        images, studies = count(len(store.images)), count(len(store.studies))
        yield manifest.UNITS[store.kind].capitalize(), images, f"of {studies} studies"
    known = store.studies["patient_id"][store.studies["patient_id"] != UNKNOWN_PATIENT]
    strangers = len(store.studies) - len(known)
    yield "Patients", count(known.nunique()), f"and {count(strangers)} studies of unknown ones" if strangers else ""
    declared = store.card.counts.get("images")
    if declared and declared > len(store.images) and store.kind == "image":
        yield (
            "Full data set",
            f"{count(declared)} images",
            f"this store holds {100 * len(store.images) / declared:.1f} %",
        )
    if len(store.masks):
        yield "Masks", count(len(store.masks)), f"of {count(store.masks['label'].nunique())} structures"
    if store.kind != "none":
        yield _stored_as(store.config)
    yield "Store", store.hash[:12], f"format {store.meta.get('format_version', '–')}"
    yield "Access", store.card.access, ""


def _stored_as(config: AnyStored) -> tuple[str, str, str]:
    if isinstance(config, StoredImageConfig):
        colours = ", red, green and blue" if config.colour == "keep" else ""
        cut = f", centre of {config.crop_from}" if config.crop_from else ""
        note = f"{config.dtype}, {config.aspect}, {config.interpolation}{cut}{colours}"
        return "Stored as", f"{config.size} × {config.size} px", note
    if isinstance(config, StoredVolumeConfig):
        spacing = "as in the files" if config.spacing_mm is None else " × ".join(f"{v:g}" for v in config.spacing_mm)
        unit = "" if config.spacing_mm is None else " mm"
        return "Stored as", "int16, RAS", f"voxels {spacing}{unit}, chunks of {config.chunk}³"
    note = f"uint8, {config.aspect}" + (f", every {config.every}th frame" if config.every > 1 else "")
    return "Stored as", f"{config.size} × {config.size} px", note


def _splits(studies: pd.DataFrame) -> list[str]:
    found = set(studies["split"].dropna().astype(str))
    return [name for name in ("train", "val", "test") if name in found] + sorted(found - {"train", "val", "test"})


def _marked(store: Store, samples: pd.DataFrame) -> Bool[np.ndarray, " n"]:
    """Tell which images have a mask, box or lesion."""
    own = samples["image_id"].isin(store.masks["image_id"]).to_numpy(copy=True)
    for column in ("boxes", "lesions"):
        own |= samples[column].fillna("[]").str.len().to_numpy() > 2
    return own


def choose(
    samples: pd.DataFrame,
    labels: Sequence[str],
    number: int,
    rng: np.random.Generator,
    *,
    marked: Bool[np.ndarray, " n"] | None = None,
) -> Int[np.ndarray, " n"]:
    """Return rows of `samples` to show: some that are marked, then each label in turn, the rarest first.

    Args:
        samples: Images joined with their studies.
        labels: Label names.
        number: How many rows; all of them if there are fewer.
        rng: Decides which.
        marked: Which images have boxes, masks or lesions.
    """
    order = rng.permutation(len(samples))
    first = order[:0] if marked is None else order[marked[order]]
    picked = dict.fromkeys(first[: min(WITH_MARKS, -(-number // 2))].tolist())
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


def _tiles(store: Store, samples: pd.DataFrame, rows: Int[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    from PIL import Image

    if not len(rows):
        return
    pixels = eight_bits(store.read(samples["index"].to_numpy()[rows]))
    names = sorted(set(store.masks["label"]))
    masks = dict(list(store.masks.groupby("image_id")))
    for row, image in zip(samples.iloc[rows].to_dict("records"), pixels, strict=True):
        own = masks.get(row["image_id"])
        places = [] if own is None else [names.index(name) for name in own["label"]]
        inside = [] if own is None else [_small_mask(mask) for mask in store.read_masks(own["index"].to_numpy())]
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
            "split": stated(row.get("split")) or "no split",
            "view": stated(row.get("view")) or "unknown",
            "facts": " · ".join(str(fact) for fact in facts if isinstance(fact, str)),
            "boxes": list(stored_boxes(row, store)),
            "overlay": marks_uri(inside, places),
            "structures": [(names[place], colour(place)) for place in sorted(set(places))],
        }


def _small_mask(mask: UInt8[np.ndarray, "s s"]) -> Bool[np.ndarray, "h w"]:
    from PIL import Image

    small = Image.fromarray(mask * 255)
    small.thumbnail((TILE_PIXELS, TILE_PIXELS), Image.Resampling.BOX)
    return np.asarray(small) > 127


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


def _structures(store: Store) -> Iterator[dict[str, Any]]:
    """Yield for every structure on how many images it was marked and how large it is, the most frequent first."""
    amount = "voxels" if store.kind == "volume" else "pixels"
    found: list[dict[str, Any]] = []
    for place, (name, own) in enumerate(store.masks.groupby("label", sort=True)):
        sizes = own[amount].to_numpy(dtype=float)
        there = own[sizes > 0]
        median = float(np.median(sizes[sizes > 0])) if len(there) else None
        shown = {"name": name, "colour": colour(place), "images": there["image_id"].nunique(), "median": median}
        found.append(shown | {"looked_at": own["image_id"].nunique()})
    yield from sorted(found, key=lambda row: -row["images"])


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
