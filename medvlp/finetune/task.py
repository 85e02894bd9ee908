"""From the configuration of a fine-tuning to the benchmark's own task.

Guarantee: a label that was asked for is never left out; of all labels of a store those are left out that the training
images cannot teach, and they are named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from medvlp.config.task import LabelConfig, TaskConfig
from medvlp.errors import UserError
from medvlp.finetune.notes import Note
from medvlp.store.manifest import UNITS
from medvlp.tasks import TASKS
from medvlp.tasks._samples import label_matrix

if TYPE_CHECKING:
    from medvlp.config.finetune import FinetuneConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Task


def task_of(config: FinetuneConfig, store: Store) -> tuple[Task, list[Note]]:
    """Return the task, and what has to be said about its labels.

    Raises:
        UserError: The store has no labels, none of that name, or training images of one class only.
    """
    notes: list[Note] = []
    _check_kind(config, store)
    labels = config.data.labels
    if not labels and config.asks_labels:
        labels = _all_labels(config, store)
    _check_one_label(config, labels)
    task = _task(config, store, labels)
    if config.task == "classification":
        labels, notes = _taught(task, store, asked=bool(config.data.labels))
        task = _task(config, store, labels)
    return TASKS.get(config.task)(task), notes


def _check_kind(config: FinetuneConfig, store: Store) -> None:
    """Raise `UserError` where a segmentation is of another kind than the store."""
    kinds = {"segmentation": "image", "volume_segmentation": "volume"}
    if store.kind != kinds.get(config.task, store.kind):
        other = next(task for task in kinds if task != config.task)
        raise UserError(
            f"The task {config.task} is of {UNITS[kinds[config.task]]}, and the store holds {UNITS[store.kind]}.",
            "task",
            f"Set task={other}, or use another store.",
        )


def _check_one_label(config: FinetuneConfig, labels: tuple[LabelConfig, ...]) -> None:
    """Raise `UserError` where several labels are asked and a setting is for one."""
    how = config.classification
    if len(labels) != 1 and (how.classes == "exclusive" or how.select == "f1"):
        setting = "classes: exclusive" if how.classes == "exclusive" else "select: f1"
        names = [label.name for label in labels]
        raise UserError(
            f"classification.{setting} is for one label, and there are {len(labels)}.",
            "data.labels",
            f"Name one, for example data.labels='[{names[0]}]', or leave the setting out.",
        )


def _task(config: FinetuneConfig, store: Store, labels: tuple[LabelConfig, ...]) -> TaskConfig:
    return TaskConfig(
        name="finetune",
        version=1,
        type=config.task,
        dataset=store.dataset,
        labels=labels,
        uncertain=config.data.uncertain,
        not_mentioned=config.data.not_mentioned,
        views=config.data.views,
        fine_tune=config.train,
        classification=config.classification,
        segmentation=config.segmentation,
        volume_segmentation=config.volume_segmentation,
        reports=config.reports,
        # The default of a task is another one.
        **({"vqa": config.vqa} if config.task == "vqa" else {}),
    )


def _all_labels(config: FinetuneConfig, store: Store) -> tuple[LabelConfig, ...]:
    """Return a question for each label column, or for each structure that is outlined."""
    what, names = "labels", store.label_names
    if config.task == "volume_segmentation":
        what, names = "label maps", sorted(set(store.masks["label"]))
    if config.task == "segmentation":
        what = config.segmentation.target
        boxes = (box["label"] for text in store.studies["boxes"].dropna() for box in json.loads(text))
        names = sorted(set(store.masks["label"] if what == "masks" else boxes))
    if not names:
        raise UserError(
            f"The store has no {what}.",
            config.data.store,
            f"Prepare it with {what}; of data of your own by `medvlp data prepare ... --labels FILE`.",
        )
    return tuple(LabelConfig(name=name, positive=name) for name in names)


def _taught(task: TaskConfig, store: Store, asked: bool) -> tuple[tuple[LabelConfig, ...], list[Note]]:
    """Return the labels of which the training images have both classes; one that was asked for must be among them."""
    frame = store.samples()
    train = frame["split"] == "train"
    if task.views:
        train &= frame["view"].isin(task.views)
    labels = label_matrix(frame[train], task)
    counts = [(int((column == 1).sum()), int((column == 0).sum())) for column in labels.T]
    bad = {
        label.name: f"{positives} positive and {negatives} negative"
        for label, (positives, negatives) in zip(task.labels, counts, strict=True)
        if not positives or not negatives
    }
    if bad and (asked or len(bad) == len(task.labels)):
        shown = "; ".join(f"{name}: {found}" for name, found in list(bad.items())[:8])
        fix = "Leave these labels out of data.labels, prepare more studies, or change the rules"
        raise UserError(
            f"Among the {len(labels)} training images a label has one class only ({shown}).",
            f"{store.path}, data.labels",
            f"{fix} data.uncertain and data.not_mentioned.",
        )
    kept = tuple(label for label in task.labels if label.name not in bad)
    return kept, [("Left out, because the training images have one class only", name) for name in bad]


def balance(names: Sequence[str], samples: Mapping[str, np.ndarray]) -> list[dict[str, object]]:
    """Return positives, negatives and unknown labels of each label and split.

    Args:
        names: Labels.
        samples: Split -> labels `[n k]`.
    """
    return [
        {
            "label": name,
            "split": split,
            "positives": int((labels[:, k] == 1).sum()),
            "negatives": int((labels[:, k] == 0).sum()),
            "unknown": int(np.isnan(labels[:, k]).sum()),
        }
        for k, name in enumerate(names)
        for split, labels in samples.items()
    ]
