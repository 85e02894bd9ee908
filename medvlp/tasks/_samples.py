"""From a prepared store to the samples of a classification task, and to subsets of its training labels.

Guarantee: labels are collapsed only by the policies that the task names. A subset depends on sample ids, labels,
fraction and draw alone; of one draw, the smaller fraction is contained in the larger one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from medvlp.errors import UserError, nearest
from medvlp.tasks.base import SPLITS, Samples
from medvlp.types import UNCERTAIN, UNKNOWN_PATIENT

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store

SUBSET_SEED = 20_171


def collapse(values: Float[np.ndarray, " n"], config: TaskConfig) -> Float[np.ndarray, " n"]:
    """Return labels as 1, 0 or NaN by the task's policies for uncertain (-1) and not mentioned (NaN) ones."""
    values = np.asarray(values, dtype=np.float64).copy()
    missing = np.isnan(values)
    values[values == UNCERTAIN] = {"ignore": np.nan, "positive": 1.0, "negative": 0.0}[config.uncertain]
    if config.not_mentioned == "negative":
        values[missing] = 0.0
    return values


def label_matrix(frame: pd.DataFrame, config: TaskConfig) -> Float[np.ndarray, "n k"]:
    """Return the labels of a task, one column per question.

    With a `negative` column a sample is negative if that column is 1; samples that are both or neither are NaN.
    """
    columns = []
    for label in config.labels:
        if label.below is not None:
            columns.append(_below(frame, label.positive, label.below, config))
            continue
        positive = collapse(_column(frame, label.positive, config), config)
        if label.negative is None:
            columns.append(positive)
            continue
        negative = collapse(_column(frame, label.negative, config), config)
        column = np.full(len(frame), np.nan)
        column[(positive == 1) & (negative != 1)] = 1.0
        column[(negative == 1) & (positive != 1)] = 0.0
        columns.append(column)
    return np.stack(columns, axis=1)


def _below(frame: pd.DataFrame, name: str, bound: float, config: TaskConfig) -> Float[np.ndarray, " n"]:
    """Return 1 where a measurement is below a bound, 0 where it is not, NaN where it is not given."""
    found = [json.loads(row) if isinstance(row, str) else {} for row in frame["values"]]
    known = sorted({key for values in found for key in values})
    if name not in known:
        raise UserError(
            f"The store has no measurement '{name}'.{nearest(name, known)}",
            f"task {config.name}, data set {config.dataset}",
            f"Use one of: {', '.join(known) or '(it has none)'}.",
        )
    given = np.array([np.nan if values.get(name) is None else values[name] for values in found], dtype=np.float64)
    return np.where(np.isnan(given), np.nan, given < bound)


def _column(frame: pd.DataFrame, name: str, config: TaskConfig) -> np.ndarray:
    key = f"label:{name}"
    if key not in frame:
        known = [column.removeprefix("label:") for column in map(str, frame.columns) if column.startswith("label:")]
        raise UserError(
            f"The store has no label '{name}'.{nearest(name, known)}",
            f"task {config.name}, data set {config.dataset}",
            f"Use one of: {', '.join(known)}.",
        )
    return frame[key].to_numpy(dtype=np.float64)


def select(store: Store, config: TaskConfig) -> dict[str, Samples]:
    """Return the samples of each split that have at least one known label.

    Raises:
        UserError: The store was prepared otherwise than the task asks for, lacks a label, or a split has no samples.
    """
    if config.store_options or config.label_subsets == "lists":
        _check_prepared(store, config)
    frame = store.samples()
    found = by_split(store, frame, config, [label.name for label in config.labels], label_matrix(frame, config))
    for split, samples in found.items():
        check_split(samples, split, config)
    return found


def _check_prepared(store: Store, config: TaskConfig) -> None:
    options, where = store.meta["made_from"]["settings"].get("options", {}), f"task {config.name}, {store.path}"
    for name, value in config.store_options.items():
        if str(options.get(name)) != value:
            raise UserError(
                f"The store was prepared with options.{name}={options.get(name)}; the task asks for {value}.",
                where,
                f"Run `medvlp data prepare {config.dataset} ... options.{name}={value}`, and give that store.",
            )
    if config.label_subsets == "lists" and "split lists" not in store.meta["source"]:
        raise UserError(
            "The store was prepared without split lists; the task asks for a benchmark's own split.",
            where,
            f"Run `medvlp data prepare {config.dataset} ... split_lists=FOLDER`, and give that store.",
        )


