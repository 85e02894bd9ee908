"""Texts of stores: which say the same, which questions are divided between splits, which may hold an identifier.

Guarantee: two texts count as the same only if their words agree, whatever case, blanks and punctuation. A possible
identifier is reported by its kind and study, never by its text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from medvlp.text.deidentify import deidentify

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.store.array_store import Store

BATCH = 256
"""Batch for which false negatives are counted: texts of other studies that say the same."""
_TAG = re.compile(r"\[(NAME|ID|SSN|PHONE|EMAIL|URL|ADDRESS|HOSPITAL|UID|DATE)\]")


def normalised(text: str) -> str:
    """Return the words of a text in lower case, with one blank between them."""
    return " ".join(re.findall(r"\w+", text.lower()))


def repeated_texts(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Return per store how many studies share their text with others, and what that does to a contrastive batch.

    `false_negatives` is the mean number of other texts in a random batch of `BATCH` that say the same as a given one;
    `across_splits` counts texts that occur in training and in test.
    """
    rows = []
    for store in stores:
        texts = [(normalised(text), split) for text, split in _reports(store)]
        texts = [(text, split) for text, split in texts if text]
        if not texts:
            continue
        counts = Counter(text for text, _ in texts)
        trained = {text for text, split in texts if split in ("train", "val")}
        tested = {text for text, split in texts if split == "test"}
        n = len(texts)
        pairs = sum(count * (count - 1) for count in counts.values())
        rows.append(
            {
                "store": store.path.name,
                "texts": n,
                "distinct": len(counts),
                "shared": sum(count for count in counts.values() if count > 1),
                "most_frequent": counts.most_common(1)[0][1],
                "across_splits": len(trained & tested),
                "false_negatives": pairs / n / max(n - 1, 1) * (min(BATCH, n) - 1),
            }
        )
    return rows


def divided_questions(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Return per store with questions how many test questions have an image, or other words, in training too.

    `images` counts images with questions in test and in training or validation, `questions` their test questions,
    `rephrased` the test questions that stand in other words (one group) in training or validation.
    """
    rows = []
    for store in stores:
        asked = store.questions
        tested, learnt = asked[asked["split"] == "test"], asked[asked["split"].isin(("train", "val"))]
        shared = tested["image_id"].isin(set(learnt["image_id"]))
        rephrased = tested["group"].isin(set(learnt["group"].dropna()))
        if shared.any() or rephrased.any():
            rows.append(
                {
                    "store": store.path.name,
                    "test_questions": len(tested),
                    "images": int(tested.loc[shared, "image_id"].nunique()),
                    "questions": int(shared.sum()),
                    "rephrased": int(rephrased.sum()),
                }
            )
    return rows


def text_identifiers(stores: Sequence[Store]) -> list[dict[str, Any]]:
    """Return per store and kind how many texts hold what looks like an identifier, with some study ids."""
    rows = []
    for store in stores:
        found: dict[str, list[str]] = {}
        studies = store.studies
        for study_id, report in zip(studies["study_id"], studies["report"], strict=True):
            if isinstance(report, str):
                left = Counter(_TAG.findall(deidentify(report)))
                left.subtract(_TAG.findall(report))
                for kind in sorted(kind for kind, count in left.items() if count > 0):
                    found.setdefault(kind, []).append(study_id)
        rows += [
            {"store": store.path.name, "kind": kind.lower(), "texts": len(ids), "studies": ids[:5]}
            for kind, ids in sorted(found.items(), key=lambda item: -len(item[1]))
        ]
    return rows


def _reports(store: Store) -> list[tuple[str, Any]]:
    studies: pd.DataFrame = store.studies
    return [
        (report, split)
        for report, split in zip(studies["report"], studies["split"], strict=True)
        if isinstance(report, str)
    ]
