from __future__ import annotations

import base64
import csv
import gzip
import itertools
import json
import shutil

import numpy as np
import pytest
from browser import open_page, overflow
from fake_results import write_results
from latex_check import check
from made_cells import write_results as write_scored
from sklearn.metrics import average_precision_score, confusion_matrix

from medvlp.bench.exports import write_exports
from medvlp.bench.report import write_report
from medvlp.bench.report_cells import behind, drawn, precision_points
from medvlp.bench.report_data import Results
from medvlp.bench.report_record import asked_cells, missing
from medvlp.bench.report_scores import METRICS, PROTOCOL_NAMES
from medvlp.html.numbers import decimal, interval
from medvlp.metrics.classification import ece
from medvlp.types import Predictions

LABELS = ("Atelectasis", "Edema")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("cells") / "results", LABELS, n=160, examples=3)


@pytest.fixture(scope="module")
def html(results):
    write_report(results, results.parent / "report.html")
    return results.parent / "report.html"


def test_precision_at_all_recalls_averages_to_the_average_precision():
    rng = np.random.default_rng(1)
    truth = (rng.random(300) < 0.3).astype(float)
    scores = np.round(rng.random(300) * 0.6 + 0.4 * truth, 2)  # with ties
    recalls = np.arange(1, truth.sum() + 1) / truth.sum()
    line = precision_points(truth, scores, recalls)
    assert line.mean() == pytest.approx(average_precision_score(truth, scores))
    assert precision_points(np.zeros(3), np.ones(3), recalls) is None


def test_what_is_drawn_follows_from_the_kept_predictions(results):
    group = next(g for g in Results.read(results).groups if len(g.cells) == 2)
    for record in drawn(group):
        found = [Predictions.from_frame(_frame(cell)) for cell in group.cells]
        k = found[0].label_names.index(record["label"])
        parts = [(own.labels[:, k], own.scores[:, k]) for own in found]
        known = [(truth[~np.isnan(truth)], scores[~np.isnan(truth)]) for truth, scores in parts]
        for one, cell, (truth, scores) in zip(record["confusion"], group.cells, known, strict=True):
            clear, alarm, missed, hit = confusion_matrix(truth, scores >= 0.4321).ravel().tolist()
            assert one["counts"] == [hit, missed, alarm, clear]
            assert one["cell"] == f"seed 0, draw {cell.info['draw']}"
        truth, scores = (np.concatenate(values) for values in zip(*known, strict=True))
        gaps = sum(n * abs(score - share) for score, share, n in record["bins"]) / len(truth)
        assert gaps == pytest.approx(ece(truth, scores), abs=2e-4)
        assert record["roc"][0] == 0
        assert sum(record["roc"]) == 1000
        ends = [truth.sum() / (scores >= scores[truth == 1].min()).sum() for truth, scores in known]
        assert sum(record["pr"]) == pytest.approx(1000 * np.mean(ends), abs=1)


def _frame(cell):
    import pandas as pd

    return pd.read_parquet(cell.folder / "predictions.parquet")


def test_cells_without_thresholds_or_predictions_draw_nothing_made_up(results, tmp_path):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    for path in changed.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        result["thresholds"] = {LABELS[0]: None}
        path.write_text(json.dumps(result))
    groups = [g for g in Results.read(changed).groups if g.cells]
    assert all(record["confusion"] == [] for record in drawn(groups[0]))
    for path in changed.glob("cells/*/predictions.parquet"):
        path.unlink()
    assert all(drawn(group) == [] for group in groups)
    packed = json.loads(gzip.decompress(base64.b64decode(behind(Results.read(changed)))))
    assert packed["settings"] == {}
    assert len(packed["cells"]) == len(list(changed.glob("cells/*")))


def test_a_cell_opens_with_curves_confusion_and_examples(html):
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        page.locator("#headline a.cell").first.click()
        panel = page.locator("dialog#panel")
        panel.locator("svg.chart").nth(2).wait_for()
        titles = panel.locator(".plots figure h4").all_inner_texts()
        assert titles == ["ROC", "Precision and recall", "Reliability"]
        assert panel.locator(".plots svg[aria-label^='ROC']").get_attribute("aria-label").count("AUROC 0.") == 1
        first = panel.locator("table.matrix td strong").all_inner_texts()
        assert sum(map(int, first)) > 100
        panel.locator("select").select_option(LABELS[1])
        assert panel.locator("table.matrix td strong").all_inner_texts() != first
        assert panel.locator(".shown figure").count() > 0
        assert panel.locator(".shown dt").first.inner_text().strip() == "medclip_nih_iu"
        panel.locator("details[data-cell] summary").first.click()
        assert '"encoder": "medclip_nih_iu"' in panel.locator("details[data-cell] pre").first.inner_text()
        assert overflow(page, 360) <= 0
        assert page.evaluate("(e => e.scrollWidth - e.clientWidth)(document.getElementById('panel'))") <= 0


