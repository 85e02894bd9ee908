"""The report in a browser: everything is there, fits a telephone, and names nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from browser import WIDTHS, open_page, overflow


def test_the_page_shows_what_the_run_found(own_run: Path) -> None:
    result = json.loads((own_run / "run" / "result.json").read_text())
    scores = {(row["metric"], row["label"]): row for row in result["scores"]}
    with open_page(own_run / "run" / "report.html") as page:
        assert page.title() == "Blob, Bar · fine-tuning"
        assert [link.inner_text() for link in page.locator("nav.page a").all()] == [
            *(
                "Scores",
                "ROC and calibration",
                "Subgroups",
                "Mistakes",
                "Training",
                "Labels",
                "What was chosen",
                "Record",
            ),
        ]
        forest = page.locator("#headline table.forest tbody tr")
        assert forest.count() == 3
        assert f"{scores['auroc', 'Blob']['value']:.3f}" in forest.nth(0).inner_text()
        assert "one class only: Rare." in page.locator("header ul.notes").inner_text()
        assert page.locator("#curves svg.chart").count() == 4
        assert page.locator("#progress svg.chart").count() == 2
        rows = page.locator("#chosen tbody tr").all_inner_texts()
        assert any(row.startswith("Thresholds\tval") for row in rows)
        assert any(row.startswith("Scores") and "\ttest\t" in row for row in rows)
        first = page.locator("#balance tbody tr").nth(0).locator("td").all_inner_texts()
        counted = next(r for r in result["balance"] if (r["label"], r["split"]) == ("Blob", "train"))
        assert first[:3] == [str(counted[name]) for name in ("positives", "negatives", "unknown")]


def test_mistakes_are_shown_most_confident_first_and_can_be_filtered(own_run: Path) -> None:
    import pandas as pd

    run = own_run / "run"
    result, frame = json.loads((run / "result.json").read_text()), pd.read_parquet(run / "predictions/test.parquet")
    wrong = []
    for one in result["decisions"]:
        truth, score = frame[f"label:{one['label']}"], frame[f"score:{one['label']}"]
        mistaken = truth.notna() & ((score >= one["threshold"]) != (truth == 1))
        order = (score - truth).abs()[mistaken].sort_values(ascending=False).index[:6]
        wrong += [(one["label"], int(row)) for row in order]
    assert wrong, "the tiny model makes mistakes"
    with open_page(run / "report.html") as page:
        tiles = page.locator("#mistake-list figure")
        shown = [(tile.get_attribute("data-label"), tile.inner_text().rsplit("row ", 1)[1]) for tile in tiles.all()]
        assert shown == [(label, str(row)) for label, row in wrong]
        assert all(image.evaluate("i => i.naturalWidth > 0") for image in page.locator("#mistake-list img").all())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_telephone_and_a_screen(own_run: Path, scheme: str) -> None:
    with open_page(own_run / "run" / "report.html", color_scheme=scheme) as page:
        assert [overflow(page, width) for width in WIDTHS] == [0, 0, 0]
