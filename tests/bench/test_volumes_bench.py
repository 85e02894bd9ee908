"""A suite on volumes end to end: cells, what is kept, examples, and volumes to scroll through on the page."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from browser import WIDTHS, open_page, overflow
from PIL import Image

from medvlp.bench.report import write_report
from medvlp.bench.report_data import Results
from medvlp.bench.report_places import grey_picture
from medvlp.bench.report_texts import report_texts
from medvlp.bench.report_volumes import _map_layer
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import BenchSummary, run_suite
from medvlp.bench.volume_examples import COLUMNS, as_tiles, sheet
from medvlp.config.prepare import PrepareConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.train import TrackConfig
from medvlp.metrics import report_generation
from medvlp.metrics.scoring import SCORINGS
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare

ORGANS: dict[str, Any] = {
    "kind": "task",
    "name": "organs",
    "version": 1,
    "type": "volume_segmentation",
    "dataset": "phantom_ct",
    "labels": [
        {"name": "heart", "positive": "heart"},
        {"name": "lungs", "positive": "lungs", "regions": ["right upper lobe", "right lower lobe", "left upper lobe"]},
    ],
    "volume_segmentation": {"decoder": "linear"},
    "fine_tune": {"steps": 4, "validate_every": 4, "batch_size": 2, "warmup_steps": 1, "lr": 0.05},
}
FINDING: dict[str, Any] = {
    "kind": "task",
    "name": "finding",
    "version": 1,
    "dataset": "phantom_ct",
    "labels": [{"name": "Cardiomegaly", "positive": "Cardiomegaly"}],
    "linear_probe_c": [0.01, 1.0],
}
TEXTS: dict[str, Any] = {
    "kind": "task",
    "name": "texts",
    "version": 1,
    "type": "report_generation",
    "dataset": "phantom_ct",
}
VIT = "random:vit_tiny_patch16_224@32/16"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, BenchSummary]:
    folder = tmp_path_factory.mktemp("volumes")
    write_layout("phantom_ct", folder / "raw", 40, seed=1, size=32)
    config = PrepareConfig(source="phantom_ct", root=folder / "raw", out=folder / "store", num_workers=1)
    store = Store.open(prepare(config).store)
    for task in (ORGANS, FINDING, TEXTS):
        (folder / f"{task['name']}.yaml").write_text(yaml.safe_dump(task))
    entries = [
        {"task": str(folder / "organs.yaml"), "protocols": ["frozen"]},
        {"task": str(folder / "finding.yaml"), "protocols": ["linear_probe"]},
        {"task": str(folder / "texts.yaml"), "protocols": ["knn"]},
    ]
    baselines = ["random", "metadata", "majority"]
    suite = SuiteConfig.model_validate(
        {"name": "s", "version": 1, "entries": entries, "bootstrap_resamples": 40, "baselines": baselines}
    )
    track = TrackConfig(mlflow=False)
    others = tuple(name for name in report_generation.WORDS if name != "meteor")  # its tables take seconds to read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_generation, "computable", lambda: others)
        done = run_suite(
            suite, stores=[store.path], encoders=[VIT], out=folder / "out", track=track, device="cpu", audit=False
        )
    return folder / "out", store, done


def test_every_number_follows_from_the_kept_masks(finished: tuple[Path, Store, BenchSummary]) -> None:
    out, _, summary = finished
    assert summary.failed == 0
    found = {(cell.record["task"], cell.record["encoder"]) for cell in finished_cells(out)}
    each = [(task, name) for task in ("finding", "texts") for name in (VIT, "metadata", "majority")]
    assert found == {("organs", VIT), *each}
    for cell in finished_cells(out):
        if cell.record["task"] != "organs":
            continue
        scoring = SCORINGS.get("volume_segmentation")()
        kept = scoring.read(pd.read_parquet(cell.folder / "predictions.parquet"))
        for score, row in zip(scoring.scores(kept, {}), cell.result["scores"], strict=True):
            assert (score.metric, score.label, score.n) == (row["metric"], row["label"], row["n"])
            assert row["value"] is None if np.isnan(score.value) else row["value"] == pytest.approx(score.value)


def test_examples_are_the_slices_of_the_store(finished: tuple[Path, Store, BenchSummary]) -> None:
    out, store, _ = finished
    entries = json.loads((out / "examples" / "volumes.json").read_text())
    assert 1 < len(entries) <= 4
    patients = store.samples().set_index("image_id")["patient_id"]
    assert len({patients[entry["sample_id"]] for entry in entries}) == len(entries)
    entry = entries[0]
    row = store.images["image_id"].tolist().index(entry["sample_id"])
    array = store.read_volume(int(store.images["index"].iloc[row])).array
    picture = np.asarray(Image.open(out / "examples" / entry["file"]))
    height, width = entry["tile"]
    assert picture.shape == (height * -(-len(entry["slices"]) // COLUMNS), width * COLUMNS)
    at = len(entry["slices"]) // 2
    down, across = divmod(at, COLUMNS)
    tile = picture[down * height : (down + 1) * height, across * width : (across + 1) * width].astype(float)
    # The patient's right on the left, anterior on top.
    seen = array[entry["slices"][at], ::-1, ::-1]
    small = np.asarray(Image.fromarray(seen.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR))
    assert np.corrcoef(tile.ravel(), np.clip(small, -1000, 1000).ravel())[0, 1] > 0.98


def test_reports_stand_beside_the_middle_slices_of_their_volumes(
    finished: tuple[Path, Store, BenchSummary], tmp_path: Path
) -> None:
    out, store, _ = finished
    entries = json.loads((out / "examples" / "studies.json").read_text())
    assert entries
    studies = store.samples().set_index("study_id")["image_id"]
    for entry in entries:
        (file,) = entry["files"]
        row = store.images["image_id"].tolist().index(studies[entry["sample_id"]])
        volume = store.read_volume(int(store.images["index"].iloc[row]))
        picture = np.asarray(Image.open(out / "examples" / file)).astype(float)
        seen = volume.array[len(volume.array) // 2, ::-1, ::-1].astype(np.float32)
        small = np.asarray(Image.fromarray(seen).resize(picture.shape[::-1], Image.Resampling.BILINEAR))
        assert np.corrcoef(picture.ravel(), np.clip(small, -1000, 1000).ravel())[0, 1] > 0.98
    slices = {entry["file"] for entry in json.loads((out / "examples" / "volumes.json").read_text())}
    assert not slices & {file for entry in entries for file in entry["files"]}
    shown = list(report_texts(Results.read(out)))
    assert len(shown) == len(entries)
    assert all(len(study["pictures"]) == 1 and len(study["texts"]) == 3 for study in shown)
    write_report(out, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert all(study["pictures"][0] in text for study in shown)


def test_a_picture_keeps_its_proportions(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(np.arange(40, dtype=np.uint8)[:, None], 80, 1)).save(tmp_path / "x.png")
    grey = grey_picture(tmp_path / "x.png", 60)
    assert grey is not None
    assert grey.shape == (30, 60)
    assert (np.diff(grey[:, 0]) > 0).all()


def test_a_map_is_drawn_where_it_lies() -> None:
    cells = np.zeros((16, 16, 16))
    cells[12, 2, 3] = 1.0  # high, at the back, to the patient's left
    entry = {"shape": [32, 32, 32], "tile": [64, 64], "slices": list(range(32))}
    layer = _map_layer("x", cells, entry)
    assert abs(layer["at"] - 24.5) <= 1.5
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(layer["image"].partition(",")[2]))).convert("RGBA"))
    down, across = divmod(layer["at"], COLUMNS)
    alpha = image[down * 64 : (down + 1) * 64, across * 64 : (across + 1) * 64, 3]
    y, x = np.unravel_index(alpha.argmax(), alpha.shape)
    assert abs(y - (64 - 4 * 2.5)) < 4  # posterior is at the bottom
    assert abs(x - (64 - 4 * 3.5)) < 4  # the patient's left is on the right


def test_sheets_and_tiles_keep_the_order_of_slices() -> None:
    array = np.arange(10)[:, None, None] * np.ones((1, 4, 6), np.int16)
    tiles = as_tiles(array, np.array([0, 4, 9]), (8, 12))
    assert tiles.shape == (3, 8, 12)
    assert np.allclose(tiles.mean(axis=(1, 2)), [0, 4, 9])
    laid = sheet(as_tiles(array, np.arange(10), (4, 6)))
    assert laid.shape == (2 * 4, COLUMNS * 6)
    assert laid[5, 7] == 9  # second row, second tile
    assert not laid[4:, 12:].any()


def test_a_person_scrolls_by_keys_wheel_drag_and_on_a_phone(
    finished: tuple[Path, Store, BenchSummary], tmp_path: Path
) -> None:
    write_report(finished[0], tmp_path / "report.html")
    with open_page(tmp_path / "report.html", has_touch=True) as page:
        card = page.locator(".volume").first
        slider, shown, stack = card.locator("input[type=range]"), card.locator("output"), card.locator(".stack")
        slider.scroll_into_view_if_needed()
        first = int(shown.inner_text())
        base = stack.locator(".slice").first
        before = base.evaluate("e => e.style.backgroundPosition")
        slider.focus()
        page.keyboard.press("ArrowRight")
        assert int(shown.inner_text()) == first + 1
        assert base.evaluate("e => e.style.backgroundPosition") != before
        box = stack.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        page.mouse.wheel(0, 120)
        assert int(shown.inner_text()) == first
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - box["height"] / 4)
        page.mouse.up()
        assert int(shown.inner_text()) > first + 3
        choice = card.locator("select")
        names = choice.locator("option").all_inner_texts()
        assert names[:2] == ["nothing", "organs: reference"]
        assert all(name.startswith(f"organs: {VIT}") for name in names[2:])
        assert len(names) == 3
        choice.select_option(index=1)
        assert card.locator(".slice[data-layer='0']").is_visible()
        assert "heart" in card.locator(".keys:not([hidden])").inner_text()
        choice.select_option(index=0)
        assert not card.locator(".slice[data-layer='0']").is_visible()
        assert overflow(page, 400) == 0
        for width in WIDTHS:
            page.set_viewport_size({"width": width, "height": 900})
            sides = page.locator("#volumes *").evaluate_all("all => all.map((e) => e.getBoundingClientRect().right)")
            assert max(sides) <= width
    assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_without_patients_no_volume_is_shown(finished: tuple[Path, Store, BenchSummary], tmp_path: Path) -> None:
    write_report(finished[0], tmp_path / "none.html", patients=False)
    text = (tmp_path / "none.html").read_text()
    assert 'id="volumes"' not in text
    assert not re.search(r"s0000\d\d", text)
