"""The texts of a training run: those of the images of a store, or sentences of other patients; and their tokenizer.

Guarantee: texts left out are counted; the tokenizer is trained on texts of training images alone.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvlp.data.texts import report_text
from medvlp.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from jaxtyping import Int

    from medvlp.config.train import PretrainConfig
    from medvlp.store.array_store import Store
    from medvlp.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

SHORTEST_SENTENCE = 2
"""Words of the shortest sentence that may stand for an image."""


@dataclass(frozen=True)
class PairedTexts:
    """Texts of images.

    Args:
        texts: Those of a study follow each other.
        first: Row of the first text of every image of the store, -1 without text.
        count: Texts of every image.
    """

    texts: list[str]
    first: Int[np.ndarray, " n"]
    count: Int[np.ndarray, " n"]

    def of_images(self, rows: Int[np.ndarray, " m"]) -> list[str]:
        """Return the texts of these images, each once."""
        firsts, where = np.unique(self.first[rows], return_index=True)
        counts = self.count[rows][where]
        return [self.texts[first + k] for first, count in zip(firsts, counts, strict=True) for k in range(count)]


def paired_texts(
    store: Store,
    sections: Sequence[str],
    unit: Literal["report", "sentence", "part"],
    captions: Mapping[str, str] | None = None,
) -> PairedTexts:
    """Return the texts of the images: their study's report, its sentences, or the report as often as parts of it.

    Args:
        store: The store.
        sections: Sections of a report that are taken.
        unit: Whole reports, their sentences, or reports and parts of them.
        captions: Study -> what stands for its report, where the store has no reports.
    """
    from medvlp.text.organs import organ_parts
    from medvlp.text.sections import split_sentences

    texts: list[str] = []
    first: dict[str, int] = {}
    count: dict[str, int] = {}
    for study, report in (reports_of(store) or captions or {}).items():
        text = report_text(report, sections)
        if unit == "part":
            of_organs = organ_parts(text)
            parts = [text] * max(1, len(of_organs)) + list(of_organs)
        else:
            parts = [text] if unit == "report" else split_sentences(text)
        parts = [part for part in parts if len(part.split()) >= (SHORTEST_SENTENCE if unit == "sentence" else 1)]
        if parts:
            first[study], count[study] = len(texts), len(parts)
            texts += parts
    studies = store.images["study_id"]
    rows = (
        np.array([of.get(study, missing) for study in studies], np.int64) for of, missing in ((first, -1), (count, 0))
    )
    return PairedTexts(texts, *rows)


def reports_of(store: Store) -> dict[str, str]:
    """Return study -> report, for studies that have one."""
    studies = store.studies
    if "report" not in studies:
        return {}
    pairs = zip(studies["study_id"], studies["report"], strict=True)
    return {study: report for study, report in pairs if isinstance(report, str) and report.strip()}


def report_corpus(config: PretrainConfig, store: Store, of_split: np.ndarray, facts: dict[str, int]) -> list[str]:
    """Return the reports of `data.reports`, or of the store's own training studies; count them in `facts`."""
    if config.data.reports is not None:
        from medvlp.sources import SOURCES

        source = SOURCES.get(config.data.reports_source)(config.data.reports)
        reports = [study.report for study in source.studies() if study.report]
        if source.problems:
            reasons = Counter(problem.reason for problem in source.problems)
            listed = "; ".join(f"{number} x {reason}" for reason, number in reasons.most_common(5))
            logger.warning("%d reports are left out: %s", len(source.problems), listed)
        facts |= {"reports": len(reports), "reports_left_out": len(source.problems)}
        return reports
    studies = set(store.images["study_id"][of_split])
    reports = [report for study, report in reports_of(store).items() if study in studies]
    if reports:
        return reports
    raise UserError(
        "The method needs reports: the store has none, and data.reports is not set.",
        config.data.store,
        "Set data.reports to a report collection, e.g. NLMCXR_reports.tgz.",
    )


def get_tokenizer(config: PretrainConfig, texts: Sequence[str], folder: Path, keep: bool) -> Tokenizer:
    """Return the tokenizer in `folder` (if `keep`), else `method.text.folder`'s, else one trained on the texts."""
    from medvlp.text.tokenizer import Tokenizer

    assert config.method.text is not None
    if keep:
        return Tokenizer.from_folder(folder)
    if config.method.text.folder is not None:
        tokenizer = Tokenizer.from_folder(config.method.text.folder)
    else:
        tokenizer = Tokenizer.train(list(texts), config.method.text.vocab_size)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tokenizer.save(part)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return tokenizer