def test_the_keyboard_reaches_and_leaves_everything(html):
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        link = page.locator("#boards a.cell").first
        link.focus()
        assert link.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "panel-title"
        page.locator("#panel select").wait_for()
        for _ in range(4):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.closest('dialog, body').tagName") == "DIALOG"
        page.keyboard.press("Escape")
        assert link.evaluate("e => e === document.activeElement")
        mouse_only = page.evaluate(
            """[...document.querySelectorAll("[onclick], .sort, .reset, summary, select, a")]
               .filter((e) => e.tabIndex < 0 && !e.closest("dialog")).length"""
        )
        assert mouse_only == 0
        unnamed = "[...document.querySelectorAll('select')].filter((e) => !e.closest('label')).length"
        assert page.evaluate(unnamed) == 0
        page.locator("#boards thead button.sort").nth(1).focus()
        page.keyboard.press("Enter")
        assert page.locator("#boards thead th[aria-sort=descending]").count() == 1
        for width in (360, 800):
            assert overflow(page, width) <= 0, width


def test_filters_of_the_leaderboard_combine(html):
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        bar = page.locator("#board-filters")
        columns = page.locator("#boards details:visible thead tr:last-child th[data-labels]:visible")
        bar.locator("select[name=protocol]").select_option("Fine-tuning")
        bar.locator("select[name=metric]").select_option("ECE")
        assert page.locator("#boards details.metric:visible summary").all_inner_texts() == ["ECE (lower is better)"]
        assert [text.split("\n")[0].strip(" ↕") for text in columns.all_inner_texts()] == ["1 %", "10 %", "100 %"]
        bar.locator("select[name=labels]").select_option("10 %")
        assert columns.count() == 1
        assert page.locator("#boards thead th.group:visible").all_inner_texts() == ["Fine-tuning"]
        # of the baselines only the random encoder is fine-tuned; what is missing stays
        shown = page.locator("#boards details:visible tbody tr:visible th .name").all_inner_texts()
        assert shown == ["medclip_nih_iu", "convirt_phantom", "random:resnet18"]
        assert "missing" in page.locator("#boards details:visible tbody").inner_text()
        # few-shot has no 10 % of the labels
        assert bar.locator("select[name=protocol] option[value='Few-shot']").is_disabled()
        assert "1 of" in bar.locator("output").inner_text()
        bar.locator("button.reset").click()
        assert columns.count() == 10  # the first metric alone is unfolded
        assert page.locator("#boards details.metric:visible").count() == len({"auroc", "ap", "f1", "ece"})
        assert bar.locator("select:focus").count() == 1


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    return write_scored(tmp_path_factory.mktemp("scored") / "results", {"good": 2.0, "random:x": 0.4}, draws=2)


