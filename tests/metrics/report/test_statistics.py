"""Text metrics against the COCO caption scorers' values, slow references, and repeated samples."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.rouge import common_subsequence
from medvlp.metrics.report.statistics import METRICS, ReportStatistics
from medvlp.text.report_words import tokeniser
from tests.metrics.report import slow

PLAIN = tuple(metric for metric in METRICS if metric != "meteor")
BLEU = PLAIN[:4]


def compare(statistics: ReportStatistics, samples: dict[str, list[float]], corpus: dict[str, float]) -> None:
    found, whole = statistics.samples(), statistics.corpus()
    for metric in (*BLEU, "rouge_l", "cider_d"):
        np.testing.assert_allclose(found[metric], samples[metric], rtol=1e-6, atol=1e-12, err_msg=metric)
        assert whole[metric] == pytest.approx(corpus[metric], rel=1e-6), metric


def test_iu_reports_equal_the_reference(folder: Path, iu_texts: dict[str, str]) -> None:
    meta = json.loads((folder / "meta.json").read_text())["corpus"]
    tables = sorted(folder.glob("per_sample_*.csv"))
    assert tables
    for table in tables:
        name = table.stem.removeprefix("per_sample_")
        rule = tokeniser(name)
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        texts, references = ([rule(iu_texts[row[f"{side}_id"]]) for row in rows] for side in ("generated", "reference"))
        for side, found in (("generated", texts), ("reference", references)):
            assert [hashlib.sha256(text.encode()).hexdigest()[:16] for text in found] == [
                row[f"{side}_sha256"] for row in rows
            ]
            assert [len(text.split()) for text in found] == [int(row[f"{side}_tokens"]) for row in rows]
        statistics = ReportStatistics(TextPairs(texts, [[text] for text in references]), PLAIN)
        columns = {metric: metric.replace("bleu_", "bleu").replace("cider_d", "cider") for metric in PLAIN}
        samples = {metric: [float(row[columns[metric]]) for row in rows] for metric in PLAIN}
        corpus = {f"bleu_{n}": meta[name][f"BLEU{n}"] for n in range(1, 5)}
        compare(statistics, samples, corpus | {"rouge_l": meta[name]["ROUGE_L"], "cider_d": meta[name]["CIDEr"]})
        means = [statistics.samples()[metric].mean() for metric in BLEU]
        np.testing.assert_allclose(means, meta[name]["BLEU_mean_of_samples"], rtol=1e-6)


def test_edge_cases_equal_the_reference(folder: Path) -> None:
    data = json.loads((folder / "edge_cases.json").read_text())
    texts, own = data["hypotheses"], data["references"]
    following = [[own[k], own[(k + 1) % len(own)]] for k in range(len(own))]
    for case, references in (("single", [[text] for text in own]), ("two_references", following)):
        expected = data[case]
        samples = {f"bleu_{n}": expected["bleu_per_sample"][n - 1] for n in range(1, 5)}
        samples |= {"rouge_l": expected["rouge_per_sample"], "cider_d": expected["cider_per_sample"]}
        corpus = {f"bleu_{n}": expected["bleu"][n - 1] for n in range(1, 5)}
        corpus |= {"rouge_l": expected["rouge"], "cider_d": expected["cider"]}
        compare(ReportStatistics(TextPairs(texts, references), PLAIN), samples, corpus)


def example(seed: int, n: int = 9) -> TextPairs:
    """Texts of few words, so that n-grams repeat; one to three references; some texts empty or of one word."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(f"w{word}" for word in rng.integers(0, 5, rng.integers(0, 12)))

    references = [[text() for _ in range(rng.integers(1, 4))] for _ in range(n)]
    generated = [references[k][0] if k % 4 == 0 else text() for k in range(n)]
    return TextPairs(generated, references)


