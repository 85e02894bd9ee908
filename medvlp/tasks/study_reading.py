"""Reading of studies by retrieval: what do the nearest training studies say of this one?

Guarantee: the answers of a study come from training studies alone; how many answer together is chosen on validation.
Kept are the answer, the truth, and the mean of the training studies, which is what one says without looking. What no
neighbour answers is read as that mean: to be silent is no way to a smaller error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from medvlp.data.clips import texts_of
from medvlp.data.texts import report_text
from medvlp.errors import UserError, nearest
from medvlp.objectives.study_reading import nearest_labels
from medvlp.objectives.terms import unit
from medvlp.tasks._samples import by_split, fraction_subset
from medvlp.tasks._studies import answers_of, embedded_texts, questions_of, study_vector, view_weights
from medvlp.tasks._study_images import StudyImages
from medvlp.tasks.base import SPACE, SPLITS, Head, Samples, Subject, Task, encoder_of, rows_at_once

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int

    from medvlp.store.array_store import Store

STUDIES_AT_ONCE = 256
CLIPS_AT_ONCE = 64
COLUMNS = ("truth", "answer", "mean")


@dataclass(frozen=True)
class Readings:
    """What was read of studies, one row per study.

    Args:
        sample_ids: Study of each row.
        patient_ids: Patient of each row.
        label_names: Questions.
        truth: What the data set says, NaN where it is not known.
        answer: What was read.
        mean: Mean of the training studies.
    """

    sample_ids: Sequence[str]
    patient_ids: Sequence[str]
    label_names: Sequence[str]
    truth: Float[np.ndarray, "n q"]
    answer: Float[np.ndarray, "n q"]
    mean: Float[np.ndarray, "n q"]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per study, with `truth:QUESTION`, `answer:QUESTION` and `mean:QUESTION`."""
        import pandas as pd

        own = {"sample_id": list(self.sample_ids), "patient_id": list(self.patient_ids)}
        values = {
            f"{kind}:{name}": getattr(self, kind)[:, k] for k, name in enumerate(self.label_names) for kind in COLUMNS
        }
        return pd.DataFrame(own | values)

    @classmethod
    def from_frame(cls, frame: pd.DataFrame) -> Readings:
        """Inverse of `to_frame`."""
        names = [name.removeprefix("truth:") for name in map(str, frame.columns) if name.startswith("truth:")]
        values = (frame[[f"{kind}:{name}" for name in names]].to_numpy(dtype=np.float64) for kind in COLUMNS)
        return cls(frame["sample_id"].tolist(), frame["patient_id"].tolist(), names, *values)


