"""The scorers of BenchX as they are, so that its tables can be reproduced. Right values are in the other modules.

Guarantee: every function gives what BenchX (yangzhou12/BenchX, release b874fa6) and the mmsegmentation that it uses
give, roundings and faults included; each docstring names the faults. Probabilities are made by torch, whose rounding
decides ties.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from medvlp.metrics.classification import auroc
from medvlp.metrics.overlap import dice, iou
from medvlp.metrics.retrieval import Places, precision_at, recall_at

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

RETRIEVAL_AT = (1, 5, 10)


def multiclass_scores(labels: Int[np.ndarray, " n"], logits: Float[np.ndarray, "n c"]) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of class 1 at the largest logit (per cent, two decimals), and AUROC.

    AUROC (not in per cent) is the mean over the classes, each against the rest; with two classes both are the same but
    for ties. Precision, recall and F1 exist for two classes only.

    Args:
        labels: Class of each sample.
        logits: Score of each class.
    """
    import torch
    from sklearn import metrics

    classes = logits.shape[1]
    probabilities = torch.from_numpy(logits).softmax(dim=-1).numpy()
    called = logits.argmax(axis=1)
    found = {"multiclass_accuracy": _per_cent(metrics.accuracy_score(labels, called))}
    if classes == 2:
        scorers = (metrics.precision_score, metrics.recall_score, metrics.f1_score)
        for name, score in zip(("precision", "recall", "f1"), scorers, strict=True):
            found[f"multiclass_{name}"] = _per_cent(score(labels, called, zero_division=0))
    each = [auroc((labels == k).astype(np.float64), probabilities[:, k]) for k in range(classes)]
    return found | {"multiclass_auroc": float(np.mean(each))}


@dataclass(frozen=True)
class MultilabelScores:
    """Scores of several findings.

    Args:
        class_auroc: One per finding, not in per cent; NaN where one class is missing.
        scores: `multilabel_auroc` (their plain mean, so NaN if any is) and, in per cent, micro and macro precision,
            recall and F1.
        threshold: Probability above which a finding counts as called.
    """

    class_auroc: Float[np.ndarray, " k"]
    scores: dict[str, float]
    threshold: float


def multilabel_scores(labels: Int[np.ndarray, "n k"], logits: Float[np.ndarray, "n k"]) -> MultilabelScores:
    """Return AUROC, and F1 at one threshold for all findings, chosen on the very samples that it scores.

    Faults: float32 logits above about 17 all become probability 1 and lose their order; the threshold is that of best
    F1 for "at least", yet a finding is called only above it; a finding without positives and calls has F1 1.

    Raises:
        ValueError: A label is neither 0 nor 1: BenchX has no rule for missing labels.
    """
    import torch
    from sklearn import metrics

    if not np.isin(labels, (0, 1)).all():
        raise ValueError("BenchX has no rule for labels other than 0 and 1; leave such samples out")
    probabilities = torch.from_numpy(logits).sigmoid().numpy()
    f1_values, thresholds = _f1_curve(labels.ravel(), probabilities.ravel())
    threshold = thresholds[np.argmax(f1_values[:-1])]
    called = probabilities > threshold
    class_auroc = np.array([auroc(labels[:, k], probabilities[:, k]) for k in range(labels.shape[1])])
    scores = {"multilabel_auroc": float(class_auroc.mean())}
    for average in ("micro", "macro"):
        for name, score in (
            ("precision", metrics.precision_score),
            ("recall", metrics.recall_score),
            ("f1", metrics.f1_score),
        ):
            scores[f"{average}_{name}"] = _per_cent(score(labels, called, average=average, zero_division=1))
    return MultilabelScores(class_auroc, scores, float(threshold))


