"""METEOR against the values of the official Java program on sentences written for this test."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.report import meteor as module
from medvlp.metrics.report.meteor import meteor, meteor_counts, meteor_folder
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.statistics import ReportStatistics

REFERENCE = json.loads(Path(__file__).with_name("meteor_reference.json").read_text(encoding="utf-8"))
PAIRS = TextPairs(
    [pair["generated"] for pair in REFERENCE["pairs"]], [pair["references"] for pair in REFERENCE["pairs"]]
)


@pytest.fixture(scope="session")
def counts() -> np.ndarray:
    try:
        folder = meteor_folder()
    except UserError as error:
        pytest.fail(str(error)) if os.environ.get("CI") else pytest.skip(str(error))
    return meteor_counts(PAIRS, folder)


def test_every_sentence_has_the_official_value(counts: np.ndarray) -> None:
    np.testing.assert_allclose(meteor(counts), [pair["score"] for pair in REFERENCE["pairs"]], atol=1e-12)


def test_every_sentence_has_the_official_counts(counts: np.ndarray) -> None:
    for pair, row in zip(REFERENCE["pairs"], counts, strict=True):
        official = np.array(pair["statistics"].split(), dtype=float)
        # lengths, function words; per stage content (text, reference), then function words; chunks; matched words
        np.testing.assert_array_equal(row[:20], official[:20], err_msg=pair["generated"])
        assert row[21] == official[21:].mean()
        perfect = official[21] == official[0] and official[22] == official[1] and official[20] == 1
        assert row[20] == (0 if perfect else official[20])


def test_the_whole_is_that_of_summed_counts(counts: np.ndarray) -> None:
    assert float(meteor(counts.sum(axis=0))) == pytest.approx(REFERENCE["corpus"], abs=1e-12)
    assert REFERENCE["corpus"] != pytest.approx(meteor(counts).mean(), abs=1e-3)


def test_a_resample_sums_the_counts_of_its_samples(counts: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.metrics.report.statistics.meteor_counts", lambda pairs, folder: counts)
    statistics = ReportStatistics(PAIRS, ("meteor",))
    resamples = Resamples.draw([f"p{k // 2}" for k in range(len(PAIRS))], 10, 0)
    repeated = [float(meteor(np.repeat(counts, weights, axis=0).sum(axis=0))) for weights in resamples.weights()]
    np.testing.assert_allclose(statistics.resampled(resamples)["meteor"], repeated, rtol=1e-12)
    assert statistics.corpus()["meteor"] == pytest.approx(REFERENCE["corpus"], abs=1e-12)
    np.testing.assert_array_equal(statistics.samples()["meteor"], meteor(counts))


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no meteor-1\.5\.jar"):
        meteor_folder(tmp_path)
    (tmp_path / "meteor-1.5.jar").touch()
    with pytest.raises(UserError, match=r"no data/paraphrase-en\.gz"):
        meteor_folder(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="Install pycocoevalcap"):
        meteor_folder()
