"""The suite of CT: what it asks, and all of it by one command on raw layouts in miniature."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ct_miniature
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import open_page, overflow

from medvlp.bench.forecast import forecast
from medvlp.bench.report_data import Results
from medvlp.bench.suite import choose_stores, find_stores, load_suite, resolve_suite, resolve_tasks
from medvlp.tasks import TASKS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
SMALL = ("btcv", "amos22")
OF_CLASSES = {"linear_probe", "few_shot"}


def test_the_collection_prepares_what_the_suite_asks_for() -> None:
    """Every data set of the suite is in the file, with the options that its tasks ask for."""
    stores = yaml.safe_load((ROOT / ct_miniature.COLLECTION).read_text())["stores"]
    configs = resolve_tasks(load_suite(ct_miniature.SUITE))
    assert {entry["source"] for entry in stores.values()} == {config.dataset for config in configs.values()}
    assert stores.keys() == ct_miniature.STUDIES.keys()
    for config in configs.values():
        given = stores[config.dataset].get("options", {})
        assert {name: str(given.get(name)) for name in config.store_options} == config.store_options


def test_the_smallest_data_sets_are_planned_from_their_raw_layouts(tmp_path: Path) -> None:
    """Label maps with a test split that has none: nothing but the other data sets is missing."""
    ct_miniature.make_stores(tmp_path, SMALL, studies=12)
    run = ct_miniature.make_run(tmp_path / "run")
    suite = load_suite(ct_miniature.SUITE, ct_miniature.changes())
    resolved = resolve_suite(suite, choose_stores(suite, [], tmp_path / "stores"), missing=True)
    found = forecast(resolved, [str(run), f"random:{run}"])
    others = ct_miniature.STUDIES.keys() - {*SMALL}
    assert len(found.missing) == len(others)
    assert all(any(name in what for what, _ in found.missing) for name in others)
    cells = {(row.task, row.protocol): row.cells for row in found.rows}
    assert {(f"{name}_organs", way) for name in SMALL for way in ("frozen", "fine_tune")} <= cells.keys()
    for name in SMALL:
        samples = TASKS.get("volume_segmentation")(resolved.tasks[f"{name}_organs"]).samples(resolved.stores[name])
        assert not {*samples["train"].patient_ids} & {*samples["test"].patient_ids}
        assert (samples["test"].labels == 1).any()
        shown = np.concatenate([samples[split].rows for split in samples])
        assert set(resolved.stores[name].images["modality"].iloc[shown]) == {"CT"}
    assert set(resolved.stores["amos22"].images["modality"]) == {"CT", "MR"}


def command(verb: str, folder: Path, *more: object) -> list[str]:
    encoders = ("--encoder", folder / "run", "--encoder", f"random:{folder / 'run'}")
    words: Sequence[object] = (sys.executable, "-m", "medvlp", "bench", verb, ct_miniature.SUITE, "--store-root")
    return [*map(str, (*words, folder / "stores", *encoders, *more)), *ct_miniature.changes()]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_whole_suite_from_raw_layouts_to_a_page(tmp_path: Path) -> None:
    """A CLIP of volumes and its untrained tower on six data sets; no cell fails, and none is without numbers."""
    ct_miniature.make_stores(tmp_path)
    ct_miniature.make_run(tmp_path / "run")
    assert len(find_stores(tmp_path / "stores", ct_miniature.STUDIES)) == len(ct_miniature.STUDIES)
    planned = subprocess.run(command("plan", tmp_path), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert planned.returncode == 0, planned.stdout + planned.stderr
    out = tmp_path / "out"
    options = ("--out", out, "--no-mlflow", "--jobs", "2", "--fraction", "1.0", "--draw", "0")
    done = subprocess.run(command("run", tmp_path, *options), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "heat maps" not in done.stderr
    results = Results.read(out)
    names = ("run", "random:run")
    cells = {(g.setting.task, g.setting.protocol, g.setting.encoder): g.cells for g in results.groups if g.cells}
    tasks = resolve_tasks(load_suite(ct_miniature.SUITE))
    for entry in load_suite(ct_miniature.SUITE).entries:
        for protocol in entry.protocols:
            for name in names[: 1 if protocol == "zero_shot" else 2]:
                assert (tasks[entry.task].name, protocol, name) in cells
    reasons = {group.reason for group in results.groups if not group.cells and group.setting.fraction == 1}
    assert all(reason.startswith("not applicable: ") for reason in reasons), reasons
    for (task, protocol, name), own in cells.items():
        values = [row["value"] for row in own[0].result["scores"] if row["label"] == "macro"]
        assert values, (task, protocol, name)
        assert any(value is not None and np.isfinite(value) for value in values), (task, protocol, name)
    _no_volume_of_the_own_patient(out, results)
    report = [sys.executable, "-m", "medvlp", "bench", "report", str(out), "--html", str(out / "report.html")]
    subprocess.run(report, cwd=ROOT, env=ENVIRONMENT, check=True)
    page = (out / "report.html").read_text()
    assert "Overlap@5" in page
    assert re.search(r"images of other patients that have a finding", page)
    with open_page(out / "report.html") as opened:
        assert opened.locator("#volumes .volume").count() > 1
        assert overflow(opened, 400) == 0


def _no_volume_of_the_own_patient(out: Path, results: Results) -> None:
    """The miniature has two reconstructions of many scans, so that this rule decides its numbers."""
    cell = next(g.cells[0] for g in results.groups if g.setting.task == "ct_rate_volume_to_volume" and g.cells)
    frame = pd.read_parquet(cell.folder / "predictions.parquet")
    labels = frame.filter(like="finding:").to_numpy() == 1
    vectors = np.array(frame["vector"].tolist(), dtype=np.float64)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert frame["patient_id"].duplicated().any()
    found = []
    for row, patient in enumerate(frame["patient_id"]):
        others = np.flatnonzero(labels.any(axis=1) & (frame["patient_id"] != patient).to_numpy())
        best = others[np.argmax(np.round(unit[others] @ unit[row], 6))]
        found.append((labels[row] & labels[best]).sum() / (labels[row] | labels[best]).sum())
    value = next(row["value"] for row in cell.result["scores"] if row["metric"] == "overlap_at_1")
    assert value == pytest.approx(np.mean(found), abs=0.1)  # ties apart
