"""Questions about images: those of a store, or made from the labels and boxes of a task.

Guarantee: a question stands in one split, and where a data set splits images all questions of an image stand in that of
the image. Of made questions every wording has, in every split, equally many of each answer, so that wordings tell
nothing of answers; which images are asked is a function of their ids.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.tasks._regions import regions_of
from medvlp.tasks._samples import label_matrix

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store

COLUMNS = ("question_id", "image_id", "split", "kind", "closed", "question", "answer")
PRESENCE, WHICH, SIDE, HEIGHT = "presence", "which", "side", "height"
FRONTAL = ("PA", "AP")


def normal_answer(text: str) -> str:
    """Return an answer as answers are compared: lower case, one blank between words, no full stop at its end."""
    return " ".join(text.lower().split()).rstrip(" .")


def questions_of(store: Store, config: TaskConfig) -> pd.DataFrame:
    """Return the questions of a task, one row each, with `COLUMNS`; answers are normalised."""
    if config.vqa.questions == "labels":
        return _made(store, config)
    found = store.questions
    if config.vqa.languages:
        found = found[found["language"].isin(config.vqa.languages)]
    found = found.assign(answer=[normal_answer(text) for text in found["answer"]])
    return found.loc[found["answer"] != "", list(COLUMNS)].reset_index(drop=True)


def _made(store: Store, config: TaskConfig) -> pd.DataFrame:
    import pandas as pd

    frame = store.samples()
    if config.views:
        frame = frame[frame["view"].isin(config.views)].reset_index(drop=True)
    truth = label_matrix(frame, config)
    alone = set(np.flatnonzero(((truth == 1).sum(axis=1) == 1) & ~np.isnan(truth).any(axis=1)).tolist())
    records: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    places = [_places(row) for row in records]
    ids = frame["image_id"].astype(str).tolist()
    rows: list[dict[str, Any]] = []
    for split in ("train", "val", "test"):
        own = np.flatnonzero((frame["split"] == split).to_numpy()).tolist()
        which = {i: config.labels[int(np.argmax(truth[i] == 1))].name.lower() for i in own if i in alone}
        asked: list[tuple[str, str, Mapping[int, str]]] = [(WHICH, "Which finding is shown?", which)]
        for k, label in enumerate(config.labels):
            name, names = label.name.lower(), regions_of(label)
            there = {i: "yes" if truth[i, k] == 1 else "no" for i in own if not np.isnan(truth[i, k])}
            asked.append((PRESENCE, f"Is there {name}?", there))
            for kind, text in ((SIDE, f"On which side is the {name}?"), (HEIGHT, f"How high is the {name}?")):
                of = {i: _only(places[i], kind, names) for i in own if truth[i, k] == 1}
                asked.append((kind, text, {i: answer for i, answer in of.items() if answer}))
        for kind, text, answers in asked:
            for i, answer in _balanced(text, answers, ids):
                name = f"{ids[i]}/{kind}/{text}"
                rows.append(
                    dict(
                        zip(
                            COLUMNS,
                            (name, ids[i], split, kind, kind == PRESENCE, text, answer),
                            strict=True,
                        )
                    )
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _balanced(text: str, answers: Mapping[int, str], ids: Sequence[str]) -> list[tuple[int, str]]:
    """Return equally many rows of each answer, those of the lowest hashes; none where there is one answer only."""
    of_answer: dict[str, list[int]] = defaultdict(list)
    for row in sorted(answers, key=lambda row: hashlib.sha256(f"{text}/{ids[row]}".encode()).digest()):
        of_answer[answers[row]].append(row)
    most = min(map(len, of_answer.values())) if len(of_answer) > 1 else 0
    return [(row, answer) for answer, rows in sorted(of_answer.items()) for row in rows[:most]]


def _places(row: Mapping[str, Any]) -> dict[str, dict[str, set[str]]]:
    """Return label -> kind of place -> where its boxes in a frontal image are; blank is on both sides of a middle."""
    found: dict[str, dict[str, set[str]]] = {}
    for box in json.loads(row["boxes"] or "[]") if row["view"] in FRONTAL else ():
        if box["image_id"] != row["image_id"]:
            continue
        left, right = box["x"], box["x"] + box["width"]
        middle = row["width"] / 2
        # The patient's right is on the image's left.
        side = "right" if right <= middle else "left" if left >= middle else ""
        height = "upper half" if box["y"] + box["height"] / 2 < row["height"] / 2 else "lower half"
        of = found.setdefault(box["label"], {SIDE: set(), HEIGHT: set()})
        of[SIDE].add(side)
        of[HEIGHT].add(height)
    return found


def _only(places: Mapping[str, Mapping[str, set[str]]], kind: str, names: Sequence[str]) -> str:
    """Return the one place of all boxes of some labels; blank where there are several, or none."""
    where = set().union(*(places[name][kind] for name in names if name in places))
    return where.pop() if len(where) == 1 else ""