class StudyReading(Task):
    """Measurements and labels of studies, read from the nearest training studies."""

    code_version: ClassVar[int] = 1
    scoring: ClassVar[str] = "study_reading"
    protocols: ClassVar[frozenset[str]] = frozenset({"knn"})
    needs: ClassVar[str] = SPACE

    def needed_by(self, protocol: str) -> str:
        """See `Task.needed_by`: a space with texts, where these are what is looked among."""
        return self.needs if self.config.study_reading.by == "texts" else ""

    def samples(self, store: Store) -> dict[str, Samples]:
        """Return the studies with an answer to one of the questions; of training studies also those alone.

        Raises:
            UserError: The data set does not have a question, or a split does not have an answer to each.
        """
        frame, names = store.samples(), list(self.config.study_reading.questions)
        known = questions_of(store)
        for name in names:
            if name not in known:
                raise UserError(
                    f"The data set has no measurement or label '{name}'.{nearest(name, list(known))}",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    f"Use one of: {', '.join(known)}.",
                )
        images = self._images(store)
        frame = frame[frame["image_id"].isin(set(store.images["image_id"].to_numpy()[images.first]))]
        answers = answers_of(store, frame)
        there = np.stack([np.where(np.isnan(answers[name]), np.nan, 1.0) for name in names], axis=1)
        found = by_split(store, frame, self.config, names, there)
        for split in SPLITS:
            missing = [
                name for name, column in zip(names, found[split].labels.T, strict=True) if not (column == 1).any()
            ]
            if missing or not len(found[split]):
                raise UserError(
                    f"No study of the split '{split}' says {', '.join(missing or names)}.",
                    f"task {self.config.name}, data set {self.config.dataset}",
                    "Check `study_reading.questions` and `views` of the task, and the splits of the store.",
                )
        studies = store.images["study_id"].astype(str).to_numpy()
        return {split: replace(own, sample_ids=studies[own.rows].tolist()) for split, own in found.items()}

    def _images(self, store: Store) -> StudyImages:
        return StudyImages(store, self.config.views, int(store.images.groupby("study_id").size().max()))

    def training_subset(self, train: Samples, *, fraction: float, shots: int, draw: int) -> Samples:
        """Return a share of the studies."""
        return fraction_subset(train, fraction, draw)

    def settings(self, protocol: str) -> dict[str, Any]:
        """Return what of the task decides a protocol's numbers."""
        section = self.config.study_reading.resolved()
        return {"code_version": self.code_version, "protocol": protocol, "study_reading": section}

    def fit(self, subject: Subject, protocol: str, train: Samples, val: Samples, seed: int) -> Head:
        """Return a head that reads from the training studies, so many together as are best on validation.

        Raises:
            UserError: The encoder shares no space with texts, no training study has a text, or a clip is of a view that
                has no weight.
        """
        by_texts = self.config.study_reading.by == "texts" and subject.load_encoder is not None
        vectors_of, train, known = self._by_texts(subject, train) if by_texts else self._by_clips(subject, train)
        said = self._truth(subject.store, train)
        mean = np.nanmean(said, axis=0)

        def read(vectors: Float[torch.Tensor, "n d"], neighbours: Sequence[int]) -> Float[np.ndarray, "n q"]:
            found = np.stack([_read(vectors, known, said[:, k], n) for k, n in enumerate(neighbours)], axis=1)
            return np.where(np.isnan(found), mean, found)

        asked, truth = vectors_of(val), self._truth(subject.store, val)
        tried = sorted({min(n, len(known)) for n in self.config.study_reading.neighbours})
        errors = np.array([np.nanmean(abs(read(asked, [n] * len(mean)) - truth), axis=0) for n in tried])
        chosen = [tried[place] for place in errors.argmin(axis=0).tolist()]

        def predict(samples: Samples) -> Readings:
            answer = read(vectors_of(samples), chosen)
            means = np.broadcast_to(mean, answer.shape).copy()
            own = samples.sample_ids, samples.patient_ids, samples.label_names
            return Readings(*own, self._truth(subject.store, samples), answer, means)

        names = train.label_names
        facts = {"known_studies": len(known), "neighbours": dict(zip(names, chosen, strict=True))}
        return Head(predict, facts | {"val_mae": dict(zip(names, errors.min(axis=0).tolist(), strict=True))})

    def _truth(self, store: Store, samples: Samples) -> Float[np.ndarray, "n q"]:
        place = {study: row for row, study in enumerate(store.studies["study_id"].astype(str))}
        own = store.studies.iloc[[place[study] for study in samples.sample_ids]]
        answers = answers_of(store, own)
        return np.stack([answers[name] for name in samples.label_names], axis=1)

    def _by_texts(self, subject: Subject, train: Samples) -> tuple[VectorsOf, Samples, torch.Tensor]:
        """Return what gives studies vectors, the training studies with texts, and the vectors of these texts."""
        how, store, encoder = self.config.study_reading, subject.store, encoder_of(subject, "knn")
        told = texts_of(store)
        texts = [report_text(told.get(study), how.sections) for study in train.sample_ids]
        kept = [place for place, text in enumerate(texts) if text]
        if not kept:
            raise UserError(
                "No training study has a text.",
                f"task {self.config.name}, {store.path}",
                "Use a store with reports, or set study_reading.by: clips.",
            )
        images, views = self._images(store), store.images["view"].to_numpy()

        def vectors_of(samples: Samples) -> Float[torch.Tensor, "n d"]:
            of = [rows[rows >= 0] for rows in images.of(samples.rows)]
            clips = _clip_vectors(subject, np.concatenate(of)).split([len(rows) for rows in of])
            weights = [
                view_weights(views[rows].tolist(), how.view_weights) if how.view_weights else None for rows in of
            ]
            found = [study_vector(encoder, own, own_weights) for own, own_weights in zip(clips, weights, strict=True)]
            return torch.cat(found).cpu()

        return vectors_of, train.take(np.array(kept)), embedded_texts(encoder, [texts[place] for place in kept]).cpu()

    def _by_clips(self, subject: Subject, train: Samples) -> tuple[VectorsOf, Samples, torch.Tensor]:
        """As `_by_texts`, by the mean features of the clips of a study, each scaled by the training studies."""
        images, features = self._images(subject.store), np.asarray(subject.load_features(), dtype=np.float64)

        def means(samples: Samples) -> np.ndarray:
            return np.stack([features[rows[rows >= 0]].mean(axis=0) for rows in images.of(samples.rows)])

        known = means(train)
        centre, scale = known.mean(axis=0), known.std(axis=0)
        scale[scale == 0] = 1.0

        def vectors_of(samples: Samples) -> Float[torch.Tensor, "n d"]:
            scaled = torch.from_numpy((means(samples) - centre) / scale)
            # Where nothing tells studies apart, all are equally near.
            return unit(scaled) if scaled.any() else torch.ones(len(scaled), 1, dtype=torch.float64)

        return vectors_of, train, vectors_of(train)


VectorsOf = Callable[[Samples], "Float[torch.Tensor, 'n d']"]


def _clip_vectors(subject: Subject, rows: Int[np.ndarray, " n"]) -> Float[torch.Tensor, "n d"]:
    encoder = encoder_of(subject, "knn")
    step = rows_at_once(encoder, CLIPS_AT_ONCE)
    chunks = (rows[start : start + step] for start in range(0, len(rows), step))
    return torch.cat([encoder.embed_features(encoder.encode_rows(subject.store, chunk)) for chunk in chunks])


def _read(
    vectors: Float[torch.Tensor, "n d"], known: Float[torch.Tensor, "m d"], said: Float[np.ndarray, " m"], number: int
) -> Float[np.ndarray, " n"]:
    """Return the mean answer of the nearest known studies of each vector."""
    answers = torch.from_numpy(said)
    parts = [
        nearest_labels(part, known.to(part.dtype), answers.expand(len(part), -1), number)
        for part in vectors.split(STUDIES_AT_ONCE)
    ]
    return torch.cat(parts).numpy()
