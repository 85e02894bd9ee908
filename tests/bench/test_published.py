"""Published numbers beside measured ones, and the tables for papers."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import made_cells
import pytest
from browser import open_page
from fake_results import write_results

from medvlp.bench.exports import tex, write_exports
from medvlp.bench.published import add_results, published
from medvlp.bench.report import write_report
from medvlp.bench.report_data import Results
from medvlp.bench.report_sections import boards
from medvlp.errors import UserError

HEAD = "encoder,task,protocol,fraction,metric,value,low,high,sd,source\n"
ROW = "ConVIRT,nih_pneumonia,linear_probe,1,auroc,0.91,,,0.01,Smith & Sons 2024\n"
SOURCE = "Smith & Sons 2024"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results", n=120, examples=1)


def table(folder: Path, text: str, head: str = HEAD) -> Path:
    path = folder / "paper.csv"
    path.write_text(head + text)
    return path


def test_rows_are_added_once(results: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW + ROW.replace("linear_probe,1", "fine_tune,0.1").replace(",,,", ",0.8,0.95,"))
    assert add_results(paper, results) == (2, 2)
    assert add_results(paper, results) == (0, 2)
    first, second = published(results)
    assert (first.value, first.low, first.sd, first.label, first.shots) == (0.91, None, 0.01, "macro", 0)
    assert (second.low, second.high, second.fraction) == (0.8, 0.95, 0.1)
    assert not (results / "locks").exists()


def test_percent_is_said_never_guessed(results: Path, tmp_path: Path) -> None:
    paper = table(tmp_path, ROW.replace("0.91", "91"))
    with pytest.raises(UserError, match="give --percent if it is in percent"):
        add_results(paper, results)
    add_results(paper, results, percent=True)
    assert published(results)[0].value == pytest.approx(0.91)
    assert published(results)[0].sd == pytest.approx(0.0001)


def test_lengths_and_points_are_no_percent(results: Path, tmp_path: Path) -> None:
    head = HEAD.replace("fraction,", "")
    echo = table(tmp_path, "EchoCLIP,echo_reading,knn,mae,7.1,,,,Christensen 2024\n", head)
    with pytest.raises(UserError, match="mae is never in percent"):
        add_results(echo, results, percent=True)
    add_results(echo, results)
    assert published(results)[0].value == 7.1
    organs = table(tmp_path, "nnU-Net,amos22_organs,fine_tune,hd95_mm,5.3,,,,Ji 2022\n", head)
    with pytest.raises(UserError, match="hd95_mm is never in percent"):
        add_results(organs, results, percent=True)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("shots", "2.5", "shots 2.5 is no whole number from 0 up"),
        ("shots", "-1", "shots -1 is no whole number"),
        ("runs", "0", "runs 0 is no whole number from 1 up"),
        ("n", "10.7", "n 10.7 is no whole number from 1 up"),
    ],
)
def test_counts_are_whole(results: Path, tmp_path: Path, column: str, value: str, said: str) -> None:
    row = f"{value},{ROW.replace('linear_probe', 'few_shot' if column == 'shots' else 'linear_probe')}"
    with pytest.raises(UserError, match=re.escape(said)):
        add_results(table(tmp_path, row, f"{column},{HEAD}"), results)


def test_a_quote_that_stays_open_swallows_no_rows(results: Path, tmp_path: Path) -> None:
    rows = ROW.replace(SOURCE, f'"{SOURCE}') + ROW.replace("ConVIRT", "GLoRIA")
    with pytest.raises(UserError, match="cannot be read after line 1"):
        add_results(table(tmp_path, rows), results)
    add_results(table(tmp_path, ROW.replace(SOURCE, '"Smith &\nSons  2024"')), results)
    assert published(results)[0].source == SOURCE


MISTAKES = {
    "no task": ("nih_pneumonia", "nih_pneumona", "Did you mean 'nih_pneumonia'"),
    "no protocol": ("linear_probe", "linear_prob", "there is no protocol 'linear_prob'"),
    "metric": (",auroc,", ",auroq,", "has no metric 'auroq'"),
    "no number": ("0.91", "0.9x1", "is no number"),
    "nan": ("0.91", "nan", "is no number"),
    "range": ("0.91", "1.2", "not between 0 and 1"),
    "half an interval": (",,,", ",0.8,,", "needs low and high"),
    "interval": (",,,", ",0.95,0.97,", "outside of its interval"),
    "fraction": ("linear_probe,1,", "linear_probe,10,", "fraction 10"),
    "zero-shot with labels": ("linear_probe,1,", "zero_shot,0.1,", "does not go with zero_shot"),
    "shots": ("linear_probe,1,", "few_shot,1,", "few_shot needs shots"),
    "empty": (SOURCE, "", "source is empty"),
}


@pytest.mark.parametrize("case", MISTAKES.values(), ids=list(MISTAKES))
def test_mistakes_are_named_with_their_row_and_nothing_is_added(
    results: Path, tmp_path: Path, case: tuple[str, str, str]
) -> None:
    old, new, said = case
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        add_results(table(tmp_path, ROW.replace("ConVIRT", "good") + ROW.replace(old, new)), results)
    assert "row 3" in caught.value.what
    assert not (results / "published.json").exists()


def test_double_and_contradicting_rows_are_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the same cell as row 2"):
        add_results(table(tmp_path, ROW + ROW.replace("0.91", "0.92")), results)
    add_results(table(tmp_path, ROW), results)
    with pytest.raises(UserError, match=r"already, with 0.91 instead of 0.92"):
        add_results(table(tmp_path, ROW.replace("0.91", "0.92")), results)
    other = ROW.replace("0.91", "0.92").replace("2024", "2025")
    assert add_results(table(tmp_path, other), results) == (1, 2)


def test_wrong_columns_and_lines_are_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no column source; unknown column 'sourse'"):
        add_results(table(tmp_path, ROW, HEAD.replace("source", "sourse")), results)
    with pytest.raises(UserError, match="more cells than there are columns"):
        add_results(table(tmp_path, ROW.replace(SOURCE, "Smith, Sons")), results)
    with pytest.raises(UserError, match="no folder of results"):
        add_results(table(tmp_path, ROW), tmp_path / "nowhere")


def test_the_shipped_tables_fit_the_shipped_tasks(results: Path) -> None:
    tables = sorted((Path(__file__).parents[2] / "benchmarks" / "published").glob("*.csv"))
    assert tables
    for paper in tables:
        new, total = add_results(paper, results)
        assert new == len(paper.read_text().splitlines()) - 1
        assert total >= new
    assert all(0 < row.value < 1 for row in published(results))


def add_better(results: Path, tmp_path: Path) -> None:
    add_results(table(tmp_path, ROW.replace("0.91", "0.999")), results)


def test_published_numbers_stand_in_the_tables_marked_and_unranked(results: Path, tmp_path: Path) -> None:
    add_better(results, tmp_path)
    found = Results.read(results)
    for ranked in (False, True):
        board = next(boards(found, ranked))
        rows = dict(board["tables"][0]["rows"])
        name = f"ConVIRT ({SOURCE})"
        assert list(rows)[-1] == name
        marks = {row: mark for row, entries in rows.items() for group, mark in entries[2:3] if group}
        assert (marks[name] == "best") is ranked
        assert list(marks.values()).count("best") == 1
    page = tmp_path / "report.html"
    write_report(results, page)
    with open_page(page) as opened:
        row = opened.locator("table.board tbody tr", has_text="ConVIRT (Smith").first
        assert "published" in row.inner_text()
        assert "0.999" in row.inner_text()
        assert row.locator("a.cell").count() == 0
        assert "ConVIRT (Smith" not in opened.locator("#comparisons").inner_text()
        assert SOURCE in opened.locator("#boards .about").first.inner_text()


def test_exports_hold_the_same_numbers(results: Path, tmp_path: Path) -> None:
    add_better(results, tmp_path)
    files = {"latex": tmp_path / "t.tex", "csv": tmp_path / "t.csv", "markdown": tmp_path / "t.md"}
    assert list(write_exports(results, files)) == list(files.values())
    board = next(boards(Results.read(results)))
    group = next(group for group, _ in dict(board["tables"][0]["rows"])["medclip_nih_iu"] if group and group.cells)
    score = group.score("auroc", board["label"])
    text = files["markdown"].read_text()
    assert f"{score.value:.3f}" in text
    assert "| ConVIRT (Smith & Sons 2024) † |" in text
    assert "† published, not measured here: Smith & Sons 2024." in text
    latex = files["latex"].read_text()
    assert r"ConVIRT (Smith \& Sons 2024)$^{\dagger}$" in latex
    assert "medclip\\_nih\\_iu" in latex
    assert latex.count(r"\toprule") == latex.count(r"\bottomrule") == latex.count(r"\begin{table}")
    with files["csv"].open() as file:
        rows = list(csv.DictReader(file))
    origins = {row["origin"] for row in rows}
    assert origins == {"measured", "published"}
    (paper,) = [row for row in rows if row["origin"] == "published"]
    assert (paper["value"], paper["low"], paper["source"], paper["sd"]) == ("0.999", "", SOURCE, "0.01")
    assert any(row["status"].startswith("failed") or row["status"].startswith("not") for row in rows)
    assert {"low", "high", "n"} <= {key for row in rows for key, value in row.items() if value}


def test_intervals_are_called_what_they_cover(results: Path, tmp_path: Path) -> None:
    record = json.loads((results / "suite.json").read_text())
    record["suite"]["alpha"] = 0.1
    (results / "suite.json").write_text(json.dumps(record))
    files = {"latex": tmp_path / "t.tex", "csv": None, "markdown": tmp_path / "t.md"}
    assert len(list(write_exports(results, files))) == 2
    write_report(results, tmp_path / "report.html")
    texts = [path.read_text() for path in (tmp_path / "t.tex", tmp_path / "t.md", tmp_path / "report.html")]
    for text, level in zip(texts, (r"90 \% intervals", "90 % intervals", "90 % intervals"), strict=True):
        assert level in text
        assert not re.search(r"95 \\?% [a-z ]*interval", text)


def test_names_are_no_markup_in_markdown(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a|<b>*x*": 2.0, "good": 1.0})
    (path,) = write_exports(root, {"markdown": tmp_path / "t.md"})
    assert r"| a\|\<b>\*x\* |" in path.read_text()


def test_special_characters_of_latex_are_escaped() -> None:
    assert tex("50 % of a_b & {c} #1 $2 ~ ^ \\") == (
        r"50 \% of a\_b \& \{c\} \#1 \$2 \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no LaTeX here")
def test_latex_compiles(results: Path, tmp_path: Path) -> None:
    add_better(results, tmp_path)
    list(write_exports(results, {"latex": tmp_path / "tables.tex"}))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\\input{tables}\\end{document}"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-1500:]
