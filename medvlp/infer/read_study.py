"""A study of clips read by retrieval, from files to one JSON file: what `medvlp read-study` does.

Guarantee: the file appears whole or not at all. It holds the paths as given, answers and retrieved texts, and nothing
of a file's headers and no id of a known study. Beside every answer stands that of the known studies together, which is
what one would say without looking.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import medvlp
from medvlp.errors import UserError
from medvlp.infer.studies import CANDIDATES, REPORT, KnownStudies, SectionWeights, StudyReader
from medvlp.progress import progress_bar
from medvlp.store.array_store import Store
from medvlp.store.files import write_json, writing
from medvlp.tasks.base import SPLITS

if TYPE_CHECKING:
    from medvlp.zoo.clip_encoder import ClipEncoder

RETRIEVED = "text of the nearest known study, which is another patient's: not written for this study"


@dataclass(frozen=True)
class Answer:
    """What is read for one question.

    Args:
        question: A label or a measurement of the known studies.
        meaning: Of a measurement: what its number is, with the unit.
        value: Mean over the nearest known studies; of a label the share that has it. None where none says it.
        of_all: The same over all known studies.
        known: Known studies that have an answer.
    """

    question: str
    meaning: str
    value: float | None
    of_all: float | None
    known: int


@dataclass(frozen=True)
class ReadStudy:
    """What is read of a study; `texts` is section -> text of a known study."""

    answers: list[Answer]
    texts: dict[str, str]
    known: int
    neighbours: int


def read_study(
    encoder_spec: str,
    clips: Sequence[Path],
    known: Path,
    out: Path,
    *,
    split: str = "train",
    neighbours: int = CANDIDATES,
    views: Sequence[str] = (),
    weights: Path | None = None,
    device: str = "auto",
) -> ReadStudy:
    """Read one study of clips from the studies of a store whose texts lie nearest, as EchoPrime (arXiv 2410.09704).

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it; an encoder of clips that shares a space with texts.
        clips: The clips of the study: videos (AVI, MP4, MKV), or folders of numbered frames.
        known: Store of other studies with reports, or with measurements that captions are made from.
        out: JSON file to write.
        split: Studies of the store that are known.
        neighbours: Known studies that answer a question together.
        views: View of each clip, in their order; needed with `weights`, and without effect otherwise.
        weights: CSV with the columns `view` and `weight`: how much a clip of each view counts. None weighs the clips as
            the method has learnt it, or all alike.
        device: Where the encoder computes.

    Raises:
        UserError: No clip is given or one cannot be read, the encoder takes no clips or shares no space with texts, the
            store knows no text, views and weights do not fit, or the file cannot be written.
    """
    table = _check(clips, split, views, weights)
    encoder = _encoder(encoder_spec, device)
    store = Store.open(known)
    others = KnownStudies.of_store(encoder, store, split)
    reader = StudyReader(encoder, others, table, neighbours)
    vectors = []
    with progress_bar("read clips", len(clips), "clips") as advance:
        for clip in clips:
            vectors.append(encoder.embed_features(encoder.encode_image([clip])))
            advance()
    reading = reader.of_vectors(torch.cat(vectors), list(views) or [None] * len(clips))
    answers = [
        Answer(
            name,
            store.card.measurements.get(name, ""),
            _number(value),
            _mean(others.answers[name]),
            _count(others, name),
        )
        for name, value in reading.answers.items()
    ]
    number = len(others.vectors)
    read = ReadStudy(answers, reading.texts, number, min(neighbours, number))
    about = {
        "medvlp": medvlp.__version__,
        "encoder": encoder.name,
        "encoder_hash": encoder.hash,
        "known": {"dataset": store.dataset, "store_hash": store.hash, "split": split, "studies": number},
        "neighbours": read.neighbours,
        "clips": [str(clip) for clip in clips],
        "views": list(views),
        "weights": None if table is None else dict(zip(table.views, table.table[0].tolist(), strict=True)),
        "answers": [asdict(one) for one in answers],
        "texts": read.texts,
        "about_texts": RETRIEVED,
    }
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, about, out.parent)
    return read


def _check(clips: Sequence[Path], split: str, views: Sequence[str], weights: Path | None) -> SectionWeights | None:
    """Return the weights of views, where there are any."""
    if not clips:
        raise UserError("There is no clip to read.", "clips", "Give videos or folders of frames.")
    if split not in SPLITS:
        raise UserError(f"There is no split '{split}'.", "--split", f"Use one of: {', '.join(SPLITS)}.")
    if views and weights is None:
        raise UserError("Views have no effect without weights.", "--view", "Give --view-weights FILE, or leave it out.")
    if weights is None:
        return None
    if len(views) != len(clips):
        raise UserError(
            f"{len(clips)} clips have {len(views)} views.", "--view", "Give --view once for each clip, in their order."
        )
    return _weights(weights)


def _weights(path: Path) -> SectionWeights:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(row["view"].strip(), float(row["weight"])) for row in csv.DictReader(file)]
    except OSError as error:
        raise UserError(
            f"The weights cannot be read: {error.strerror}.", path, "Check path and access rights."
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise UserError(
            "The file holds no weights of views.", path, "Give a CSV with the columns view,weight."
        ) from error
    found = dict(rows)
    if len(found) < len(rows) or not any(found.values()) or not all(0 <= one < math.inf for one in found.values()):
        raise UserError(
            "A view stands there twice, a weight is below 0 or no number, or none is above 0.",
            path,
            "Give every view one weight of 0 or more.",
        )
    return SectionWeights((REPORT,), tuple(found), np.array([list(found.values())]))


def _encoder(spec: str, device: str) -> ClipEncoder:
    from medvlp.zoo import load_encoder
    from medvlp.zoo.clip_encoder import ClipEncoder

    encoder = load_encoder(spec, device=device)
    if not isinstance(encoder, ClipEncoder):
        raise UserError(f"The encoder '{encoder.name}' takes no clips.", "encoder", "Use an encoder of clips.")
    encoder._space_side()
    return encoder


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean(values: np.ndarray) -> float | None:
    given = values[~np.isnan(values)]
    return float(given.mean()) if len(given) else None


def _count(known: KnownStudies, name: str) -> int:
    return int((~np.isnan(known.answers[name])).sum())
