from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from browser import WIDTHS, open_page, overflow
from fake_results import PATH, write_results
from sklearn.metrics import roc_auc_score, roc_curve

from medvlp.bench.report import write_report
from medvlp.bench.report_charts import roc_points
from medvlp.bench.report_data import Results
from medvlp.bench.report_notes import warnings
from medvlp.errors import UserError
from medvlp.metrics.bootstrap import Resamples
from medvlp.metrics.calibration import reliability_curve
from medvlp.metrics.classification import ece


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("report") / "results")


@pytest.fixture(scope="module")
def html(results):
    page = results.parent / "report.html"
    write_report(results, page)
    return page


def test_page_in_a_browser(html):
    with open_page(html, viewport={"width": 1280, "height": 900}) as page:
        table = page.locator("table.board").first

        def column(n: int) -> list[str]:
            return table.locator(f"tbody tr td:nth-child({n}) .value").all_inner_texts()

        table.locator("thead button.sort").nth(3).click()
        falling = column(4)
        assert len(falling) == 6
        assert falling == sorted(falling, reverse=True)
        assert table.locator("thead tr:last-child th").nth(3).get_attribute("aria-sort") == "descending"
        table.locator("thead button.sort").nth(3).click()
        assert column(4) == falling[::-1]
        table.locator("thead button.sort").nth(4).click()  # a column with missing cells: they stay last
        assert (
            "missing" in table.locator("tbody tr").last.inner_text()
            or "–" in table.locator("tbody tr").last.inner_text()
        )

        page.locator("#headline a.cell").first.click()
        panel = page.locator("dialog#panel")
        assert panel.is_visible()
        text = panel.inner_text()
        assert "medclip_nih_iu" in text
        assert "5" * 64 in text  # the hash of the store
        assert "0.4321" in text  # the threshold
        page.keyboard.press("Escape")
        assert not panel.is_visible()

        bar = page.locator("#all .filters")
        bar.locator("select[name=protocol]").select_option("Zero-shot")
        visible = page.locator("#all-table tbody tr:visible")
        assert visible.count() == 3
        assert "not applicable: the encoder has no text side" in page.locator("#all-table").inner_text()
        for width in WIDTHS:
            assert overflow(page, width) <= 0, width