@pytest.mark.parametrize("kind", ["results", "scored"])
def test_numbers_of_the_page_are_those_of_the_table(kind, request, tmp_path):
    """Every number that Chromium shows in the table of all results, against the CSV file."""
    folder = request.getfixturevalue(kind)
    write_report(folder, tmp_path / "report.html")
    list(write_exports(folder, {"csv": tmp_path / "scores.csv"}))
    with (tmp_path / "scores.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["value"]]
    exported = {tuple(_key(row)): row for row in rows}
    with open_page(tmp_path / "report.html", viewport={"width": 1600, "height": 900}) as page:
        page.evaluate("document.querySelectorAll('#all button.reset').forEach((each) => each.click())")
        shown = page.evaluate(
            """[...document.querySelectorAll("#all table")].flatMap((table) => {
                 const heads = [...table.tHead.rows[0].cells].map((each) => each.textContent);
                 return [...table.tBodies[0].rows].flatMap((row) => [...row.cells].map((cell, i) => [
                   row.dataset.encoder, row.dataset.protocol, row.dataset.labels, row.dataset.label, heads[i],
                   cell.dataset.value, cell.firstChild?.textContent, cell.querySelector("i")?.textContent,
                 ]).filter((each) => each[7] !== undefined));
               })"""
        )
    assert len(shown) == len(exported)
    for *key, value, text, bounds in shown:
        row = exported[tuple(key)]
        assert float(value) == pytest.approx(float(row["value"]), rel=1e-6)
        assert text == decimal(float(row["value"]))
        if row["low"]:
            assert bounds == interval(float(row["low"]), float(row["high"]))


def _key(row):
    amount = f"{100 * float(row['fraction']):g} %"
    if row["protocol"] == "few_shot":
        amount = f"{row['shots']} shot{'s' if row['shots'] != '1' else ''}"
    if row["protocol"] == "zero_shot":
        amount = "no labels"
    label = "mean over labels" if row["label"] == "macro" else row["label"]
    yield from (row["encoder"], PROTOCOL_NAMES[row["protocol"]], amount, label, METRICS[row["metric"]])


def test_what_is_missing_is_listed_with_its_reason(results, tmp_path):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    record = json.loads((changed / "suite.json").read_text())
    record["tasks"]["masks"] = {"name": "masks", "version": 1, "dataset": "siim", "type": "segmentation", "labels": []}
    record["suite"]["entries"].append({"task": "masks", "protocols": ["frozen"]})
    (changed / "suite.json").write_text(json.dumps(record))
    with (changed / "failures.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"encoder": "mgca", "reason": "The file is cut off.", "next": "Fetch it."}) + "\n")
    found = Results.read(changed)
    record = missing(found)
    assert record["stores"] == [("siim", ["masks"])]
    assert [failure["encoder"] for failure in record["encoders"]] == ["mgca"]
    reasons = {(task, amount): why for task, _, amount, why, _ in record["settings"]}
    assert reasons["nih_pneumonia", "1 %"].startswith("failed: ")
    assert reasons["nih_pneumonia", "10 %"] == "not run"
    assert record["number"] == 5
    assert {(len(group.cells), wanted) for group, wanted in record["parts"]} == {(1, 2), (2, 4)}
    asked = asked_cells(found)
    for setting, wanted in asked.items():
        trained = setting.protocol in ("fine_tune", "frozen") or setting.encoder.startswith("random:")
        draws = 2 if setting.fraction < 1 and setting.task == "nih_pneumonia" else 1
        seeds = 2 if trained and setting.protocol in ("linear_probe", "fine_tune") else 1
        assert wanted == draws * seeds, setting
    write_report(changed, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<strong>No prepared store</strong> of siim" in text
    assert "<strong>Encoder not loaded</strong>: mgca. The file is cut off. Fetch it." in text


def test_how_weights_were_read_and_what_is_not_known_is_said(results, tmp_path):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    record = json.loads((changed / "suite.json").read_text())
    record["encoders"][0]["loaded"] = ["271 tensors of the file used, none unexplained", "3 ignored: a head"]
    (changed / "suite.json").write_text(json.dumps(record))
    sources = [{"dataset": "mimic_cxr", "split": "train", "store": ""}]
    leaks = {"encoders": {"convirt_phantom": {"known": True, "sources": sources}}}
    (changed / "leaks.json").write_text(json.dumps(leaks))
    write_report(changed, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        rows = {row.split("\t")[0]: row for row in page.locator("#encoder-table tbody tr").all_inner_texts()}
        assert "3 ignored: a head" in rows["medclip_nih_iu"]
        assert "not known" in rows["medclip_nih_iu"]
        assert "mimic_cxr (train)" in rows["convirt_phantom"]
        assert "nothing" in rows["metadata"]


def test_latex_tables_pass_a_strict_reader(results, tmp_path):
    list(write_exports(results, {"latex": tmp_path / "tables.tex"}))
    text = (tmp_path / "tables.tex").read_text()
    columns = 10  # linear probe and fine-tuning at three fractions, three numbers of shots, zero-shot
    tables = check(text)
    assert len(tables) == len({"auroc", "average_precision", "f1", "ece"})
    assert {(width, rows) for width, rows in tables} == {(columns + 1, 2 + 6)}
    assert text.count(r"\resizebox{\textwidth}{!}{%") == len(tables)
    for broken in (
        text.replace(r"\end{table}", "", 1),
        text.replace(r"\_", "_", 1),
        text.replace(" & ", " ", 1),
        text.replace(r"\textbf{", r"\textbf{{", 1),
        text.replace(r"\toprule", r"\topline", 1),
        text.replace("--", "–", 1),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            check(broken)


def test_every_mark_of_a_cell_has_its_text(results, tmp_path):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    hashes = sorted(path.name for path in changed.glob("cells/*"))
    marks = {name: ["12 of 160 test images are shown by images of the training split."] for name in hashes[:3]}
    leaks = {"audit": {"findings": ["Leak: 12 images stand in two splits."]}, "cells": marks, "marked": {"x": 3}}
    (changed / "leaks.json").write_text(json.dumps(leaks))
    write_report(changed, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        assert "The data leak. 12 images stand in two splits." in page.locator("header.page").inner_text()
        marked = page.locator("#boards td:has(abbr.leak) a.cell")
        assert marked.count() > 0
        seen = set(itertools.chain(marked.evaluate_all("each => each.map((e) => e.hash)")))
        for target in seen:
            assert page.locator(f"{target} .told-leak").count() == 1
