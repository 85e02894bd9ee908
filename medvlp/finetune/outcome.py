"""What a fine-tuned network answers: decided on validation, scored on test.

Guarantee: calibration and thresholds come from validation samples, every score and gap from test samples; intervals are
over patients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from medvlp.bench.report_scores import METRICS
from medvlp.bench.scored import scored
from medvlp.config.preprocessing import AnyPreprocessing, preprocessing_of
from medvlp.errors import UserError
from medvlp.finetune.decide import decide
from medvlp.finetune.notes import Note, sentences
from medvlp.finetune.task import balance
from medvlp.finetune.texts import findings_of, usual_scores
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.scoring import SCORINGS
from medvlp.metrics.subgroups import NOT_KNOWN, age_bands, subgroups
from medvlp.tasks._tuned import Decision, calibrated
from medvlp.tasks.report_generation import Reports
from medvlp.tasks.vqa import Replies

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int
    from torch import nn

    from medvlp.config.finetune import FinetuneConfig
    from medvlp.metrics.scoring import Scoring
    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Kept, Samples, Task

GAPS = {
    "classification": ("auroc", "sensitivity", "specificity"),
    "segmentation": ("dice",),
    "volume_segmentation": ("dice",),
    "report_generation": (),
    "vqa": ("accuracy",),
}
"""Metrics that are looked at group by group."""
FEW_PATIENTS = 10
"""Test patients with the rarer class, or with the structure, below which a score is doubtful."""
USUAL = {
    **dict.fromkeys(("finding_f1_micro", "bleu_4"), "the most frequent training report written for every study"),
    "accuracy": "the most frequent training answer to questions of the kind",
}
"""Metrics by which texts must beat the usual ones -> what these are."""
CHANCE = {"auroc": 0.5}
"""What guessing gets."""


@dataclass(frozen=True)
class Outcome:
    """A judged network.

    Args:
        network: In evaluation mode.
        preprocessing: From a file to its input.
        decisions: Of each label; none for masks.
        validation: Answers on validation.
        test: Answers on test.
        raw: Test probabilities before calibration, `[n k]`; None for masks.
        scores: As in `result.json` of the benchmark.
        subgroups: One row per attribute, metric, label and group.
        balance: Positives, negatives and unknown labels by split; of reports, findings by the rule labeler.
        usual: Metric -> score of the most frequent training report, written for every study, or of the most frequent
            training answer to questions of a kind.
        notes: What has to be known beside the scores.
        groups: Attribute -> group of each row of `test`; see `groups_of`.
        rows: Rows of the images table behind `test`, where a row is a question.
    """

    network: nn.Module
    preprocessing: AnyPreprocessing
    decisions: tuple[Decision, ...]
    validation: Kept
    test: Kept
    raw: Float[np.ndarray, "n k"] | None
    scores: list[dict[str, Any]]
    subgroups: list[dict[str, Any]]
    balance: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    usual: dict[str, float] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=dict)
    rows: Int[np.ndarray, " n"] | None = None

    @property
    def thresholds(self) -> dict[str, float]:
        """Label -> threshold, NaN where there is none."""
        return {one.label: float("nan") if one.threshold is None else one.threshold for one in self.decisions}


def outcome_of(
    config: FinetuneConfig, task: Task, tunable: Any, network: nn.Module, samples: dict[str, Samples], store: Store
) -> Outcome:
    """Decide on validation and judge on test.

    Args:
        config: Decision and bootstrap.
        task: The task.
        tunable: Its side of the fine-tuning, which was `network`'s.
        network: Trained.
        samples: Of every split.
        store: The store.

    Raises:
        UserError: The network gives numbers that are not finite.
    """
    decisions: tuple[Decision, ...] = ()
    raw, notes = None, list[Note]()
    validation: Kept
    test: Kept
    if config.task == "classification":
        logits = {split: _finite(tunable.logits(network, samples[split])) for split in ("val", "test")}
        decisions, notes = decide(samples["val"], logits["val"], config.decision)
        raw = expit(logits["test"])
        validation, test = (samples[split].predictions(calibrated(decisions, logits[split])) for split in logits)
    else:
        validation, test = (task.kept(tunable, network, samples[split]) for split in ("val", "test"))
    scoring = SCORINGS.get(task.rule)()
    thresholds = {one.label: float("nan") if one.threshold is None else one.threshold for one in decisions}
    found = scored(scoring, test, thresholds, store.dataset, config)
    names, known = [label.name for label in task.config.labels], {split: own.labels for split, own in samples.items()}
    usual: dict[str, float] = {}
    if isinstance(test, Reports):
        names, known = findings_of(tunable.references, samples)
        usual = usual_scores(tunable.references, samples["train"], test, task.scoring)
    rows = samples["test"].rows if isinstance(test, Replies) else None
    if isinstance(test, Replies):
        names = []
        usual = {row["metric"]: row["chance"] for row in found.rows if row["chance"] is not None}
    groups = groups_of(store, test, rows)
    return Outcome(
        network,
        preprocessing_of(store.config, tunable.input),
        decisions,
        validation,
        test,
        raw,
        found.rows,
        gaps(config, scoring, test, thresholds, groups, store.dataset),
        balance(names, known),
        sentences([*_doubtful(found.rows, usual), *notes]),
        usual,
        groups,
        rows,
    )


def _finite(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    if not np.isfinite(logits).all():
        raise UserError("The network gives numbers that are not finite.", "", "Lower train.lr, and train again.")
    return logits


def _doubtful(rows: Sequence[dict[str, Any]], usual: dict[str, float]) -> Iterator[Note]:
    """Yield what is to be doubted of the leading score of each label, and of texts beside the usual report."""
    for row in rows:
        name = row["metric"]
        if row["label"] == "macro" and name in USUAL and name in usual and not row["low"] > usual[name]:
            yield f"No better than {USUAL[name]}", METRICS[name]
    leading = [row for row in rows if row["metric"] == rows[0]["metric"] and row["label"] != "macro"]
    for row in leading:
        if row["metric"] in CHANCE and not row["low"] > CHANCE[row["metric"]]:
            yield "No better than chance, as far as the test patients tell", row["label"]
    for row in leading:
        if row["support"] is not None and row["support"] < FEW_PATIENTS:
            yield f"Test scores that hang on fewer than {FEW_PATIENTS} patients", f"{row['label']} ({row['support']})"


def groups_of(store: Store, kept: Kept, rows: Int[np.ndarray, " n"] | None = None) -> dict[str, list[str]]:
    """Return attribute -> group of each sample, for the attributes of which more than one group is known.

    A study has several views: it has no group of that attribute.

    Args:
        store: The store.
        kept: Answers; their ids are those of images or studies, unless `rows` are given.
        rows: Rows of the images table.
    """
    frame = store.samples()
    if rows is None:
        key = "study_id" if isinstance(kept, Reports) else "image_id"
        frame = frame.drop_duplicates(key)
        frame = frame.set_index(frame[key].astype(str)).loc[list(kept.sample_ids)]
    else:
        frame = frame.iloc[rows]
    found = {
        "age": age_bands(frame["age"].to_numpy(dtype=np.float64)),
        "sex": _words(frame["sex"]),
        "view": _words(frame["view"]),
        "site": _words(frame["site"]),
    }
    if isinstance(kept, Reports):
        del found["view"]
    return {name: groups for name, groups in found.items() if len(set(groups) - {NOT_KNOWN}) > 1}


def _words(column: pd.Series) -> list[str]:
    return column.astype(object).where(column.notna(), NOT_KNOWN).astype(str).tolist()


def gaps(
    config: FinetuneConfig,
    scoring: Scoring[Any],
    test: Kept,
    thresholds: dict[str, float],
    groups: dict[str, list[str]],
    dataset: str,
) -> list[dict[str, Any]]:
    """Return the score of every group of test patients, and its gap to the largest one."""
    resamples = Resamples.draw(test.patient_ids, config.bootstrap_resamples, config.bootstrap_seed, dataset)
    rows = []
    for metric in GAPS[config.task]:
        answers = scoring.answers(metric, test, thresholds)
        if answers is None:
            continue
        for attribute, of in groups.items():
            for one in subgroups([answers], of, resamples, config.alpha):
                bounds, gap = one.bounds, one.gap_bounds
                row = {name: value for name, value in asdict(one).items() if name not in ("bounds", "gap_bounds")}
                row |= {"low": bounds.low, "high": bounds.high, "gap_low": gap.low, "gap_high": gap.high}
                rows.append({"attribute": attribute, "metric": metric} | row)
    return rows
