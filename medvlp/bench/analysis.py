"""What stands beside the scores of a classification: calibration, and the gaps between subgroups of patients.

Guarantee: computed for every encoder at its full amount of labels, from kept predictions, with the resamples of the
suite; age, sex, view and site are those of the store, and what it does not say is a group of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.bench.cells import PREDICTIONS, VALIDATION
from medvlp.bench.kept import read_predictions
from medvlp.bench.stats import RULE, group
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.calibration import (
    Binning,
    Scaling,
    brier_parts,
    calibration_error,
    fit_platt,
    fit_temperature,
    resampled_calibration_error,
)
from medvlp.metrics.classification import ClassificationScoring
from medvlp.metrics.intervals import interval
from medvlp.metrics.subgroups import NOT_KNOWN, Group, age_bands, subgroups
from medvlp.types import Predictions

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.bench.cells import Finished
    from medvlp.config.suite import SuiteConfig
    from medvlp.store.array_store import Store

ATTRIBUTES = ("age", "sex", "view", "site")
KEYS = ("task", "task_version", "dataset", "protocol", "fraction", "shots", "encoder")


def with_all_labels(cells: Iterable[Finished]) -> list[list[Finished]]:
    """Return the cells of each setting of a classification with all training labels, or without any."""
    return [
        members
        for (_, _, fraction, shots, _), members in group(cells).items()
        if fraction == 1 and not shots and _kind(members[0]) == "classification"
    ]


def subgroup_rows(cells: Iterable[Finished], stores: dict[str, Store], suite: SuiteConfig) -> list[dict[str, Any]]:
    """Return the rows of `subgroups.json`: each group's leading score and its gap, for every setting and attribute."""
    rows = []
    about = {name: store.samples().set_index("image_id") for name, store in stores.items()}
    for members in with_all_labels(cells):
        record, metric = members[0].record, members[0].leading
        rule = ClassificationScoring()
        given = (rule.answers(metric, read(cell, PREDICTIONS), thresholds_of(cell)) for cell in members)
        answers = [one for one in given if one is not None]
        first = answers[0]
        resamples = Resamples.draw(
            first.patient_ids, suite.bootstrap_resamples, suite.bootstrap_seed, record["dataset"]
        )
        facts = about[record["dataset"]].loc[list(first.sample_ids)]
        for attribute in ATTRIBUTES:
            names = groups_of(facts, attribute)
            if len(set(names) - {NOT_KNOWN}) > 1:
                found = subgroups(answers, names, resamples, suite.alpha)
                own = {key: record[key] for key in KEYS} | {"metric": metric, "attribute": attribute, "rule": RULE}
                rows += [own | _group_row(one) for one in found]
    return rows


def groups_of(facts: pd.DataFrame, attribute: str) -> list[str]:
    """Return the group of each sample; ages in bands."""
    if attribute not in facts:
        return [NOT_KNOWN] * len(facts)
    if attribute == "age":
        return age_bands(facts["age"].to_numpy(dtype="float64"))
    column = facts[attribute]
    return column.astype(object).where(column.notna(), NOT_KNOWN).astype(str).tolist()


def _group_row(one: Group) -> dict[str, Any]:
    return {
        "group": one.name,
        "label": one.label,
        "n": one.samples,
        "patients": one.patients,
        "support": one.support,
        "value": one.value,
        "low": one.bounds.low,
        "high": one.bounds.high,
        "small": one.small,
        "reference": one.reference,
        "gap": one.gap,
        "gap_low": one.gap_bounds.low,
        "gap_high": one.gap_bounds.high,
    }


def calibration_rows(cells: Iterable[Finished], suite: SuiteConfig) -> list[dict[str, Any]]:
    """Return the rows of `calibration.json`, one per setting, label and cell.

    Each has the calibration error with bins of equal width and of equal mass, the parts of the Brier score (bins of
    equal width), and both errors after temperature and Platt scaling that were fitted on the validation predictions.
    """
    rows = []
    for cell in (cell for members in with_all_labels(cells) for cell in members):
        record = cell.record
        test, validation = read(cell, PREDICTIONS), read(cell, VALIDATION)
        resamples = Resamples.draw(test.patient_ids, suite.bootstrap_resamples, suite.bootstrap_seed, record["dataset"])
        drawn = resamples, Resamples.jackknife(test.patient_ids)
        for k, label in enumerate(test.label_names):
            own = test.labels[:, k], test.scores[:, k]
            parts = brier_parts(*own)
            row = {key: record[key] for key in KEYS} | {"seed": record["seed"], "draw": record["draw"], "label": label}
            row |= {"rule": RULE, "n": int((~np.isnan(own[0])).sum()), "errors": _errors(*own, *drawn, suite.alpha)}
            row["brier"] = {
                "value": parts.brier,
                "reliability": parts.reliability,
                "resolution": parts.resolution,
                "uncertainty": parts.uncertainty,
                "within": parts.within,
            }
            if label in validation.label_names:
                at = list(validation.label_names).index(label)
                fitted_on = validation.labels[:, at], validation.scores[:, at]
                for name, fit in (("temperature", fit_temperature), ("platt", fit_platt)):
                    row[name] = _scaled(fit(*fitted_on), *own, *drawn, suite.alpha)
            rows.append(row)
    return rows


def _errors(
    labels: np.ndarray, scores: np.ndarray, resamples: Resamples, jackknife: Resamples, alpha: float
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    kinds: tuple[Binning, ...] = ("width", "mass")
    for binning in kinds:
        value = calibration_error(labels, scores, binning=binning)
        drawn, without = (
            resampled_calibration_error(labels, scores, each, binning=binning) for each in (resamples, jackknife)
        )
        bounds = interval(value, drawn, without, alpha, raised=True)
        found[f"equal_{binning}"] = {"value": value, "low": bounds.low, "high": bounds.high}
    return found


def _scaled(
    scaling: Scaling | None,
    labels: np.ndarray,
    scores: np.ndarray,
    resamples: Resamples,
    jackknife: Resamples,
    alpha: float,
) -> dict[str, Any] | None:
    """Return a scaling and what it does to the errors; None where validation holds one class alone."""
    if scaling is None:
        return None
    after = scaling.apply(scores)
    return {
        "slope": scaling.slope,
        "intercept": scaling.intercept,
        "errors": _errors(labels, after, resamples, jackknife, alpha),
        "brier": brier_parts(labels, after).brier,
    }


def read(cell: Finished, name: str) -> Predictions:
    """Return the kept predictions of a classification: `predictions.parquet` or `validation.parquet`."""
    return Predictions.from_frame(read_predictions(cell, name, unstamped=True))


def thresholds_of(cell: Finished) -> dict[str, float]:
    """Return label -> threshold of a cell, NaN where there is none."""
    return {name: np.nan if value is None else float(value) for name, value in cell.result["thresholds"].items()}


def _kind(cell: Finished) -> str:
    return str(cell.result.get("config", {}).get("task", {}).get("type"))
