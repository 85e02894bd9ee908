"""Retrieval where images have a class: does a report of the same class come first, and the image's own?

Guarantee: as `retrieval`; of a subset only the listed images are asked, each once, whatever their split. The class of
an image is what its list says, else which of the task's labels are present; a listed image of neither is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.tasks._samples import by_split, label_matrix
from medvlp.tasks.base import Head, Samples, Subject
from medvlp.tasks.retrieval import DIRECTIONS, Retrieval, Vectors

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store


@dataclass(frozen=True)
class ClassVectors(Vectors):
    """As `Vectors`, with the class of each image.

    Args:
        classes: What is equal for images of one class.
        one_way: Reports are looked for by images alone.
    """

    classes: Sequence[str]
    one_way: bool

    @property
    def label_names(self) -> tuple[str, ...]:
        """The directions that are scored."""
        return DIRECTIONS[:1] if self.one_way else DIRECTIONS

    def to_frame(self) -> pd.DataFrame:
        """As `Vectors.to_frame`, with `class` and `one_way`."""
        return super().to_frame().assign(one_way=self.one_way, **{"class": list(self.classes)})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> ClassVectors:
        """Inverse of `to_frame`."""
        own = Vectors.from_frame(frame)
        one_way = bool(frame["one_way"].iloc[0]) if len(frame) else False
        return cls(**_parts(own), classes=frame["class"].tolist(), one_way=one_way)


class ClassRetrieval(Retrieval):
    """Images against reports, right where class or wording are the same."""

    code_version: ClassVar[int] = 1
    scoring: ClassVar[str] = "class_retrieval"

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images with a class and a report, as test samples where a subset is asked for.

        Raises:
            UserError: The store has no such subset, an image of it has no class, or there are no two classes.
        """
        frame = store.samples()
        subset = self.config.retrieval.subset
        if subset is not None:
            frame = self._listed(frame, subset).assign(split="test")
        classes = self._classes(frame)
        texts = self._texts(frame["report"].tolist())
        known = [bool(text and own) for text, own in zip(texts, classes, strict=True)]
        found = by_split(store, frame, self.config, ["report"], np.where(known, 1.0, np.nan)[:, None])
        of_image = dict(zip(frame["image_id"].astype(str), classes, strict=True))
        if len({of_image[image] for image in found["test"].sample_ids}) < 2:
            raise UserError(
                "There are no two classes with reports among the images to test.",
                self._where(),
                "Use a store with reports and labels; check `retrieval.classes` and `views` of the task.",
            )
        return found

    def _where(self) -> str:
        return f"task {self.config.name}, data set {self.config.dataset}"

    def _listed(self, frame: pd.DataFrame, subset: str) -> pd.DataFrame:
        facts = [json.loads(text or "{}") for text in frame["attributes"]]
        listed = [own.get(f"image_{subset}") == image for own, image in zip(facts, frame["image_id"], strict=True)]
        if not any(listed):
            raise UserError(
                f"The store has no image of the subset {subset}.",
                self._where(),
                "Put its list into the root folder of the data set, as the data card says, and prepare it again.",
            )
        classes = [own.get(f"class_{subset}", "") for own in facts]
        return frame.assign(listed_class=classes)[listed].reset_index(drop=True)

    def _classes(self, frame: pd.DataFrame) -> list[str]:
        """Return the class of every row: that of its list, else its present labels of the task; blank for none."""
        names = self.config.retrieval.classes
        present = label_matrix(frame, _asking(self.config, names)) == 1
        own = ["|".join(name for name, there in zip(names, row, strict=True) if there) for row in present]
        if "listed_class" not in frame:
            return own
        found = [listed or label for listed, label in zip(frame["listed_class"], own, strict=True)]
        if not all(found):
            raise UserError(
                f"{found.count('')} of the {len(found)} listed images have no class: the list gives none, and none of "
                f"the labels {', '.join(names)} is present.",
                self._where(),
                "Use the list with its columns of classes, or prepare the data set with the labels it was made by.",
            )
        return found

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that encodes images and reports; see `Retrieval.fit`."""
        encode = super().fit(subject, protocol, train, val, seed).predict
        frame = subject.store.samples()
        subset = self.config.retrieval.subset
        if subset is not None:
            frame = self._listed(frame, subset)
        of_image = dict(zip(frame["image_id"].astype(str), self._classes(frame), strict=True))

        def predict(samples: Samples) -> ClassVectors:
            classes = [of_image[image] for image in samples.sample_ids]
            one_way = self.config.retrieval.legacy_one_way
            return ClassVectors(**_parts(encode(samples)), classes=classes, one_way=one_way)

        return Head(predict)


def _parts(vectors: Any) -> dict[str, Any]:
    return {field.name: getattr(vectors, field.name) for field in fields(Vectors)}


def _asking(config: TaskConfig, names: Sequence[str]) -> TaskConfig:
    """Return the task as if it asked for labels of these names."""
    from medvlp.config.task import LabelConfig

    return config.model_copy(update={"labels": tuple(LabelConfig(name=name, positive=name) for name in names)})
