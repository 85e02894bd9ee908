"""Reading a study of clips by retrieval: from known studies whose texts lie nearest, as EchoPrime (arXiv 2410.09704).

Guarantee: what is read of a study depends on its clips and on the known studies alone; the study itself is never among
them unless the caller puts it there. A question that no near study answers is NaN, and a section to which no clip
contributes is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from medvlp.data.clips import texts_of
from medvlp.data.texts import report_text
from medvlp.errors import UserError
from medvlp.objectives.study_reading import nearest_labels, nearest_texts
from medvlp.tasks._studies import answers_of, embedded_texts, study_vector, view_weights

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.store.array_store import Store
    from medvlp.zoo import Encoder

REPORT = "report"
"""The one section of studies that are known by their whole texts."""
CANDIDATES = 50


@dataclass(frozen=True)
class KnownStudies:
    """What is known of other studies.

    Args:
        vectors: Unit vectors of their texts.
        answers: Question -> answer of each study, NaN where it is not known.
        texts: Section -> text of each study, None where it has no such section.
        about: Question -> section that it is about; questions that are not named are about the first one.
    """

    vectors: Float[torch.Tensor, "m d"]
    answers: Mapping[str, Float[np.ndarray, " m"]]
    texts: Mapping[str, Sequence[str | None]]
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_store(
        cls, encoder: Encoder, store: Store, split: str = "train", sections: Sequence[str] = ("findings", "impression")
    ) -> KnownStudies:
        """Return the studies of a split, by their reports, or by captions where the data set has no reports.

        Raises:
            UserError: No study of the split has a text, or the encoder shares no space with texts.
        """
        told = texts_of(store)
        own = store.studies[store.studies["split"] == split]
        texts = [report_text(told.get(study), sections) for study in own["study_id"]]
        if not any(texts):
            raise UserError(f"No study of the split '{split}' has a text.", store.path, "Use another split or store.")
        own, texts = own[[bool(text) for text in texts]], [text for text in texts if text]
        return cls(embedded_texts(encoder, texts), answers_of(store, own), {REPORT: texts})


@dataclass(frozen=True)
class SectionWeights:
    """How much a clip of each view says about each section of a report.

    Args:
        sections: Names of the rows.
        views: Names of the columns.
        table: Not negative.
    """

    sections: tuple[str, ...]
    views: tuple[str, ...]
    table: Float[np.ndarray, "s v"]


@dataclass(frozen=True)
class StudyReading:
    """What is read of a study: answers of questions, and the text of each section."""

    answers: dict[str, float]
    texts: dict[str, str]


class StudyReader:
    """Reads studies from what is known of others.

    Args:
        encoder: An encoder of clips that shares a space with texts.
        known: The known studies.
        weights: Weights of views; None weighs the clips as the method has learnt it, or all alike.
        neighbours: Known studies that answer a question together.

    Raises:
        UserError: The encoder shares no space with texts, or a question is about a section without weights.
    """

    def __init__(
        self,
        encoder: Encoder,
        known: KnownStudies,
        weights: SectionWeights | None = None,
        neighbours: int = CANDIDATES,
    ) -> None:
        self.encoder, self.known, self.weights, self.neighbours = encoder, known, weights, neighbours
        self.sections = tuple(known.texts) if weights is None else weights.sections
        missing = sorted({*known.texts, *known.about.values()} - set(self.sections))
        if missing:
            raise UserError(
                f"There are no weights for {', '.join(missing)}.", "weights", "Give a row for each section."
            )

    def read(self, store: Store, rows: Int[np.ndarray, " n"], neighbours: int | None = None) -> StudyReading:
        """Return what is read of one study.

        Args:
            store: A store of videos.
            rows: Rows of its clips in the images table; their views are those of the table.
            neighbours: In place of the reader's own.
        """
        clips = self.encoder.embed_features(self.encoder.encode_rows(store, rows))
        return self.of_vectors(clips, store.images["view"].iloc[rows].tolist(), neighbours)

    def of_vectors(
        self, clips: Float[torch.Tensor, "n d"], views: Sequence[str | None], neighbours: int | None = None
    ) -> StudyReading:
        """Return what is read of the unit vectors of a study's clips; `views` are needed where views have weights.

        Raises:
            UserError: A clip is of no view that has weights.
        """
        vectors, known = self._section_vectors(clips, views), self.known
        names = list(known.answers)
        rows = [self.sections.index(known.about.get(name, self.sections[0])) for name in names]
        answers = torch.from_numpy(np.stack([known.answers[name] for name in names])) if names else None
        found = {}
        if answers is not None:
            means = nearest_labels(
                vectors[rows], known.vectors, answers.to(vectors.device), neighbours or self.neighbours
            )
            found = dict(zip(names, means.tolist(), strict=True))
        has = [
            [text is not None for text in known.texts.get(name, [None] * len(known.vectors))] for name in self.sections
        ]
        chosen = nearest_texts(vectors, known.vectors, torch.tensor(has, device=vectors.device)).tolist()
        texts = {
            name: str(known.texts[name][place]) for name, place in zip(self.sections, chosen, strict=True) if place >= 0
        }
        return StudyReading(found, texts)

    def _section_vectors(
        self, clips: Float[torch.Tensor, "n d"], views: Sequence[str | None]
    ) -> Float[torch.Tensor, "s d"]:
        if self.weights is None:
            return study_vector(self.encoder, clips).expand(len(self.sections), -1)
        return torch.cat(
            [
                study_vector(self.encoder, clips, view_weights(views, dict(zip(self.weights.views, row, strict=True))))
                for row in self.weights.table.tolist()
            ]
        )
