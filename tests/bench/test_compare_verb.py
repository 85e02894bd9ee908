"""`medvlp bench compare` on made results: the table, the files, and mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import made_cells
import pytest
from typer.testing import CliRunner, Result

from medvlp.bench.compare import compare_encoders
from medvlp.cli.bench import app
from medvlp.errors import UserError


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    strengths = {"good": 2.0, "same": 2.0, "poor": 0.6}
    return made_cells.write_results(tmp_path_factory.mktemp("compare") / "out", strengths, draws=2)


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_the_table_is_written_as_csv_and_json_too(results: Path, tmp_path: Path) -> None:
    written: dict[str, list[dict[str, Any]]] = {}
    for suffix in (".csv", ".json"):
        out = tmp_path / f"compared{suffix}"
        found = run(results, "--a", "good", "--b", "poor", "--all-labels", "--out", out)
        assert found.exit_code == 0, found.output
        assert "Written:" in found.output
        text = out.read_text()
        written[suffix] = json.loads(text) if suffix == ".json" else list(csv.DictReader(text.splitlines()))
    rows = written[".json"]
    assert [row["label"] for row in rows] == [*made_cells.LABELS, "macro"] * 2
    for row, line in zip(rows, written[".csv"], strict=True):
        for key in ("difference", "low", "high", "p", "p_adjusted", "p_suite"):
            assert float(line[key]) == pytest.approx(row[key])
        assert line["better"] == (row["better"] or "")
    full = next(row for row in rows if row["fraction"] == 1 and row["label"] == "macro")
    assert full["better"] == "good"
    assert full["p_adjusted"] == pytest.approx(full["p"], rel=2.01)


def test_the_suite_s_correction_over_all_pairs_stands_beside_and_decides(results: Path) -> None:
    suite = json.loads((results / "comparisons.json").read_text())
    found = compare_encoders(results, "poor", "good")  # turned round
    for row in found.rows:
        (own,) = [
            one
            for one in suite
            if (one["a"], one["b"]) == ("good", "poor")
            and (one["fraction"], one["label"]) == (row["fraction"], row["label"])
        ]
        assert row["difference"] == pytest.approx(-own["difference"])
        assert (row["low"], row["high"]) == pytest.approx((-own["high"], -own["low"]), abs=0.02)
        assert row["p"] == pytest.approx(own["p"])
        assert row["p_suite"] == pytest.approx(own["p_adjusted"])
        assert row["p_suite"] >= row["p_adjusted"]
        assert row["comparisons"] == 2 < own["comparisons"]
        assert row["better"] == ("good" if row["p_suite"] < 0.05 else None)


def test_a_pair_that_only_its_own_table_shows_is_not_called_better(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"good": 2.0, "poor": 0.6})
    assert compare_encoders(root, "good", "poor").rows[0]["better"] == "good"
    rows = json.loads((root / "comparisons.json").read_text())
    (root / "comparisons.json").write_text(json.dumps([row | {"p_adjusted": 0.2} for row in rows]))
    row = compare_encoders(root, "good", "poor").rows[0]
    assert row["p_adjusted"] < 0.05 < row["p_suite"]
    assert row["better"] is None


def test_a_metric_of_which_less_is_better_is_read_the_right_way_round(results: Path) -> None:
    row = compare_encoders(results, "good", "poor", metric="brier").rows[-1]
    assert row["difference"] < 0
    assert row["p_suite"] is None, "the suite compares by the leading metric"
    assert row["better"] == "good"
    assert run(results, "--a", "good", "--b", "poor", "--metric", "brier").exit_code == 0


def test_alike_encoders_are_said_not_to_be_shown_different(results: Path) -> None:
    found = run(results, "--a", "good", "--b", "same")
    assert "not shown" in found.output
    assert "DeLong" in found.output


def test_filters_and_correction(results: Path) -> None:
    found = compare_encoders(results, "good", "poor", tasks=["chest_nih"], correction="benjamini_hochberg")
    assert {row["correction"] for row in found.rows} == {"benjamini_hochberg"}
    with pytest.raises(UserError, match=r"no protocol 'linear_prob'.*linear_probe"):
        compare_encoders(results, "good", "poor", protocols=["linear_prob"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--a", "goood", "--b", "poor"), "no encoder 'goood'"),
        (("--a", "good", "--b", "good"), "compared with itself"),
        (("--a", "good", "--b", "poor", "--metric", "dice"), "no metric 'dice'"),
        (("--a", "good", "--b", "poor", "--task", "other"), "no task 'other'"),
        (("--a", "good", "--b", "poor", "--correction", "bonferroni"), "no correction 'bonferroni'"),
        (("--a", "good", "--b", "poor", "--out", "x.xlsx"), "not written as '.xlsx'"),
    ],
)
def test_mistakes_are_told(results: Path, words: tuple[str, ...], message: str) -> None:
    found = run(results, *words)
    assert isinstance(found.exception, UserError)
    assert message in found.exception.what
    assert found.exception.fix


def test_no_common_setting_and_no_results_are_told(tmp_path: Path) -> None:
    root = tmp_path / "out"
    made_cells.write_cell(root, "a", made_cells.predictions(2.0, 1))
    made_cells.write_cell(root, "b", made_cells.predictions(2.0, 2), fraction=0.1)
    with pytest.raises(UserError, match="no setting in common"):
        compare_encoders(root, "a", "b")
    with pytest.raises(UserError, match="no results"):
        compare_encoders(tmp_path / "nothing", "a", "b")
    made_cells.write_cell(root, "b", made_cells.predictions(2.0, 2))
    found = compare_encoders(root, "a", "b")
    assert len(found.rows) == 1
    assert found.alone == ["chest, linear_probe, 10 %: b alone"]


def test_only_cells_that_were_summed_up_are_compared(results: Path, tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0, "b": 1.0})
    made_cells.write_cell(root, "c", made_cells.predictions(2.0, 3), task="chest_nih")
    with pytest.raises(UserError, match="no encoder 'c'"):
        compare_encoders(root, "a", "c")


def test_cells_of_another_rule_are_refused(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0, "b": 1.0})
    path = next(root.glob("cells/*/result.json"))
    result = json.loads(path.read_text())
    del result["config"]["settings"]["bootstrap"]["rule"]
    path.write_text(json.dumps(result))
    with pytest.raises(UserError, match="another rule"):
        compare_encoders(root, "a", "b")


@pytest.mark.parametrize("name", ["predictions.parquet", "bootstrap.npz"])
def test_what_a_cell_kept_is_refused_where_it_is_cut_off_or_of_another_cell(tmp_path: Path, name: str) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0, "b": 1.0})
    first, second = sorted(root.glob(f"cells/*/{name}"))
    whole = second.read_bytes()
    second.write_bytes(whole[:300])
    with pytest.raises(UserError, match="cannot be read") as caught:
        compare_encoders(root, "a", "b")
    assert caught.value.where == str(second)
    if name == "predictions.parquet":
        second.write_bytes(first.read_bytes())
        with pytest.raises(UserError, match="another version: cell"):
            compare_encoders(root, "a", "b")


@pytest.mark.parametrize("name", ["cell.json", "result.json"])
def test_a_cell_that_is_cut_off_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0, "b": 1.0}, seeds=2)
    path = next(root.glob(f"cells/*/{name}"))
    path.write_text(path.read_text()[:200])
    assert len(compare_encoders(root, "a", "b").rows) == 1
    assert f"{path.parent} cannot be read" in caplog.text
