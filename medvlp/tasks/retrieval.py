"""Retrieval: which report belongs to this image, and which image to this report?

Guarantee: kept are the vectors of images and reports in the encoder's shared space, one row per image, with a digest of
its report's wording, so that images of one report, and studies of one wording, are right answers to each other. No text
is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from medvlp.data.clips import texts_of
from medvlp.data.texts import report_text
from medvlp.errors import UserError
from medvlp.tasks._samples import by_split
from medvlp.tasks.base import SPACE, ZERO_SHOT, Head, Samples, Subject, Task, encoder_of, rows_at_once

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from medvlp.store.array_store import Store
    from medvlp.types import Features
    from medvlp.zoo import Encoder

IMAGES_AT_ONCE = 256
DIRECTIONS = ("image to report", "report to image")


@dataclass(frozen=True)
class Vectors:
    """Images and their reports as unit vectors, one row per image.

    Args:
        sample_ids: Image of each row.
        patient_ids: Patient of each row.
        study_ids: Study of each row: its report is one query, whatever its number of images.
        texts: Digest of the report's wording.
        images: Vectors of images.
        reports: Vectors of reports.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    study_ids: Sequence[str]
    texts: Sequence[str]
    images: Float[np.ndarray, "n d"]
    reports: Float[np.ndarray, "n d"]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The two directions."""
        return DIRECTIONS

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image; `image` and `report` are the vectors in float32."""
        import pandas as pd

        return pd.DataFrame(
            {
                "sample_id": list(self.sample_ids),
                "patient_id": list(self.patient_ids),
                "study_id": list(self.study_ids),
                "text": list(self.texts),
                "image": list(self.images.astype(np.float32)),
                "report": list(self.reports.astype(np.float32)),
            }
        )

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Vectors:
        """Inverse of `to_frame`."""
        samples, patients, studies, texts = (
            frame[name].tolist() for name in ("sample_id", "patient_id", "study_id", "text")
        )
        images, reports = (
            np.array(frame[name].tolist(), dtype=np.float32).reshape(len(frame), -1) for name in ("image", "report")
        )
        return cls(samples, patients, studies, texts, images, reports)


class Retrieval(Task):
    """Images against the findings and impressions of their studies, or the captions of a data set without reports."""

    code_version: ClassVar[int] = 1
    scoring: ClassVar[str] = "retrieval"
    protocols: ClassVar[frozenset[str]] = frozenset({ZERO_SHOT})
    needs: ClassVar[str] = SPACE

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images whose study has a report with the task's sections.

        Raises:
            UserError: The test split has fewer than two different ones.
        """
        frame = store.samples()
        told = texts_of(store)
        texts = self._texts([told.get(study) for study in frame["study_id"]])
        labels = np.array([[1.0 if text else np.nan] for text in texts]).reshape(len(frame), 1)
        found = by_split(store, frame, self.config, ["report"], labels)
        if self.config.retrieval.pool is not None:
            found["test"] = self._pool(store, found["test"], self.config.retrieval.pool)
        wording = dict(zip(frame["image_id"].astype(str), texts, strict=True))
        if len({_digest(wording[image]) for image in found["test"].sample_ids}) < 2:
            raise UserError(
                "The split 'test' does not have two different reports.",
                f"task {self.config.name}, data set {self.config.dataset}",
                "Use a store with reports; check `retrieval.sections` and `views` of the task.",
            )
        return found

    def _pool(self, store: Store, test: Samples, size: int) -> Samples:
        """Return the samples of `size` studies, with all their images."""
        studies = store.images["study_id"].astype(str).to_numpy()[test.rows]
        order = sorted(set(studies), key=lambda study: hashlib.sha256(study.encode()).digest())
        if len(order) < size:
            raise UserError(
                f"The test split has {len(order)} studies with reports; the task searches among {size}.",
                f"task {self.config.name}, data set {self.config.dataset}",
                "Use a smaller retrieval.pool, or the whole data set.",
            )
        return test.take(np.flatnonzero(np.isin(studies, order[:size])))

    def _texts(self, reports: Sequence[str | None]) -> list[str]:
        return [report_text(report, self.config.retrieval.sections) for report in reports]

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return all: nothing is trained."""
        return train

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        return {"code_version": self.code_version, "protocol": protocol}

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that encodes images and reports; nothing is trained.

        Raises:
            UserError: The subject is no encoder, or has no space that images and texts share.
        """
        encoder, store = encoder_of(subject, protocol), subject.store
        studies = store.images["study_id"].astype(str).to_numpy()
        told = texts_of(store)

        def predict(samples: Samples) -> Vectors:
            of = studies[samples.rows].tolist()
            texts = self._texts([told.get(study) for study in of])
            digests = [_digest(text) for text in texts]
            first = {digest: i for i, digest in reversed(list(enumerate(digests)))}
            if not first:
                return Vectors([], [], [], [], np.zeros((0, 1)), np.zeros((0, 1)))
            wordings = encoder.embed_text([texts[i] for i in first.values()], self.config.retrieval.max_tokens)
            step = rows_at_once(encoder, IMAGES_AT_ONCE)
            place = {digest: number for number, digest in enumerate(first)}
            images = [
                encoder.embed_features(self._encoded(encoder, store, rows)).double().cpu().numpy()
                for rows in np.array_split(samples.rows, range(step, len(samples), step))
            ]
            return Vectors(
                samples.sample_ids,
                samples.patient_ids,
                of,
                digests,
                np.concatenate(images),
                wordings.double().cpu().numpy()[[place[digest] for digest in digests]],
            )

        return Head(predict)

    def _encoded(self, encoder: Encoder, store: Store, rows: Int[np.ndarray, " b"]) -> Features:
        """Return the features of rows, normalised by the task's mean and deviation where it has them."""
        from medvlp.data.inputs import read_inputs
        from medvlp.data.transforms import normalise

        mean, std = self.config.retrieval.mean, self.config.retrieval.std
        if mean is None or std is None:
            return encoder.encode_rows(store, rows)
        encoder.check_store(store)
        taken = encoder.preprocessing.input
        if taken.channels == 1:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)  # type: ignore[assignment]
        taken = taken.model_copy(update={"mean": mean, "std": std})
        return encoder(normalise(read_inputs(store, rows, taken), taken))


def _digest(text: str) -> str:
    """Return what stands for a text's wording, case and blanks aside."""
    return hashlib.sha256(" ".join(text.lower().split()).encode()).hexdigest()[:16]