def _f1_curve(labels: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return F1 of "at least" for each distinct score, lowest first, then 0 for none called; and these scores."""
    from sklearn.metrics import precision_recall_curve

    precision, recall, thresholds = precision_recall_curve(labels, scores)
    total = precision + recall
    return np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total != 0), thresholds


def _per_cent(value: float) -> float:
    return round(float(value) * 100, 2)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds as BenchX prints them.

    Fault: the deviation is that of the population, which of three seeds is 0.82 times that of the sample.
    """
    return float(np.mean(values)), float(np.std(values))


@dataclass(frozen=True)
class ZeroShotScores:
    """Zero-shot classification.

    Args:
        logits: Standardised similarity of each image and class.
        mean_best_f1: Mean over the classes of the highest F1 that any threshold gives (`F1-score`).
        mean_accuracy: Mean over the classes of the accuracy above that threshold (`threshold_acc`).
        accuracy: Share of images whose class has the largest logit, in per cent with two decimals (`base_acc`).
    """

    logits: Float[np.ndarray, "n c"]
    mean_best_f1: float
    mean_accuracy: float
    accuracy: float


def zero_shot_scores(
    similarities: Sequence[Float[np.ndarray, "n t"]], labels: Int[np.ndarray, "n c"]
) -> ZeroShotScores:
    """Score the similarities of images with the prompts of each class.

    A class counts by its most similar prompt. Faults: each class is standardised over the images at hand, so that an
    image's answer depends on the others; thresholds are chosen on the scored images; the F1 is that of "at least", the
    accuracy that of "above".

    Args:
        similarities: One table per class, a column per prompt.
        labels: 1 for the class of each image, or several.
    """
    from sklearn.metrics import accuracy_score

    logits = np.stack([table.max(axis=1) for table in similarities], axis=1)
    if len(logits) > 1:
        with np.errstate(invalid="ignore", divide="ignore"):
            logits = (logits - logits.mean(axis=0)) / logits.std(axis=0)
    best, accuracies = [], []
    for k in range(logits.shape[1]):
        f1_values, thresholds = _f1_curve(labels[:, k], logits[:, k])
        best.append(f1_values.max())
        accuracies.append(accuracy_score(labels[:, k], logits[:, k] > thresholds[np.argmax(f1_values)]))
    right = logits.argmax(axis=1) == labels.argmax(axis=1)
    return ZeroShotScores(logits, float(np.mean(best)), float(np.mean(accuracies)), _per_cent(right.mean()))


def same_class(labels: Int[np.ndarray, "n *k"]) -> Bool[np.ndarray, "n n"]:
    """Return which samples have the same class, or the same row of labels."""
    key = np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)
    return key[:, None] == key


def retrieval_outcomes(
    similarity: Float[np.ndarray, "n n"], labels: Int[np.ndarray, "n *k"]
) -> dict[str, Float[np.ndarray, " n"]]:
    """Return `Hit@K` and `Precision@K` of each image that looks for texts; BenchX reports their means.

    A text is right if its label row is that of the image, not only its own report: chance is far above 1 / n. BenchX
    divides by K even where there are fewer texts. Equal similarities, whose order BenchX leaves to the sort, count by
    expectation.

    Args:
        similarity: Of image (row) and text (column).
        labels: Class or label row of each pair.
    """
    right = same_class(labels)
    places = Places.of(similarity, right)
    hits = {f"Hit@{k}": recall_at(places, k) for k in RETRIEVAL_AT}
    return hits | {f"Precision@{k}": precision_at(similarity, right, k) for k in RETRIEVAL_AT}


def retrieval_chances(labels: Int[np.ndarray, "n *k"]) -> dict[str, Float[np.ndarray, " n"]]:
    """Return what a random order of the texts gives for each of `retrieval_outcomes`."""
    return retrieval_outcomes(np.zeros((len(labels), len(labels))), labels)


@dataclass(frozen=True)
class SegmentationScores:
    """Overlap of all images together.

    Args:
        dice: Of each class, background first; NaN where neither map has it.
        iou: Likewise.
        fscore: Equal to Dice, but NaN where a class has no right pixel and Dice is 0.
        accuracy: Share of a class's pixels that have it in the prediction.
        overall_accuracy: Share of all pixels that are right (aAcc).
        means: mDice, mIoU, mFscore, mAcc over the classes that have a value, in per cent with two decimals.
    """

    dice: Float[np.ndarray, " c"]
    iou: Float[np.ndarray, " c"]
    fscore: Float[np.ndarray, " c"]
    accuracy: Float[np.ndarray, " c"]
    overall_accuracy: float
    means: dict[str, float]


def segmentation_scores(counts: Int[np.ndarray, "n c 3"]) -> SegmentationScores:
    """Return mmsegmentation's scores of some images (`IoUMetric`), of which BenchX reports mDice.

    The pixels of all images are added before anything is divided, and background is a class: its Dice of nearly 100
    makes up half of the mean.

    Args:
        counts: `overlap_counts` of each image, with 255 ignored.
    """
    total = counts.sum(axis=0).astype(np.float64)
    both, predicted, reference = total.T
    occurs = np.where(predicted + reference > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = both / predicted, both / reference
        values = {
            "Dice": dice(total, "scored") * occurs,
            "IoU": iou(total, "scored") * occurs,
            "Fscore": 2 * precision * recall / (precision + recall),
            "Acc": recall,
        }
        overall = float(both.sum() / reference.sum())
    means = {f"m{name}": _rounded_mean(value) for name, value in values.items()}
    return SegmentationScores(values["Dice"], values["IoU"], values["Fscore"], values["Acc"], overall, means)


def _rounded_mean(values: Float[np.ndarray, " c"]) -> float:
    known = values[~np.isnan(values)]
    return float(np.round(known.mean() * 100, 2)) if len(known) else float("nan")
