"""Grounding in volumes: where does an encoder see what a text says, and is it there?

Guarantee: asked are the volumes whose label map shows the structure; kept are the map on an even grid of cells over the
whole volume and the cells that the structure touches, so that encoders with other inputs and tokens are compared
on the same cells. What an encoder has not seen is NaN, and never its answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from medvlp.data.volume_input import grid_of, stored_input_voxels
from medvlp.errors import UserError
from medvlp.tasks._samples import by_split
from medvlp.tasks._volume_regions import VolumeRegions
from medvlp.tasks.base import HEAT_MAPS, ZERO_SHOT, Head, Samples, Subject, Task, encoder_of

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Bool, Float

    from medvlp.store.array_store import Store
    from medvlp.zoo.volume_encoder import VolumeEncoder

CELLS = (16, 16, 16)
"""Cells along d, h, w."""


@dataclass(frozen=True)
class VolumeHeatMaps:
    """Heat maps and structures on an even grid of cells over a volume, one row per volume and finding.

    Args:
        sample_ids: Volume of each row.
        patient_ids: Patient of each row.
        label_names: All findings that were asked for.
        findings: Finding of each row.
        maps: Evidence, larger is more; NaN where the encoder does not see.
        inside: Whether a cell holds a voxel of the structure.
        share: Part of the volume that the structure takes.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    findings: Sequence[str]
    maps: Float[np.ndarray, "m d h w"]
    inside: Bool[np.ndarray, "m d h w"]
    share: Float[np.ndarray, " m"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per volume and finding; `map` and `inside` are lists in row-major order."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sample_id": list(self.sample_ids),
                "patient_id": list(self.patient_ids),
                "finding": pd.Series(list(self.findings), dtype=pd.CategoricalDtype(list(self.label_names))),
                "map": [one.reshape(-1).astype(np.float32) for one in self.maps],
                "inside": [np.flatnonzero(one).astype(np.int32) for one in self.inside],
                "share": self.share,
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> VolumeHeatMaps:
        """Inverse of `to_frame`."""
        inside = np.zeros((len(frame), int(np.prod(CELLS))), dtype=bool)
        for line, cells in zip(inside, frame["inside"], strict=True):
            line[np.asarray(cells, dtype=np.int64)] = True
        maps = np.array(frame["map"].tolist(), dtype=np.float64).reshape(len(frame), *CELLS)
        return cls(
            frame["sample_id"].tolist(),
            frame["patient_id"].tolist(),
            frame["finding"].cat.categories.tolist(),
            frame["finding"].tolist(),
            maps,
            inside.reshape(-1, *CELLS),
            frame["share"].to_numpy(dtype=np.float64),
        )


class VolumeGrounding(Task):
    """A heat map for every finding whose structure a volume shows."""

    code_version: ClassVar[int] = 2
    scoring: ClassVar[str] = "volume_grounding"
    protocols: ClassVar[frozenset[str]] = frozenset({ZERO_SHOT})
    needs: ClassVar[str] = HEAT_MAPS

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the volumes with a structure of a finding; a label is 1 where there is one, else NaN.

        Raises:
            UserError: The store has no such structures, or none in the test split.
        """
        frame = store.samples()
        marked = VolumeRegions(store, self.config.labels, self.config.name).marked()
        marked[marked != 1] = np.nan
        position = {image: row for row, image in enumerate(store.images["image_id"])}
        labels = marked[[position[image] for image in frame["image_id"]]]
        found = by_split(store, frame, self.config, [label.name for label in self.config.labels], labels)
        if not len(found["test"]):
            raise UserError(
                "No volume of the test split shows one of the task's structures.",
                f"task {self.config.name}, data set {self.config.dataset}",
                "Check `regions` of the task, and what the store holds, with `medvlp data show`.",
            )
        return found

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return all: nothing is trained."""
        return train

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        return {"code_version": self.code_version, "protocol": protocol, "cells": list(CELLS)}

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that draws heat maps; nothing is trained.

        Raises:
            UserError: The subject is no encoder of volumes, or has no heat maps.
        """
        from medvlp.zoo.volume_encoder import VolumeEncoder

        encoder = encoder_of(subject, protocol)
        encoder.check_store(subject.store)
        regions = VolumeRegions(subject.store, self.config.labels, self.config.name)
        texts = [_text(label) for label in self.config.labels]
        own = cast(VolumeEncoder, encoder)
        return Head(lambda samples: _kept(own, subject.store, regions, texts, samples))


def _text(label: Any) -> str:
    given = label.prompts.get("positive", ())
    return str(given[0] if given else label.name)


def _kept(
    encoder: VolumeEncoder, store: Store, regions: VolumeRegions, texts: Sequence[str], samples: Samples
) -> VolumeHeatMaps:
    from medvlp.data.volume_views import cut, stretched

    at: list[tuple[int, int]] = []
    maps, inside, share = [], [], []
    places = store.images["index"].to_numpy()
    for place, row in enumerate(samples.rows.tolist()):
        asked = np.flatnonzero(samples.labels[place] == 1).tolist()
        index = int(places[row])
        shape = store.shape(index)
        taken = encoder.preprocessing.input
        grid = grid_of(shape, store.spacing_mm(index), taken, samples.sample_ids[place])
        voxels = stored_input_voxels(store, row, taken)
        tokens = encoder.token_heat_maps(voxels[None], [texts[k] for k in asked])[0]
        classes, cells = regions.classes(row), stretched(shape, CELLS)
        for k, own in zip(asked, tokens.double().cpu().numpy(), strict=True):
            # Where the cells of the volume lie in the index of the tokens.
            covered = grid.resized(own.shape).inverse(shape).view(cells)
            maps.append(cut(own, covered, np.nan))
            inside.append(cut((classes == k + 1).astype(np.float32), cells, 0) > 0)
            share.append(float((classes == k + 1).mean()))
            at.append((place, k))
    return VolumeHeatMaps(
        [samples.sample_ids[i] for i, _ in at],
        [samples.patient_ids[i] for i, _ in at],
        samples.label_names,
        [samples.label_names[k] for _, k in at],
        np.array(maps, dtype=np.float64).reshape(-1, *CELLS),
        np.array(inside, dtype=bool).reshape(-1, *CELLS),
        np.array(share, dtype=np.float64),
    )