def by_split(
    store: Store,
    frame: pd.DataFrame,
    config: TaskConfig,
    names: Sequence[str],
    labels: Float[np.ndarray, "n k"],
    sample: str = "image_id",
) -> dict[str, Samples]:
    """Return the samples of each split with at least one known label and a view of the task, ordered by their ids.

    Args:
        store: The store.
        frame: Its `samples()`, or rows with the columns of these, an image several times.
        config: The task.
        names: Names of the labels.
        labels: Of every row of `frame`.
        sample: Column with the ids of the samples.
    """
    keep = ~np.isnan(labels).all(axis=1)
    if config.views:
        keep &= frame["view"].isin(config.views).to_numpy()
    position = {image: i for i, image in enumerate(store.images["image_id"])}
    rows = np.array([position[image] for image in frame["image_id"]], dtype=np.int64)
    # Samples of unknown patients are no cluster: their study stands for the patient.
    unknown = frame["patient_id"].isna() | (frame["patient_id"] == UNKNOWN_PATIENT)
    patients = frame["patient_id"].astype(object).where(~unknown, "study:" + frame["study_id"].astype(str)).to_numpy()
    ids, splits = frame[sample].astype(str).to_numpy(), frame["split"].to_numpy()
    subsets = [json.loads(text) if isinstance(text, str) else [] for text in frame["subsets"]]
    found = {}
    for split in SPLITS:
        chosen = np.flatnonzero(keep & (splits == split))
        chosen = chosen[np.argsort(ids[chosen], kind="stable")]
        found[split] = Samples(
            rows[chosen],
            ids[chosen].tolist(),
            [str(patient) for patient in patients[chosen]],
            list(names),
            labels[chosen],
            [subsets[i] for i in chosen],
        )
    return found


def check_split(samples: Samples, split: str, config: TaskConfig) -> None:
    """Refuse a split without samples, or without any label that has both classes."""
    where = f"task {config.name}, data set {config.dataset}, split {split}"
    if not len(samples):
        raise UserError(
            f"The split '{split}' has no sample with a known label.",
            where,
            "Check the splits and label counts with `medvlp data audit`, and `views` and the label rules of the task.",
        )
    both = (samples.labels == 1).any(axis=0) & (samples.labels == 0).any(axis=0)
    if not both.any():
        raise UserError(
            f"No label has both positives and negatives in the split '{split}' ({len(samples)} samples).",
            where,
            "Prepare more studies, another split, or change the label rules of the task.",
        )


def _strata(labels: Float[np.ndarray, "n k"]) -> np.ndarray:
    """Return the rarest positive label of each sample, -1 where there is none."""
    frequency = (labels == 1).sum(axis=0)
    strata = np.full(len(labels), -1)
    for k in np.argsort(-frequency, kind="stable"):
        strata[labels[:, k] == 1] = k
    return strata


def label_subset(train: Samples, fraction: float, draw: int, config: TaskConfig) -> Samples:
    """Return a share of the training samples, drawn or by the split lists of the store, as the task says.

    Raises:
        UserError: The store has no list of this share, or a second draw of a list is asked for.
    """
    if config.label_subsets == "drawn" or fraction >= 1:
        return fraction_subset(train, fraction, draw)
    name = f"train_{100 * fraction:g}"
    chosen = np.array([i for i, names in enumerate(train.subsets) if name in names], dtype=np.int64)
    where = f"task {config.name}, data set {config.dataset}"
    if not len(chosen):
        known = sorted({name for names in train.subsets for name in names})
        raise UserError(
            f"No training image of the store is in a list '{name}' (there are: {', '.join(known) or 'none'}).",
            where,
            "Prepare it with split_lists=FOLDER, which holds that list, or set label_subsets: drawn.",
        )
    if draw:
        raise UserError("A list of labels has one draw.", where, "Set draws: 1, or label_subsets: drawn.")
    return train.take(chosen)


def fraction_subset(train: Samples, fraction: float, draw: int) -> Samples:
    """Return a stratified share of the training samples (rounded, at least two).

    The samples of each stratum (their rarest positive label) are shuffled and spread evenly over one order, whose
    beginning is the subset: every stratum's first sample comes first, so that each class is present where the size
    allows.
    """
    if fraction >= 1:
        return train
    rng = np.random.default_rng([SUBSET_SEED, draw])
    shuffled = rng.permutation(len(train))
    strata = _strata(train.labels)[shuffled]
    place = np.empty(len(train))
    for stratum in np.unique(strata):
        members = strata == stratum
        place[members] = np.arange(members.sum()) / members.sum()
    order = shuffled[np.argsort(place, kind="stable")]
    size = max(2, round(fraction * len(train)))
    return train.take(np.sort(order[:size]))


def few_shot_subset(train: Samples, shots: int, draw: int) -> Samples:
    """Return `shots` positives and negatives per label (all, where there are fewer); other labels become NaN."""
    rng = np.random.default_rng([SUBSET_SEED, draw])
    order = rng.permutation(len(train))
    labels = np.full_like(train.labels, np.nan)
    for k in range(labels.shape[1]):
        for value in (0.0, 1.0):
            chosen = order[train.labels[order, k] == value][:shots]
            labels[chosen, k] = value
    kept = np.flatnonzero(~np.isnan(labels).all(axis=1))
    return replace(train, labels=labels).take(kept)
