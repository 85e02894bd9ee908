"""Grounding: where in the image does an encoder see a finding that is there?

Guarantee: no box or mask reaches an encoder; a heat map is asked for by the label's prompts alone. Kept are the heat
maps on the encoder's own grid and the regions on the stored square, one row per image and finding with a region in it.
Findings that the stored square does not show (cropped off) are left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.io.masks import to_stored_region
from medvlp.tasks._samples import by_split
from medvlp.tasks.base import HEAT_MAPS, ZERO_SHOT, Head, Samples, Subject, Task, encoder_of

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from medvlp.config.task import LabelConfig
    from medvlp.store.array_store import Store

IMAGES_AT_ONCE = 64
PRIOR_GRID = 32
"""Side of the heat maps of the location prior."""


@dataclass(frozen=True)
class HeatMaps:
    """Heat maps and regions, one row per image and finding.

    Args:
        sample_ids: Image of each row.
        patient_ids: Patient of each row.
        label_names: All findings that were asked for.
        findings: Finding of each row.
        maps: Evidence on the encoder's grid, larger is more; it covers the stored square evenly.
        runs: The region of each row on the stored square: start and length of each run, in row-major order.
        side: Of the stored square, in pixels.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    findings: Sequence[str]
    maps: Float[np.ndarray, "m g w"]
    runs: Sequence[np.ndarray]
    side: int

    def regions(self, rows: slice) -> Bool[np.ndarray, "m s s"]:
        """Return the regions of some rows as masks."""
        chosen = self.runs[rows]
        masks = np.zeros((len(chosen), self.side * self.side), dtype=bool)
        for mask, runs in zip(masks, chosen, strict=True):
            for start, length in runs.reshape(-1, 2):
                mask[start : start + length] = True
        return masks.reshape(-1, self.side, self.side)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image and finding; `map` and `region` are lists of `rows` × `columns` and of runs."""
        import pandas as pd

        height, width = self.maps.shape[1:]
        return pd.DataFrame(
            {
                "sample_id": list(self.sample_ids),
                "patient_id": list(self.patient_ids),
                "finding": pd.Series(list(self.findings), dtype=pd.CategoricalDtype(list(self.label_names))),
                "map": [one.reshape(-1).astype(np.float32) for one in self.maps],
                "region": [runs.reshape(-1).astype(np.int32) for runs in self.runs],
                "rows": height,
                "columns": width,
                "side": self.side,
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> HeatMaps:
        """Inverse of `to_frame`."""
        height, width, side = (int(frame[name].iloc[0]) if len(frame) else 1 for name in ("rows", "columns", "side"))
        return cls(
            frame["sample_id"].tolist(),
            frame["patient_id"].tolist(),
            frame["finding"].cat.categories.tolist(),
            frame["finding"].tolist(),
            np.array(frame["map"].tolist(), dtype=np.float64).reshape(len(frame), height, width),
            [np.asarray(runs, dtype=np.int64) for runs in frame["region"]],
            side,
        )


class Grounding(Task):
    """A heat map for every finding that has boxes or masks in an image."""

    code_version: ClassVar[int] = 2
    scoring: ClassVar[str] = "grounding"
    protocols: ClassVar[frozenset[str]] = frozenset({ZERO_SHOT})
    needs: ClassVar[str] = HEAT_MAPS

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images with a region of a finding; a label is 1 where the image has one, else NaN.

        Raises:
            UserError: Validation or test images have no such region, or a label has no prompts.
        """
        for label in self.config.labels:
            if not label.prompts.get("positive"):
                raise UserError(
                    f"The label '{label.name}' has no prompts.",
                    f"task {self.config.name}, labels",
                    "Give `prompts: {positive: [...]}`: what is looked for in the image.",
                )
        frame = store.samples()
        shown = self._shown(store, frame)
        labels = np.array(
            [[1.0 if shown(image, label) else np.nan for label in self.config.labels] for image in frame["image_id"]]
        ).reshape(len(frame), len(self.config.labels))
        found = by_split(store, frame, self.config, [label.name for label in self.config.labels], labels)
        for split in ("val", "test"):
            if not len(found[split]):
                raise UserError(
                    f"The split '{split}' has no image with {self.config.grounding.target} of the task's labels.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Check `regions` and `views` of the task, and what the store holds, with `medvlp data show`.",
                )
        return found

    def _shown(self, store: Store, frame: pd.DataFrame) -> Callable[[str, LabelConfig], bool]:
        """Return a function that tells whether an image has a region of a label."""
        if self.config.grounding.target == "masks":
            known = store.masks[store.masks["pixels"] > 0]
            names = set(zip(known["image_id"], known["label"], strict=True))
        else:
            boxes = (box for text in frame["boxes"].drop_duplicates() for box in json.loads(text or "[]"))
            names = {(box["image_id"], box["label"]) for box in boxes}
        return lambda image, label: any((image, name) in names for name in regions_of(label))

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return all: nothing is trained."""
        return train

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        return {"code_version": self.code_version, "protocol": protocol}

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that asks the encoder; a subject without one gets the mean region of the training images."""
        prompts = [list(label.prompts["positive"]) for label in self.config.labels]
        store = subject.store
        places = store.images["index"].to_numpy()
        if subject.load_encoder is None:
            prior = self._location_prior(store, train)
            return Head(lambda samples: self._kept(store, samples, lambda _: prior[None]))
        encoder = encoder_of(subject, protocol)
        texts = [prompt for group in prompts for prompt in group]
        ends = np.cumsum([len(group) for group in prompts])[:-1]

        def maps(rows: np.ndarray) -> np.ndarray:
            found = encoder.token_heat_maps(store.read(places[rows]), texts).double().cpu().numpy()
            return np.stack([group.mean(axis=1) for group in np.split(found, ends, axis=1)], axis=1)

        return Head(lambda samples: self._kept(store, samples, maps))

    def _kept(self, store: Store, samples: Samples, maps: Callable[[np.ndarray], np.ndarray]) -> HeatMaps:
        """Ask for maps `[b k g w]` (or `[1 k g w]` for all) of rows of the images table; keep those with a region."""
        at, of, kept, runs = [], [], [], []
        for start in range(0, len(samples), IMAGES_AT_ONCE):
            chunk = samples.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(samples))))
            asked = maps(chunk.rows)
            found = np.broadcast_to(asked, (len(chunk), *asked.shape[1:]))
            for position, k, region in self._regions(store, chunk):
                at.append(start + position)
                of.append(samples.label_names[k])
                kept.append(found[position, k])
                runs.append(_runs(region))
        return HeatMaps(
            [samples.sample_ids[i] for i in at],
            [samples.patient_ids[i] for i in at],
            samples.label_names,
            of,
            np.stack(kept) if kept else np.zeros((0, 1, 1)),
            runs,
            store.size,
        )

    def _regions(self, store: Store, samples: Samples) -> Iterator[tuple[int, int, Bool[np.ndarray, "s s"]]]:
        """Yield (position, label, region on the stored square) where the square shows a region."""
        images = store.images.iloc[samples.rows]
        reader = _masks if self.config.grounding.target == "masks" else _boxes
        of_image = reader(store, images)
        for position, image in enumerate(samples.sample_ids):
            for k, label in enumerate(self.config.labels):
                parts = [mask for name, mask in of_image.get(image, ()) if name in regions_of(label)]
                if parts and (region := np.any(parts, axis=0)).any():
                    yield position, k, region

    def _location_prior(self, store: Store, train: Samples) -> Float[np.ndarray, "k g g"]:
        """Return for each label the mean of the training regions, reduced by area; even where there is none."""
        import cv2

        sums = np.zeros((len(train.label_names), store.size, store.size))
        for start in range(0, len(train), IMAGES_AT_ONCE):
            chunk = train.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(train))))
            for _, k, region in self._regions(store, chunk):
                sums[k] += region
        grid = min(PRIOR_GRID, store.size)
        small = [cv2.resize(one, (grid, grid), interpolation=cv2.INTER_AREA) for one in sums]
        return np.stack(small) / max(len(train), 1)


