"""Training, validation and test patients of a store that has no such splits.

Guarantee: splits of the store are never changed: only what is missing is set aside, patient by patient, and said. Who
is set aside depends on the patients' ids, their labels and the seed alone; every label is shared out evenly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.tasks._experts.tuned import TunedExpert
from medvlp.types import UNKNOWN_PATIENT

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from medvlp.config.finetune import FinetuneDataConfig
    from medvlp.tasks._experts.base import Expert


class SplitStore(Store):
    """A store whose samples have the splits of `complete`; `split_rule` says what was set aside, and `warnings` why."""

    splits: pd.Series | None = None
    split_rule = "splits of the store"
    warnings: tuple[str, ...] = ()

    def samples(self) -> pd.DataFrame:
        """Return one row per image; see `Store.samples`."""
        frame = super().samples()
        return frame if self.splits is None else frame.assign(split=self.splits)

    def complete(self, config: FinetuneDataConfig) -> None:
        """Set patients aside for the splits that the store lacks.

        Raises:
            UserError: There are too few patients.
        """
        frame = super().samples()
        known = set(frame["split"].dropna())
        missing = [name for name in ("val", "test") if name not in known]
        if not missing:
            return
        source = frame["split"] == "train" if known else frame["split"].isna()
        unknown = frame["patient_id"].isna() | (frame["patient_id"] == UNKNOWN_PATIENT)
        people = frame["patient_id"].where(~unknown, "study:" + frame["study_id"].astype(str))[source]
        shares = {"val": config.val_fraction, "test": config.test_fraction}
        order = _evenly(people, _positive(frame, config)[source.to_numpy()], config.split_seed)
        sizes = {name: max(1, round(shares[name] * len(order))) for name in missing}
        if sum(sizes.values()) >= len(order):
            raise UserError(
                f"{len(order)} patients are too few to set some aside for {' and '.join(missing)}.",
                self.path,
                "Prepare more patients.",
            )
        splits = frame["split"].mask(source, "train")
        start = 0
        for name in reversed(missing):  # test first: it does not move with val_fraction
            chosen = set(order[start : start + sizes[name]])
            splits = splits.mask(source & people.isin(chosen).reindex(frame.index, fill_value=False), name)
            start += sizes[name]
        self.splits = splits
        told = " and ".join(f"{sizes[name]} for {name}" for name in missing)
        self.split_rule = f"of {len(order)} patients {told} set aside by a hash of their ids, seed {config.split_seed}"
        if unknown[source].any():
            self.warnings = (
                "The store does not say whose some images are: images of one patient may be on both sides of a split.",
            )


def shared_pixels(store: Store, images: Mapping[str, Int[np.ndarray, " m"]]) -> list[str]:
    """Return a note where test images are, pixel by pixel, among those of training or validation.

    Args:
        store: The store.
        images: Split -> rows of the images table.
    """
    pixels = store.images["pixels_sha256"].to_numpy()
    known = set(pixels[images["train"]]) | set(pixels[images["val"]])
    shared = sum(digest in known for digest in pixels[images["test"]].tolist())
    if not shared:
        return []
    return [
        f"{shared} test images have the same pixels as images of training or validation: the scores are too good. "
        "`medvlp data audit` names them."
    ]


def learnt_by_experts(experts: Sequence[Expert], store: SplitStore) -> list[str]:
    """Return a note where an expert may have learnt from what is tested: it was trained on the same data set.

    Splits that the store itself has are the same for all who learn from it; patients that are set aside are not.
    """
    shared = [
        number
        for number, expert in enumerate(experts, start=1)
        if isinstance(expert, TunedExpert)
        and expert.model.record.get("dataset") == store.dataset
        and not (
            expert.model.record.get("store_hash") == store.hash
            and expert.model.record.get("split_rule") == store.split_rule == SplitStore.split_rule
        )
    ]
    if not shared:
        return []
    return [
        f"Expert {', '.join(map(str, shared))} was trained on the same data set and may have learnt from its test "
        "patients: the scores may be too good. Use a store that has splits of its own, for both."
    ]


def _positive(frame: pd.DataFrame, config: FinetuneDataConfig) -> Bool[np.ndarray, "n k"]:
    """Return which labels of each image are positive: those asked for, or all."""
    asked = [f"label:{label.positive}" for label in config.labels]
    columns = [name for name in asked or map(str, frame.columns) if name.startswith("label:") and name in frame]
    return (frame[columns] == 1).to_numpy()


def _evenly(people: pd.Series, positive: Bool[np.ndarray, "n k"], seed: int) -> list[str]:
    """Return the patients in an order of which every beginning has about the same share of every label.

    Patients of a stratum (their rarest label) are ordered by a hash and spread evenly over the whole.
    """
    names, of = np.unique(people.to_numpy(dtype=str), return_inverse=True)
    labels = np.zeros((len(names), positive.shape[1]), dtype=bool)
    np.logical_or.at(labels, of, positive)
    strata = np.full(len(names), -1)
    for k in np.argsort(-labels.sum(axis=0), kind="stable"):
        strata[labels[:, k]] = k
    digests = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in names.tolist()]
    shuffled = np.array(sorted(range(len(names)), key=digests.__getitem__), dtype=np.intp)
    place: Float[np.ndarray, " p"] = np.empty(len(names))
    for stratum in np.unique(strata):
        members = shuffled[strata[shuffled] == stratum]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return names[shuffled[np.argsort(place[shuffled], kind="stable")]].tolist()
