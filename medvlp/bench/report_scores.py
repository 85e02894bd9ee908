"""The numbers of a report: settings, their cells, and scores over seeds and draws.

Guarantee: a setting without cells carries the reason why it has none; nothing is filled in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASELINES = ("random", "metadata", "image_statistics", "majority", "location_prior")
PROTOCOL_NAMES = {
    "linear_probe": "Linear probe",
    "frozen": "Frozen encoder",
    "fine_tune": "Fine-tuning",
    "knn": "k nearest neighbours",
    "few_shot": "Few-shot",
    "zero_shot": "Zero-shot",
}
METRICS = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "f1": "F1",
    "legacy_auroc": "AUROC, as BenchX",
    "argmax_f1": "F1 at argmax, as BenchX",
    "pooled_f1": "F1 at a pooled threshold, as BenchX",
    "ece": "ECE",
    "brier": "Brier",
    "accuracy": "Accuracy",
    "pointing": "Pointing",
    "cell_auroc": "AUROC of cells",
    "dice": "Dice",
    "iou": "IoU",
    "hd95_mm": "HD95 (mm)",
    "hd95_pixels": "HD95 (pixels)",
    "nsd_mm": "NSD",
    "nsd_pixels": "NSD (pixels)",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "pooled_dice": "Pooled Dice, with background",
    "pooled_iou": "Pooled IoU, with background",
    "recall_at_10": "Recall@10",
    "recall_at_5": "Recall@5",
    "recall_at_1": "Recall@1",
    "median_rank": "Median rank",
    "overlap_at_5": "Overlap@5",
    "overlap_at_1": "Overlap@1",
    "overlap_at_10": "Overlap@10",
    "overlap_at_50": "Overlap@50",
    "finding_f1": "Findings F1",
    "finding_f1_micro": "Findings F1, micro",
    "finding_precision": "Findings precision",
    "finding_recall": "Findings recall",
    "chexbert_f1_micro": "CheXbert F1, micro",
    "chexbert_similarity": "CheXbert similarity",
    "radgraph_f1": "RadGraph F1",
    "rate_score": "RaTEScore",
    "green": "GREEN",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "meteor": "METEOR",
    "cider": "CIDEr",
    "cider_d": "CIDEr-D",
    "mae": "Mean absolute error",
    "mae_gain": "Gain on the training mean",
    "bias": "Bias",
    "video_accuracy": "Accuracy within videos",
    "video_f1": "F1 within videos",
}
LOWER_IS_BETTER = ("ece", "brier", "median_rank", "hd95_mm", "hd95_pixels", "mae")


@dataclass(frozen=True, order=True)
class Setting:
    """What one number of the table stands for, seeds and draws aside."""

    task: str
    protocol: str
    fraction: float
    shots: int
    encoder: str

    @property
    def amount(self) -> str:
        """Return how many labels were used: `10 %`, `5 shots`, or nothing for zero-shot."""
        if self.shots:
            return f"{self.shots} shot{'s' if self.shots > 1 else ''}"
        return "no labels" if self.protocol == "zero_shot" else f"{100 * self.fraction:.4g} %"

    @property
    def id(self) -> str:
        """Return the name of the setting's record in the page."""
        import hashlib

        return "r" + hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Score:
    """One score over all seeds and draws of a setting. `low` and `high` bound its 95 % interval."""

    metric: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None
    chance: float | None = None
    """What an answer drawn at random gets."""

    def overlaps(self, other: Score) -> bool:
        """Return whether both intervals are known and have a value in common."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return False
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Cell:
    """One finished cell: its folder, `cell.json` and `result.json`."""

    hash: str
    folder: Path
    info: dict[str, Any]
    result: dict[str, Any]

    def score(self, metric: str, label: str) -> Score | None:
        """Return the cell's own score of a metric and label, or None."""
        rows = self.result.get("scores", [])
        return next((score_of(row) for row in rows if (row.get("metric"), row.get("label")) == (metric, label)), None)

    @property
    def about(self) -> dict[str, Any]:
        """Return what names the cell, for people: data set, amount, seed and draw, then its hashes."""
        keys = ("dataset", "fraction", "shots", "seed", "draw")
        hashes = {f"{name} hash": value for name, value in (self.info.get("hashes") or {}).items()}
        return {key: self.info[key] for key in keys if self.info.get(key) is not None} | hashes


@dataclass(frozen=True)
class Group:
    """All cells of a setting and their joint scores; without cells, the reason why there are none."""

    setting: Setting
    cells: tuple[Cell, ...] = ()
    scores: tuple[Score, ...] = ()
    reason: str = ""
    pooled: bool = True
    """False where the runner has not summed up the seeds yet and the interval spans those of the cells."""
    leaks: tuple[str, ...] = ()
    """What the audit says of its cells."""
    source: str = ""
    """The publication that its numbers are from; empty where they were measured."""

    @property
    def name(self) -> str:
        """Return the encoder as tables name it: published numbers stand in rows of their own."""
        return f"{self.setting.encoder} ({self.source})" if self.source else self.setting.encoder

    def score(self, metric: str, label: str) -> Score | None:
        """Return the score of a metric and label that has a value, or None."""
        return next((s for s in self.scores if s.metric == metric and s.label == label and s.value is not None), None)

    @property
    def shared(self) -> dict[str, Any]:
        """Return what of `Cell.about` all cells have in common."""
        first, *others = [cell.about for cell in self.cells]
        return {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}

    @property
    def seeds(self) -> int:
        """Return the number of different seeds."""
        return len({cell.info.get("seed") for cell in self.cells})

    @property
    def draws(self) -> int:
        """Return the number of different label subsets."""
        return len({cell.info.get("draw") for cell in self.cells})

    @property
    def versions(self) -> str:
        """Return the task version; several, if cells of different versions lie side by side."""
        return ", ".join(sorted({str(cell.info.get("task_version", "?")) for cell in self.cells}))


def is_baseline(encoder: str) -> bool:
    """Return whether an encoder is one of the baselines that every suite runs beside."""
    return encoder.replace("/", ":").split(":")[0] in BASELINES


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


def setting_of(record: dict[str, Any]) -> Setting:
    """Return the setting that a cell, an aggregate row, a failure or a plan entry belongs to."""
    protocol = str(record.get("protocol"))
    free = protocol in ("zero_shot", "few_shot")
    return Setting(
        task=str(record.get("task")),
        protocol=protocol,
        fraction=1.0 if free else float(record.get("fraction") or 1.0),
        shots=int(record.get("shots") or 0) if protocol == "few_shot" else 0,
        encoder=str(record.get("encoder")),
    )


def score_of(row: dict[str, Any]) -> Score:
    """Return a score from its JSON record."""
    n = number(row.get("n"))
    return Score(
        metric=str(row.get("metric")),
        label=str(row.get("label")),
        value=number(row.get("value")),
        low=number(row.get("low")),
        high=number(row.get("high")),
        n=None if n is None else int(n),
        chance=0.5 if row.get("metric") == "auroc" else number(row.get("chance")),
    )


def span(scores: Sequence[Score]) -> Score:
    """Return the mean of the cells' values, with an interval from the lowest lower to the highest upper bound."""
    values = [s.value for s in scores if s.value is not None]
    lows, highs = [s.low for s in scores if s.low is not None], [s.high for s in scores if s.high is not None]
    return Score(
        metric=scores[0].metric,
        label=scores[0].label,
        value=sum(values) / len(values) if values else None,
        low=min(lows) if lows else None,
        high=max(highs) if highs else None,
        n=scores[0].n,
        chance=scores[0].chance,
    )
