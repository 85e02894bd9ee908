"""How often intervals hold the truth: simulated test sets of patients with several images, scored as a benchmark does.

    python benchmarks/coverage.py [--draws 2000] [--out benchmarks/results/coverage.json]

Each draw is a new test set from a known law: its score, resamples, jackknife and interval are those of
`medvlp.metrics`. An interval of 95 % should hold the true score in 95 of 100 draws; over 2,000 draws that share has a
standard error of half a per cent. Required are 95 % ± 1.5 %; smaller test sets are measured and told, too. Beside it
stands the plain percentile interval.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from medvlp.metrics.bootstrap import Resamples, bootstrap_values
from medvlp.metrics.classification import ClassificationScoring, metric_value
from medvlp.metrics.intervals import interval, percentile_interval
from medvlp.types import Predictions

SAME_RESAMPLES = 100
"""Draws that share their resamples: drawing these anew for each would take most of the time."""


@dataclass(frozen=True)
class Scenario:
    """A law of test sets.

    Args:
        kind: `auroc`, or `mean` of an outcome between 0 and 1.
        truth: Its true value.
        patients: Patients of a test set.
        images: Most images of a patient; each has 1 to that many.
        prevalence: Share of positive images (`auroc`).
        spread: Of the outcome (`mean`): 0 is yes or no, larger is narrower.
        required: Whether the share must be 95 % ± 1.5 %.
    """

    kind: str
    truth: float
    patients: int
    images: int = 1
    prevalence: float = 0.2
    spread: float = 0.0
    required: bool = True


@dataclass(frozen=True)
class Coverage:
    """Share of intervals that hold the truth, and of those that lie above and below it."""

    coverage: float
    above: float
    below: float
    percentile: float
    """Share of plain percentile intervals that hold it."""
    without: int
    """Test sets without an interval, as where one patient carries a class; they do not count."""


SCENARIOS = (
    Scenario("auroc", 0.80, 100, prevalence=0.5),
    Scenario("auroc", 0.80, 120, prevalence=0.1),
    Scenario("auroc", 0.65, 120),
    Scenario("auroc", 0.93, 120),
    Scenario("auroc", 0.80, 120, images=4),
    Scenario("auroc", 0.80, 300, images=4, prevalence=0.1),
    Scenario("mean", 0.80, 100, images=4),
    Scenario("mean", 0.90, 200),
    Scenario("mean", 0.70, 60, spread=2.0),
    Scenario("mean", 0.30, 100, images=4, spread=2.0),
    Scenario("auroc", 0.80, 40, prevalence=0.5, required=False),
    Scenario("auroc", 0.95, 60, required=False),
    Scenario("auroc", 0.97, 300, prevalence=0.03, required=False),
    Scenario("mean", 0.90, 30, spread=5.0, required=False),
    Scenario("mean", 0.95, 40, required=False),
)


def draw(scenario: Scenario, rng: np.random.Generator) -> tuple[np.ndarray, Predictions]:
    """Return the patient of each image and a test set; half of what varies is a patient's own."""
    images = rng.integers(1, scenario.images + 1, scenario.patients)
    patient = np.repeat(np.arange(scenario.patients), images)
    count = len(patient)

    def values(own: float) -> np.ndarray:
        shared = rng.standard_normal(scenario.patients)[patient]
        return own**0.5 * shared + (1 - own) ** 0.5 * rng.standard_normal(count)

    if scenario.kind == "auroc":
        labels = (values(0.7) < stats.norm.ppf(scenario.prevalence)).astype(float)
        scores = stats.norm.cdf(values(0.5) + stats.norm.ppf(scenario.truth) * np.sqrt(2) * labels)
    else:
        place = stats.norm.cdf(values(0.5))
        a, b = scenario.truth * scenario.spread, (1 - scenario.truth) * scenario.spread
        outcome = stats.beta.ppf(place, a, b) if scenario.spread else (place < scenario.truth).astype(float)
        # The Brier score of these is the mean outcome.
        labels, scores = np.zeros(count), np.sqrt(outcome)
    names = [f"p{i:05d}" for i in patient]
    return patient, Predictions(names, names, ["x"], labels[:, None], scores[:, None])


def simulate(scenario: Scenario, draws: int, resamples: int, seed: int) -> Coverage:
    """Return how often the 95 % interval of a scenario holds its truth."""
    rng = np.random.default_rng([seed, *_key(scenario)])
    metric, scoring = ("auroc" if scenario.kind == "auroc" else "brier"), ClassificationScoring()
    everybody = [f"p{i:05d}" for i in range(scenario.patients)]
    without = Resamples.jackknife(everybody).counts
    counts = np.zeros((0, 0))
    above = below = plain = counted = 0
    for i in range(draws):
        if i % SAME_RESAMPLES == 0:
            counts = Resamples.draw(everybody, resamples, seed=i + 1_000_000 * seed).counts
        patient, predictions = draw(scenario, rng)
        found, jackknife = (
            bootstrap_values(predictions, Resamples(each, patient), metrics=[metric])[metric][:, 0]
            for each in (counts, without)
        )
        value = metric_value(metric, predictions.labels[:, 0], predictions.scores[:, 0], np.nan)
        bounds = interval(value, found, jackknife, support=int(scoring.support(predictions, {})[metric][0]))
        if np.isnan(bounds.low):
            continue
        counted += 1
        above += bounds.low > scenario.truth
        below += bounds.high < scenario.truth
        percentile = percentile_interval(found)
        plain += percentile.low <= scenario.truth <= percentile.high
    shares = [1 - (above + below) / counted, above / counted, below / counted, plain / counted]
    return Coverage(*(round(share, 4) for share in shares), draws - counted)


def _key(scenario: Scenario) -> list[int]:
    return [
        int(scenario.kind == "mean"),
        *(round(1000 * value) for value in (scenario.truth, scenario.prevalence, scenario.spread)),
        scenario.patients,
        scenario.images,
    ]


def main() -> None:
    """Simulate, print and write the result; exit with 1 where a required share is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "coverage.json")
    given = parser.parse_args()
    rows, started = [], time.perf_counter()
    for scenario in SCENARIOS:
        found = simulate(scenario, given.draws, given.resamples, given.seed)
        within = abs(found.coverage - 0.95) <= 0.015
        rows.append(asdict(scenario) | asdict(found) | {"within": within})
        sys.stdout.write(json.dumps(rows[-1], ensure_ascii=False) + "\n")
        sys.stdout.flush()
    result = {
        "what": "share of 95 % intervals that hold the true score, over simulated test sets",
        "must_be": "0.95 ± 0.015 where required",
        "draws": given.draws,
        "resamples": given.resamples,
        "seed": given.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "scenarios": rows,
        "versions": {"numpy": np.__version__, "python": platform.python_version()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    if missed := [row for row in rows if row["required"] and not row["within"]]:
        raise SystemExit(f"{len(missed)} required scenarios are outside")


if __name__ == "__main__":
    main()