def regions_of(label: LabelConfig) -> tuple[str, ...]:
    """Return the names that a label's boxes or masks have in the data set."""
    return label.regions or (label.positive,)


def _boxes(store: Store, images: pd.DataFrame) -> dict[str, list[tuple[str, np.ndarray]]]:
    boxes = dict(zip(store.studies["study_id"], store.studies["boxes"], strict=True))
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for image in images.to_dict("records"):
        for box in json.loads(boxes[image["study_id"]] or "[]"):
            if box["image_id"] == image["image_id"]:
                region = to_stored_region(box, int(image["height"]), int(image["width"]), store.image_config)
                found.setdefault(image["image_id"], []).append((box["label"], region))
    return found


def _masks(store: Store, images: pd.DataFrame) -> dict[str, list[tuple[str, np.ndarray]]]:
    table = store.masks[store.masks["image_id"].isin(images["image_id"])]
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    pixels = store.read_masks(table["index"].to_numpy())
    for image, label, mask in zip(table["image_id"], table["label"], pixels, strict=True):
        found.setdefault(str(image), []).append((str(label), mask > 0))
    return found


def _runs(mask: Bool[np.ndarray, "s s"]) -> np.ndarray:
    """Return start and length of each run of a mask, in row-major order."""
    edges = np.flatnonzero(np.diff(mask.reshape(-1).astype(np.int8), prepend=0, append=0))
    runs = edges.reshape(-1, 2)
    return np.stack([runs[:, 0], runs[:, 1] - runs[:, 0]], axis=1).reshape(-1)
