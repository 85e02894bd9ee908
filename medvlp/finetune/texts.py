"""Reports of a fine-tuning: what they say of findings, what the usual one scores, reference beside generated.

Guarantee: the usual report is a training report, the same one for every study; which test studies are shown follows
from the texts alone, one per patient. A caption holds no id: a study is named by its row in `predictions/test.parquet`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.report_texts import differences, pieces
from medvlp.html import data_uri
from medvlp.metrics.clinical.findings import label_table
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.pictures import grey, stored_images
from medvlp.tasks._study_images import StudyImages
from medvlp.tasks.report_generation import Reports
from medvlp.text.labeler import FINDINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Int

    from medvlp.config.task import TaskConfig
    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Samples

    References = Callable[[Int[np.ndarray, " b"]], list[str]]

MOST = 12
"""Studies on the page."""


def findings_of(references: References, samples: Mapping[str, Samples]) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the findings, and of each split 1, 0 or NaN (left open, not mentioned) for each study and finding."""
    tables = {split: label_table(references(own.rows)) for split, own in samples.items()}
    return list(FINDINGS), {split: np.where(table < 0, np.nan, table) for split, table in tables.items()}


def usual_scores(references: References, train: Samples, test: Reports, scoring: str) -> dict[str, float]:
    """Return metric -> score of the most frequent training report, written for every test study."""
    usual = Counter(references(train.rows)).most_common(1)[0][0]
    written = replace(test, generated=[usual] * len(test.generated))
    found = SCORINGS.get(scoring)().scores(written, {})
    return {score.metric: score.value for score in found if score.label == "macro"}


def side_by_side(
    test: Reports, task: TaskConfig, store: Store, groups: Mapping[str, Sequence[str]], unknown: str
) -> list[dict[str, Any]]:
    """Return test studies with reference and generated report, those whose findings differ most first."""
    compared = [differences(*both) for both in zip(test.generated, test.references, strict=True)]
    wrong = np.array([len(one["missed"]) + len(one["added"]) for one in compared])
    chosen = list({test.patient_ids[row]: row for row in np.argsort(-wrong, kind="stable")[::-1].tolist()}.values())
    chosen = sorted(chosen, key=lambda row: (-wrong[row], row))[:MOST]
    images = StudyImages(store, task.views, task.reports.max_images)
    first = dict(zip(store.images["study_id"].astype(str).to_numpy()[images.first], images.first, strict=True))
    found = []
    for row in chosen:
        shown = images.of(np.array([first[test.sample_ids[row]]]))[0]
        pictures = stored_images(store, shown[shown >= 0])
        found.append(
            {
                "row": row,
                "about": ", ".join(of[row] for of in groups.values() if of[row] != unknown),
                "pictures": [data_uri(grey(picture)) for picture in pictures],
                "reference": pieces(test.references[row]),
                "generated": pieces(test.generated[row]),
                **compared[row],
            }
        )
    return found
