"""Retrieval of images by images: do the images that an image finds show its findings?

Guarantee: an image never finds itself, nor another image of its patient. Kept are the vectors of the test images with
their findings, so that every score follows from them; only images whose findings are all known are asked and found.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from medvlp.errors import UserError
from medvlp.tasks._samples import by_split, label_matrix
from medvlp.tasks.base import SPACE, ZERO_SHOT, Head, Samples, Subject, Task, encoder_of, rows_at_once

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    from medvlp.store.array_store import Store

IMAGES_AT_ONCE = 256


@dataclass(frozen=True)
class FoundByImages:
    """Images with their findings, one row per image.

    Args:
        sample_ids: Image of each row.
        patient_ids: Patient of each row.
        findings: Names of the columns of `labels`.
        labels: 1 where a finding is present, else 0.
        vectors: What is compared by its cosine, of any length.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    findings: Sequence[str]
    labels: Float[np.ndarray, "n k"]
    vectors: Float[np.ndarray, "n d"]

    @property
    def label_names(self) -> tuple[str, ...]:
        """One direction."""
        return ("image to image",)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per image; `vector` is in float32."""
        import pandas as pd

        own = {"sample_id": list(self.sample_ids), "patient_id": list(self.patient_ids)}
        labels = {f"finding:{name}": self.labels[:, k] for k, name in enumerate(self.findings)}
        return pd.DataFrame(own | labels | {"vector": list(self.vectors.astype(np.float32))})

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> FoundByImages:
        """Inverse of `to_frame`."""
        columns = [name for name in map(str, frame.columns) if name.startswith("finding:")]
        return cls(
            frame["sample_id"].tolist(),
            frame["patient_id"].tolist(),
            [name.removeprefix("finding:") for name in columns],
            frame[columns].to_numpy(dtype=np.float64),
            np.array(frame["vector"].tolist(), dtype=np.float32).reshape(len(frame), -1),
        )


class ImageRetrieval(Task):
    """Images against the other images of the test, in the shared space (zero_shot) or by pooled features (knn)."""

    code_version: ClassVar[int] = 1
    scoring: ClassVar[str] = "image_retrieval"
    protocols: ClassVar[frozenset[str]] = frozenset({ZERO_SHOT, "knn"})
    needs: ClassVar[str] = SPACE

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the images of which every finding is known.

        Raises:
            UserError: Fewer than two patients of the test split have a finding.
        """
        frame = store.samples()
        labels = label_matrix(frame, self.config)
        labels[np.isnan(labels).any(axis=1)] = np.nan
        found = by_split(store, frame, self.config, [label.name for label in self.config.labels], labels)
        test = found["test"]
        if len({test.patient_ids[row] for row in np.flatnonzero((test.labels == 1).any(axis=1)).tolist()}) < 2:
            raise UserError(
                "The split 'test' does not have two patients with a finding.",
                f"task {self.config.name}, data set {self.config.dataset}",
                "Use a store with labels; check the label rules and `views` of the task.",
            )
        return found

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return all: nothing is trained."""
        return train

    def settings(self, protocol: str) -> dict[str, object]:
        """Return what of the task decides a protocol's numbers."""
        return {"code_version": self.code_version, "protocol": protocol}

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that gives the vectors of images; nothing is trained.

        Raises:
            UserError: zero_shot: the subject is no encoder, or has no space that images and texts share.
        """

        def predict(samples: Samples) -> FoundByImages:
            vectors = subject.load_features()[samples.rows] if protocol == "knn" else _embedded(subject, samples)
            return FoundByImages(
                samples.sample_ids, samples.patient_ids, samples.label_names, samples.labels, np.asarray(vectors)
            )

        return Head(predict)


def _embedded(subject: Subject, samples: Samples) -> Float[np.ndarray, "n d"]:
    encoder = encoder_of(subject, ZERO_SHOT)
    step = rows_at_once(encoder, IMAGES_AT_ONCE)
    parts = np.array_split(samples.rows, range(step, len(samples), step))
    return np.concatenate(
        [encoder.embed_features(encoder.encode_rows(subject.store, rows)).double().cpu().numpy() for rows in parts]
    )
