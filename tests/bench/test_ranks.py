"""Mean ranks of made encoders, and their plot in a browser."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import made_cells
import numpy as np
import pytest
from browser import WIDTHS, open_page, overflow

from medvlp.bench.comparisons import Rules
from medvlp.bench.ranks import rank_table
from medvlp.bench.report import write_report
from medvlp.bench.report_ranks import plot
from medvlp.bench.results import finished_cells
from medvlp.bench.stats import values_of
from medvlp.html.charts import styles
from medvlp.metrics.ranking import critical_difference

STRENGTHS = {"best": 2.6, "as_good": 2.55, "middle": 1.4, "weak": 0.2}
DATASETS = ("nih", "vindr", "rsna", "siim_acr", "covidx9")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cells.write_results(tmp_path_factory.mktemp("one") / "out", STRENGTHS, draws=2)


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_cells.write_results(tmp_path_factory.mktemp("five") / "out", STRENGTHS, datasets=DATASETS)


def test_mean_ranks_are_those_of_the_values(one: Path) -> None:
    found = json.loads((one / "ranks.json").read_text())
    cells = finished_cells(one)
    by_setting = []
    for fraction in (0.1, 1.0):
        means = {
            name: np.mean(
                [
                    values_of(cell)["auroc", "macro"]
                    for cell in cells
                    if (cell.record["encoder"], cell.record["fraction"]) == (name, fraction)
                ]
            )
            for name in STRENGTHS
        }
        order = sorted(means, key=lambda name: -means[name])
        by_setting.append({name: order.index(name) + 1 for name in STRENGTHS})
    for row in found["encoders"]:
        assert row["rank"] == np.mean([ranks[row["encoder"]] for ranks in by_setting])
        assert row["low"] <= row["rank"] <= row["high"]
    assert found["encoders"][-1]["encoder"] == "weak"
    assert len(found["settings"]) == 2
    assert found["datasets"] == ["nih"]


def test_alike_encoders_are_joined_whatever_their_ranks(one: Path) -> None:
    found = json.loads((one / "ranks.json").read_text())
    assert any({"best", "as_good"} <= set(names) for names in found["not_told_apart"])
    assert not any({"best", "weak"} <= set(names) for names in found["not_told_apart"])
    assert found["test"] == "bootstrap over patients"
    assert found["critical_difference"] is None
    assert found["friedman"]["p"] is None, "one data set says nothing about others"


def test_five_data_sets_are_tested_by_nemenyi(five: Path) -> None:
    found = json.loads((five / "ranks.json").read_text())
    assert found["test"] == "Nemenyi over data sets"
    assert sorted(found["datasets"]) == sorted(DATASETS)
    difference = critical_difference(4, 5)
    assert found["critical_difference"] == pytest.approx(difference)
    assert found["friedman"]["p"] < 0.05
    for row in found["pairs"]:
        assert row["differ"] == (abs(row["difference"]) >= difference)


def test_encoders_and_settings_without_a_value_are_named(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0, "b": 1.0}, datasets=("nih", "vindr"))
    made_cells.write_cell(root, "few", made_cells.predictions(1.5, 9), task="chest_nih")
    made_cells.write_cell(root, "metadata", made_cells.predictions(0.5, 8), task="chest_nih")
    found = rank_table(finished_cells(root), ["a", "b", "few"], Rules())
    assert found is not None
    assert {row["encoder"] for row in found["encoders"]} == {"a", "b"}
    assert len(found["settings"]) == 2
    assert found["left_out"] == {"encoders": ["few"], "settings": []}


def test_one_encoder_has_no_rank(tmp_path: Path) -> None:
    root = made_cells.write_results(tmp_path / "out", {"a": 2.0})
    assert json.loads((root / "ranks.json").read_text()) is None
    write_report(root, tmp_path / "report.html")
    assert 'id="ranks"' not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("kind", ["one", "five"])
def test_the_plot_stands_in_the_report(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root: Path = request.getfixturevalue(kind)
    write_report(root, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        section = page.locator("#ranks")
        figure = section.locator("svg.chart")
        assert "Mean ranks, the best first:" in (figure.get_attribute("aria-label") or "")
        assert section.locator("tbody tr").count() == 4
        text = section.inner_text()
        assert ("Nemenyi" in text) == (kind == "five")
        assert ("critical difference" in figure.text_content()) == (kind == "five")
        assert "whatever their ranks" in text
        assert page.locator("nav.page a[href='#ranks']").count() == 1
        for width in WIDTHS:
            assert overflow(page, width) <= 0, width
        # No text of the plot lies on another, or outside of it.
        page.set_viewport_size({"width": 400, "height": 900})
        boxes = figure.locator("text").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        frame = figure.evaluate("one => one.getBoundingClientRect().toJSON()")
        for i, box in enumerate(boxes):
            assert frame["left"] - 1 <= box["left"] <= box["right"] <= frame["right"] + 1
            for other in boxes[:i]:
                apart = (
                    box["right"] <= other["left"] + 1
                    or other["right"] <= box["left"] + 1
                    or box["bottom"] <= other["top"] + 2
                    or other["bottom"] <= box["top"] + 2
                )
                assert apart, (box, other)


def test_the_plot_is_drawn_to_scale_and_escapes_names() -> None:
    names = ["<a>", "b", "c"]
    rows = [
        {"encoder": name, "rank": rank, "low": rank, "high": rank} for name, rank in zip(names, (1, 2, 3), strict=True)
    ]
    drawn = plot(rows, [["<a>", "b"]], 1.0, styles(names, []))
    assert "<a>" not in drawn
    assert "&lt;a&gt;" in drawn
    marks = [float(x) for x in re.findall(r'class="mark"[^>]* d="M(?:-)?([\d.]+)', drawn)]
    bar = re.search(r'x1="([\d.]+)" x2="([\d.]+)" y1="26" y2="26"', drawn)
    assert bar is not None
    # The bar of the critical difference, 1, is as long as from rank 1 to rank 2.
    grid = sorted({float(x) for x in re.findall(r'class="grid" x1="([\d.]+)"', drawn)})
    assert float(bar[2]) - float(bar[1]) == pytest.approx(grid[1] - grid[0], abs=0.2)
    assert len(marks) == 3
    assert drawn.count('class="joined"') == 1


def test_a_page_names_the_fewer_of_those_told_apart_and_those_not(one: Path, tmp_path: Path) -> None:
    shutil.copytree(one, tmp_path / "out")
    file = tmp_path / "out" / "ranks.json"
    record = json.loads(file.read_text())
    record["not_told_apart"] = [["best", "as_good", "middle"], ["as_good", "middle"], ["weak"]]
    file.write_text(json.dumps(record))
    write_report(tmp_path / "out", tmp_path / "page.html")
    section = (tmp_path / "page.html").read_text().split('id="ranks"')[1].split("</section>")[0]
    rows = [re.sub(r"<[^>]*>|\u200b", "", row) for row in section.split("<tr>")[2:]]
    said = {name: row for row in rows for name in STRENGTHS if row.strip().startswith(name)}
    assert said["best"].strip().endswith("all but weak")
    assert said["weak"].strip().endswith("–")
    record["not_told_apart"] = [list(STRENGTHS)]
    file.write_text(json.dumps(record))
    write_report(tmp_path / "out", tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().count("all others") == len(STRENGTHS)


def test_encoders_are_ranked_over_the_draws_that_all_have(tmp_path: Path) -> None:
    for draw, (better, worse) in enumerate([(1.5, 0.5), (3.5, 3.0)]):
        made_cells.write_cell(tmp_path, "better", made_cells.predictions(better, 10 + draw), draw=draw, fraction=0.1)
        if draw:  # the easy draw alone
            made_cells.write_cell(tmp_path, "worse", made_cells.predictions(worse, 20), draw=draw, fraction=0.1)
    cells = finished_cells(tmp_path)
    scores = {(cell.record["encoder"], cell.record["draw"]): values_of(cell)["auroc", "macro"] for cell in cells}
    assert scores["better", 1] > scores["worse", 1] > (scores["better", 0] + scores["better", 1]) / 2
    found = rank_table(cells, ["better", "worse"], Rules())
    assert found is not None
    assert [(row["encoder"], row["rank"]) for row in found["encoders"]] == [("better", 1), ("worse", 2)]
    apart = [cell for cell in cells if cell.record["draw"] == (cell.record["encoder"] == "worse")]
    assert rank_table(apart, ["better", "worse"], Rules()) is None
