"""Grounding: where in the image does an encoder see a finding that is there?

Guarantee: no box or mask reaches an encoder; a heat map is asked for by the label's prompts alone. Kept are the heat
maps on the encoder's own grid and the regions on the stored square, one row per image and finding with a region in it.
Findings that the stored square does not show (cropped off) are left out. Where the images of all splits are asked, the
location prior of an image knows the regions of other patients only.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.io.masks import to_stored_region
from medvlp.tasks._regions import masks_of, regions_of, runs_of
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
        return masks_of(self.runs[rows], self.side)

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

    code_version: ClassVar[int] = 3
    scoring: ClassVar[str] = "grounding"
    protocols: ClassVar[frozenset[str]] = frozenset({ZERO_SHOT})
    needs: ClassVar[str] = HEAT_MAPS
    asks_where: ClassVar[bool] = True

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images with a region of a finding; a label is 1 where the image has one, else NaN.

        Every split is all images where the task asks all.

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
        everything = self.config.grounding.images == "all"
        splits = frame.assign(split="test") if everything else frame
        found = by_split(store, splits, self.config, [label.name for label in self.config.labels], labels)
        if everything:
            found = dict.fromkeys(found, found["test"])
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
        """Return a head that asks the encoder; a subject without one gets the mean region of other training images."""
        prompts = [list(label.prompts["positive"]) for label in self.config.labels]
        store = subject.store
        places = store.images["index"].to_numpy()
        if subject.load_encoder is None:
            prior = self._location_prior(store, train)
            return Head(lambda samples: self._kept(store, samples, prior))
        encoder = encoder_of(subject, protocol)
        texts = [prompt for group in prompts for prompt in group]
        ends = np.cumsum([len(group) for group in prompts])[:-1]

        def maps(samples: Samples) -> np.ndarray:
            found = encoder.token_heat_maps(store.read(places[samples.rows]), texts).double().cpu().numpy()
            return np.stack([group.mean(axis=1) for group in np.split(found, ends, axis=1)], axis=1)

        return Head(lambda samples: self._kept(store, samples, maps))

    def _kept(self, store: Store, samples: Samples, maps: Callable[[Samples], np.ndarray]) -> HeatMaps:
        """Ask for maps `[b k g w]` of samples; keep those with a region."""
        at, of, kept, runs = [], [], [], []
        for start in range(0, len(samples), IMAGES_AT_ONCE):
            chunk = samples.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(samples))))
            found = maps(chunk)
            for position, k, region in self._regions(store, chunk):
                at.append(start + position)
                of.append(samples.label_names[k])
                kept.append(found[position, k])
                runs.append(runs_of(region))
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

    def _location_prior(self, store: Store, train: Samples) -> Callable[[Samples], Float[np.ndarray, "b k g g"]]:
        """Return a function that gives the mean, for each label, of the training regions of other patients.

        They are reduced by area; even where there is none.
        """
        import cv2

        grid = min(PRIOR_GRID, store.size)
        empty = np.zeros((len(train.label_names), grid, grid))
        counts = Counter(train.patient_ids)
        sums: defaultdict[str, np.ndarray] = defaultdict(empty.copy)
        for start in range(0, len(train), IMAGES_AT_ONCE):
            chunk = train.take(np.arange(start, min(start + IMAGES_AT_ONCE, len(train))))
            for position, k, region in self._regions(store, chunk):
                small = cv2.resize(region.astype(np.float64), (grid, grid), interpolation=cv2.INTER_AREA)
                sums[chunk.patient_ids[position]][k] += small
        total = np.sum([empty, *sums.values()], axis=0)

        def of_others(patient: str) -> Float[np.ndarray, "k g g"]:
            return (total - sums.get(patient, empty)) / max(len(train) - counts[patient], 1)

        return lambda samples: np.stack([of_others(patient) for patient in samples.patient_ids])


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
