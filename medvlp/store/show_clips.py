"""Clips on the page of a store: a strip of frames, evenly spaced in time, with masks where a shown frame has one.

Guarantee: frames with masks are among those shown, as far as there is room; each is named by its number in the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.html import data_uri
from medvlp.html.pictures import colour, marks_uri
from medvlp.html.private import scrub
from medvlp.store.show_volumes import stated

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Int

    from medvlp.store.array_store import Store

FRAMES = 8


def clip_cards(store: Store, samples: pd.DataFrame, rows: Int[np.ndarray, " n"]) -> Iterator[dict[str, Any]]:
    """Yield what the template shows of each clip.

    Args:
        store: Store of clips.
        samples: Clips joined with their studies.
        rows: Rows of `samples` to show.
    """
    names = sorted(set(store.masks["label"]))
    for row in samples.iloc[rows].to_dict("records"):
        clip = store.read_clip(int(row["index"]))
        own = store.masks[store.masks["image_id"] == row["image_id"]]
        frames = chosen_frames(len(clip.array), sorted({int(frame) for frame in own["frame"].dropna()}))
        facts = [f"{len(clip.array)} frames"]
        if clip.fps is not None:
            facts.append(f"{clip.fps:.3g} a second, {len(clip.array) / clip.fps:.1f} s")
        facts.append(f"{row['height']} × {row['width']} px in the file")
        yield {
            "id": scrub(str(row["image_id"])),
            "labels": [name for name in store.label_names if row.get(f"label:{name}") == 1],
            "split": stated(row.get("split")) or "no split",
            "facts": " · ".join(facts),
            "structures": {
                "named": [(name, colour(names.index(name))) for name in sorted(set(own["label"]))],
                "others": 0,
            },
            "strip": [_frame(store, own, names, clip.array[frame], frame) for frame in frames],
        }


def chosen_frames(count: int, marked: list[int]) -> list[int]:
    """Return the frames to show: evenly spaced, each moved to a marked frame that is nearest to it."""
    even = np.linspace(0, count - 1, min(FRAMES, count)).round().astype(int).tolist()
    for frame in marked:
        free = [place for place, other in enumerate(even) if other not in marked]
        if frame not in even and free:
            even[min(free, key=lambda place: abs(even[place] - frame))] = frame
    return sorted(even)


def _frame(store: Store, masks: pd.DataFrame, names: list[str], image: np.ndarray, frame: int) -> dict[str, Any]:
    here = masks[masks["frame"] == frame]
    inside = store.read_masks(here["index"].to_numpy()) > 0
    return {
        "name": "Frame",
        "width": image.shape[1],
        "height": image.shape[0],
        "images": [("frame", data_uri(image))],
        "overlay": marks_uri(list(inside), [names.index(name) for name in here["label"]]),
        "circles": [],
        "letters": None,
        "about": str(frame + 1),
    }
