"""METEOR against the official Java program, with word lists of our own and with the official ones.

The program was run on sentences written for this test. The official word lists and paraphrases are no part of medvlp:
where pycocoevalcap is not installed, the tests with them are skipped.
"""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.report import meteor as module
from medvlp.metrics.report.meteor import meteor, meteor_counts, meteor_folder
from medvlp.metrics.report.pairs import TextPairs
from medvlp.metrics.report.statistics import ReportStatistics


def reference(name: str) -> dict[str, Any]:
    return json.loads(Path(__file__).with_name(f"meteor_{name}.json").read_text(encoding="utf-8"))


def pairs_of(content: dict[str, Any]) -> TextPairs:
    pairs = content["pairs"]
    return TextPairs([pair["generated"] for pair in pairs], [pair["references"] for pair in pairs])


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with word lists and paraphrases of our own in the official format."""
    folder, content = tmp_path_factory.mktemp("meteor"), reference("small")
    with zipfile.ZipFile(folder / "meteor-1.5.jar", "w") as jar:
        for name, lines in content["files"].items():
            jar.writestr(name, "".join(f"{line}\n" for line in lines))
    (folder / "data").mkdir()
    with gzip.open(folder / "data" / "paraphrase-en.gz", "wt") as table:
        table.writelines(f"0.1\n{phrase}\n{other}\n" for phrase, other in content["paraphrases"])
    return folder


@pytest.fixture(scope="session", params=["small", "official"])
def counted(request: pytest.FixtureRequest, small: Path) -> tuple[dict[str, Any], np.ndarray]:
    content = reference(request.param)
    try:
        folder = small if request.param == "small" else meteor_folder()
    except UserError as error:
        pytest.skip(str(error))
    return content, meteor_counts(pairs_of(content), folder)


Counted = tuple[dict[str, Any], np.ndarray]


def test_every_sentence_has_the_official_value(counted: Counted) -> None:
    content, counts = counted
    np.testing.assert_allclose(meteor(counts), [pair["score"] for pair in content["pairs"]], atol=1e-12)


def test_every_sentence_has_the_official_counts(counted: Counted) -> None:
    content, counts = counted
    for pair, row in zip(content["pairs"], counts, strict=True):
        official = np.array(pair["statistics"].split(), dtype=float)
        # lengths, function words; per stage content (text, reference), then function words; chunks; matched words
        np.testing.assert_array_equal(row[:20], official[:20], err_msg=pair["generated"])
        assert row[21] == official[21:].mean()
        perfect = official[21] == official[0] and official[22] == official[1] and official[20] == 1
        assert row[20] == (0 if perfect else official[20])


def test_the_whole_is_that_of_summed_counts(counted: Counted) -> None:
    content, counts = counted
    assert float(meteor(counts.sum(axis=0))) == pytest.approx(content["corpus"], abs=1e-12)
    assert content["corpus"] != pytest.approx(meteor(counts).mean(), abs=1e-3)


def test_every_stage_finds_something(small: Path) -> None:
    content = reference("small")
    counts = meteor_counts(pairs_of(content), small)
    assert (counts[:, 4:20].reshape(-1, 4, 4).sum(axis=(0, 2)) > 0).all()


def test_a_resample_sums_the_counts_of_its_samples(small: Path) -> None:
    content = reference("small")
    pairs = pairs_of(content)
    counts, statistics = meteor_counts(pairs, small), ReportStatistics(pairs, ("meteor",), small)
    resamples = Resamples.draw([f"p{k // 2}" for k in range(len(pairs))], 10, 0)
    repeated = [float(meteor(np.repeat(counts, weights, axis=0).sum(axis=0))) for weights in resamples.weights()]
    np.testing.assert_allclose(statistics.resampled(resamples)["meteor"], repeated, rtol=1e-12)
    assert statistics.corpus()["meteor"] == pytest.approx(content["corpus"], abs=1e-12)
    np.testing.assert_array_equal(statistics.samples()["meteor"], meteor(counts))


def test_broken_files_are_named(small: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("meteor-1.5.jar", "data/paraphrase-en.gz"):
        (tmp_path / name).write_bytes((small / name).read_bytes())
    for name, content in (
        ("data/paraphrase-en.gz", (small / "data" / "paraphrase-en.gz").read_bytes()[:-20]),
        ("data/paraphrase-en.gz", gzip.compress(b"0.1\nclear\n")),
        ("meteor-1.5.jar", b"no archive"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            meteor_counts(TextPairs(["clear"], [["clear"]]), tmp_path)


def test_missing_files_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no meteor-1\.5\.jar"):
        meteor_folder(tmp_path)
    (tmp_path / "meteor-1.5.jar").touch()
    with pytest.raises(UserError, match=r"no data/paraphrase-en\.gz"):
        meteor_folder(tmp_path)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'medvlp\[meteor\]'"):
        meteor_folder()
