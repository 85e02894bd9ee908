"""Time of BLEU, ROUGE-L and CIDEr of 3,000 reports, beside the COCO caption scorers (pycocoevalcap), on one core.

    pip install pycocoevalcap
    python benchmarks/speed/text_metrics.py [--out benchmarks/results/text_metrics.json]

Both see the same tokenised texts and must agree to 1e-6, per report and over all. Times are seconds of the processor:
other work on the machine does not count. 1,000 resamples of patients are timed as well, with the document frequencies
of CIDEr counted anew in each; the scorers have no such thing.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import io
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.statistics import ReportStatistics
from medvlp.sources.phantom.findings import sample_findings, sickness
from medvlp.sources.phantom.patient import sample_patient, sample_posture, visit
from medvlp.sources.phantom.reports import write_report
from medvlp.text.report_words import simple_text

METRICS = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d")
MUST_BE = 5


def made_report(index: int, seed: int = 0) -> str:
    """Return the words of one phantom report."""
    who = visit(seed, index)
    patient = sample_patient(seed, who.patient)
    drawn, before = sample_findings(seed, who.patient, patient, who.number)
    posture = sample_posture(seed, index, sickness(drawn))
    return simple_text(write_report(seed, who, patient, posture, list(drawn), before).text)


def by_scorers(generated: list[str], references: list[str]) -> dict[str, np.ndarray]:
    """Return the values of each report, then that over all, by the COCO caption scorers."""
    own = {k: [text] for k, text in enumerate(generated)}
    other = {k: [text] for k, text in enumerate(references)}
    with contextlib.redirect_stdout(io.StringIO()):
        whole, each = Bleu(4).compute_score(other, own)
        rouge, rouge_each = Rouge().compute_score(other, own)
        cider, cider_each = Cider().compute_score(other, own)
    rows = [*zip(each, whole, strict=True), (rouge_each, rouge), (cider_each, cider)]
    return {metric: np.append(values, value) for metric, (values, value) in zip(METRICS, rows, strict=True)}


def by_us(generated: list[str], references: list[str]) -> dict[str, np.ndarray]:
    """Return the same by medvlp."""
    statistics = ReportStatistics(TextPairs(generated, [[text] for text in references]), METRICS)
    samples, corpus = statistics.samples(), statistics.corpus()
    return {metric: np.append(samples[metric], corpus[metric]) for metric in METRICS}


def timed(work: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """Return the result and the shortest processor time of some runs."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return result, min(seconds)


def main() -> None:
    """Measure, check, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=3000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "text_metrics.json")
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    texts = [made_report(index) for index in range(2 * given.reports)]
    generated, references = texts[: given.reports], texts[given.reports :]
    ours, seconds = timed(lambda: by_us(generated, references), 3)
    theirs, scorer_seconds = timed(lambda: by_scorers(generated, references), 1)
    largest = max(float(np.abs(ours[metric] - theirs[metric]).max()) for metric in METRICS)
    if largest > 1e-6:
        raise SystemExit(f"the two disagree by {largest}")
    statistics = ReportStatistics(TextPairs(generated, [[text] for text in references]), METRICS)
    resamples = Resamples.draw([str(index // 3) for index in range(given.reports)], given.resamples, 0)
    _, resample_seconds = timed(lambda: statistics.resampled(resamples), 1)
    packages = ("numpy", "scipy", "pycocoevalcap")
    result = {
        "what": "BLEU-1 to 4, ROUGE-L and CIDEr-D, per report and over all",
        "reports": given.reports,
        "words_per_report": round(float(np.mean([len(text.split()) for text in texts])), 1),
        "cores": 1,
        "cpu_seconds": round(seconds, 3),
        "must_be_at_most_seconds": MUST_BE,
        "pycocoevalcap_cpu_seconds": round(scorer_seconds, 2),
        "ratio": round(scorer_seconds / seconds, 1),
        "largest_difference": largest,
        "resamples": given.resamples,
        "resamples_cpu_seconds": round(resample_seconds, 1),
        "versions": {name: importlib.metadata.version(name) for name in packages}
        | {"python": platform.python_version()},
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