def test_a_note_with_a_long_id_fits_a_phone(results, tmp_path):
    out = tmp_path / "results"
    shutil.copytree(results, out)
    series = "luna16/1.3.6.1.4.1.14519.5.2.1.6279.6001.100225287222365663678666836860"
    finding = f"Leak: 1 pair of identical images across splits, for example {series} (train) and {series} (test)."
    (out / "leaks.json").write_text(json.dumps({"audit": {"stores": {}, "findings": [finding]}, "cells": {}}))
    write_report(out, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        assert series in page.locator(".notes").inner_text()
        assert overflow(page, 360) <= 0


def test_page_without_script_leads_to_the_same_record(html):
    with open_page(html, java_script_enabled=False) as page:
        page.locator("#headline a.cell").first.click()
        record = page.locator("#records :target")
        assert record.is_visible()
        assert "5" * 64 in record.inner_text()


def test_page_names_what_is_missing_and_why(html):
    text = html.read_text()
    assert "missing: failed: The weights in model.safetensors are cut off." in text
    assert "missing: not run" in text
    assert "Of 37 planned settings 1 failed and 1 have not been run" in text


def test_page_tells_nothing_about_machine_or_patients(html, results):
    text = html.read_text()
    for secret in (PATH, "/home/", "secret", str(results), "PATIENT0"):
        assert secret not in text
    assert "the lungs are &lt;clear&gt; &amp; normal" in text


def test_page_for_others_shows_no_image_text_or_name_of_one_patient(html, results, tmp_path):
    write_report(results, tmp_path / "others.html", patients=False)
    own, others = html.read_text(), (tmp_path / "others.html").read_text()
    shown = [str(entry["sample_id"]) for entry in json.loads((results / "examples" / "index.json").read_text())]
    assert shown
    for text in (*shown, "data:image/", "for example"):
        assert text in own or text == "for example", text
        assert text not in others, text
    assert "Leaderboard" in others


def test_page_loads_nothing(html):
    text = html.read_text()
    assert "default-src 'none'" in text
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert {source.split(":")[0] for source in sources if not source.startswith("#")} == {"data"}


def test_difference_to_random_is_turned_the_right_way(html):
    text = html.read_text()
    row = text[text.index("<h3>nih_pneumonia: Linear probe") :]
    assert row.index("+0.170") < row.index("+0.090")  # the second is stored as random minus convirt, −0.090
    assert "0.050–0.130" in row


def test_roc_agrees_with_scikit_learn():
    rng = np.random.default_rng(1)
    truth = (rng.random(300) < 0.3).astype(float)
    scores = np.round(rng.random(300) * 0.6 + 0.4 * truth, 2)  # with ties
    line = roc_points(truth, scores)
    fpr, tpr, _ = roc_curve(truth, scores, drop_intermediate=False)
    grid = np.linspace(0, 1, 201)
    expected = np.interp(grid[1:], fpr, tpr)
    assert np.allclose(line[1:], expected)
    assert np.trapezoid(line, grid) == pytest.approx(roc_auc_score(truth, scores), abs=0.004)
    assert roc_points(np.ones(3), np.ones(3)) is None


def test_reliability_bins_are_those_of_the_calibration_error():
    rng = np.random.default_rng(2)
    scores = np.r_[rng.random(500), 0.0, 1.0]
    truth = (rng.random(502) < scores**2).astype(float)
    curve = reliability_curve(truth, scores, Resamples.draw([str(i) for i in range(502)], 20, 0))
    assert curve.size.sum() == 502
    gap = np.abs(curve.score - curve.share) * curve.size / 502
    assert gap.sum() == pytest.approx(ece(truth, scores))


def test_warning_where_a_shortcut_does_as_well(tmp_path, results):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    assert not any("shortcut does as well" in what for what, _ in warnings(Results.read(changed)))
    for path in changed.glob("cells/*/result.json"):
        result = json.loads(path.read_text())
        if result["encoder"] == "image_statistics":
            for score in result["scores"]:
                score |= {"value": 0.999, "low": 0.99, "high": 1.0}
            path.write_text(json.dumps(result))
    found = warnings(Results.read(changed))
    assert found[0][0] == "A shortcut does as well as the encoders."
    assert "0.999 (0.990–1.000)" in found[0][1]
    assert any("130 patients" in text for _, text in found)
    assert any("755 of 112\u202f120 images" in text for _, text in found)


def test_aggregate_of_the_runner_leads(tmp_path, results):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    setting = {
        "task": "nih_pneumonia",
        "protocol": "linear_probe",
        "fraction": 0.1,
        "shots": 0,
        "encoder": "medclip_nih_iu",
    }
    score = {"metric": "auroc", "label": "Pneumonia", "value": 0.777, "low": 0.7, "high": 0.8, "n": 251, "status": "ok"}
    missing = setting | {"protocol": "fine_tune", "fraction": 0.1, "encoder": "convirt_phantom", "status": "not run"}
    (changed / "aggregate.json").write_text(
        json.dumps([setting | score, missing | {"metric": "auroc", "label": "macro"}])
    )
    groups = {g.setting.id: g for g in Results.read(changed).groups}
    summed = next(g for g in groups.values() if g.pooled and len(g.cells) == 2)
    assert summed.score("auroc", "Pneumonia").value == 0.777
    assert any(g.reason == "not run" for g in groups.values())


def test_interrupted_runs_still_make_a_page(tmp_path, results):
    changed = tmp_path / "results"
    shutil.copytree(results, changed)
    for name in ("comparisons.json", "failures.jsonl"):
        (changed / name).unlink()
    shutil.rmtree(changed / "examples")
    cells = sorted(changed.glob("cells/*"))
    (cells[0] / "result.json").write_text('{"task": "nih_pneu')
    (cells[1] / "predictions.parquet").unlink()
    for cell in cells[2:20]:
        shutil.rmtree(cell)
    write_report(changed, tmp_path / "part.html")
    with open_page(tmp_path / "part.html") as page:
        assert "have not been run" in page.locator("header.page").inner_text()
        assert page.locator("#comparisons").count() == 0
    shutil.rmtree(changed / "cells")
    write_report(changed, tmp_path / "none.html")
    with open_page(tmp_path / "none.html") as page:
        assert page.locator("#all-table .missing").count() > 5


def test_several_labels_lead_with_their_mean(tmp_path):
    results = write_results(tmp_path / "results", labels=("Atelectasis", "Edema"), n=120, examples=1)
    write_report(results, tmp_path / "report.html")
    with open_page(tmp_path / "report.html") as page:
        assert "mean over labels" in page.locator("#boards h3").inner_text()
        shown = page.locator("#all-table tbody tr[data-label]:not([data-label='']):visible td:nth-child(4)")
        assert set(shown.all_inner_texts()) == {"mean over labels"}
        page.locator("#all .filters select[name=label]").select_option("Edema")
        assert set(shown.all_inner_texts()) == {"Edema"}
        assert page.locator("#curves details").count() == 6


@pytest.mark.parametrize("make", [False, True])
def test_folder_without_results_is_an_error(tmp_path, make):
    folder = tmp_path / "empty"
    if make:
        (folder / "cells").mkdir(parents=True)
    with pytest.raises(UserError, match="results"):
        write_report(folder, tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()