def repeated(pairs: TextPairs, weights: np.ndarray) -> TextPairs:
    rows = np.repeat(np.arange(len(pairs)), weights)
    return TextPairs([pairs.generated[k] for k in rows], [pairs.references[k] for k in rows])


@pytest.mark.parametrize("seed", range(6))
def test_random_texts_equal_the_definition(seed: int) -> None:
    pairs = example(seed)
    statistics = ReportStatistics(pairs, PLAIN)
    texts, references = list(pairs.generated), [list(others) for others in pairs.references]
    found, whole = statistics.samples(), statistics.corpus()
    for n, metric in enumerate(BLEU, 1):
        assert whole[metric] == pytest.approx(slow.bleu(texts, references, n), rel=1e-9)
        each = [slow.bleu([text], [others], n) for text, others in zip(texts, references, strict=True)]
        np.testing.assert_allclose(found[metric], each, rtol=1e-9)
    for metric in ("cider", "cider_d"):
        expected = slow.cider(texts, references, clipped=metric == "cider_d")
        np.testing.assert_allclose(found[metric], expected, rtol=1e-9, atol=1e-12)
        assert whole[metric] == pytest.approx(np.mean(expected), rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_resample_is_the_metric_of_repeated_samples(seed: int) -> None:
    pairs = example(seed, 12)
    resamples = Resamples.draw([f"p{k // 2}" for k in range(12)], 40, seed)
    values = ReportStatistics(pairs, PLAIN).resampled(resamples)
    for row, weights in enumerate(resamples.weights()):
        expected = ReportStatistics(repeated(pairs, weights), PLAIN).corpus()
        for metric in PLAIN:
            assert values[metric][row] == pytest.approx(expected[metric], rel=1e-9, nan_ok=True), metric


def test_of_two_equally_near_references_the_shorter_one_sets_the_length() -> None:
    pairs = TextPairs(["w1 w2 w3"], [["w1 w2 w3 w4", "w1 w2"]])
    assert ReportStatistics(pairs, ("bleu_1",)).corpus()["bleu_1"] == pytest.approx(1)
    pairs = TextPairs(["w1 w2 w3"], [["w1 w2 w3 w4", "w1"]])
    assert ReportStatistics(pairs, ("bleu_1",)).corpus()["bleu_1"] == pytest.approx(np.exp(1 - 4 / 3))


def test_identical_texts_have_the_largest_values() -> None:
    texts = ["the lungs are clear", "a small effusion is seen", "mild cardiomegaly and edema persist"]
    whole = ReportStatistics(TextPairs(texts, [[text] for text in texts]), PLAIN).corpus()
    assert [whole[metric] for metric in (*BLEU, "rouge_l")] == pytest.approx([1.0] * 5)
    assert whole["cider"] == whole["cider_d"] == pytest.approx(10)


def test_reports_that_are_all_alike_have_no_cider() -> None:
    pairs = TextPairs(["lungs are clear"] * 3, [["lungs are clear"]] * 3)
    assert ReportStatistics(pairs, ("cider", "cider_d")).corpus() == {"cider": 0.0, "cider_d": 0.0}


def test_no_samples_have_no_value() -> None:
    whole = ReportStatistics(TextPairs([], []), PLAIN).corpus()
    assert all(np.isnan(value) for value in whole.values())


def test_mistaken_input_is_refused() -> None:
    with pytest.raises(ValueError, match="1 texts, but references of 2"):
        TextPairs(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="at least one reference"):
        TextPairs(["a"], [[]])
    with pytest.raises(ValueError, match="at least one reference"):
        TextPairs(["a"], ["a"])
    with pytest.raises(ValueError, match="unknown text metrics: spice"):
        ReportStatistics(TextPairs(["a"], [["a"]]), ("spice",))


def test_longest_common_subsequence_equals_the_table() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        a, b = (["abcd"[k] for k in rng.integers(0, 4, rng.integers(0, 90))] for _ in range(2))
        assert common_subsequence(a, b) == slow.common(a, b)
