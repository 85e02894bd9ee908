"""Heat maps behind the numbers of a classification: what they are, which images they show, and where they stand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pandas as pd
import pytest
import torch
from browser import open_page

from medvlp.bench import heat as heat_module
from medvlp.bench.heat import MAPS, heat_maps
from medvlp.bench.report import write_report
from medvlp.bench.results import finished_cells
from medvlp.bench.runner import run_suite
from medvlp.config.train import TrackConfig
from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.store.array_store import Store
from medvlp.tasks._evidence import probe_evidence
from medvlp.zoo import load_encoder

ENTRIES = [
    {"protocols": ["linear_probe", "knn", "zero_shot"]},
    {"protocols": ["linear_probe"], "fractions": [0.5]},
    {"protocols": ["few_shot"], "shots": [4]},
    {"protocols": ["fine_tune"], "set": {"fine_tune": {"steps": 2, "batch_size": 8, "warmup_steps": 1}}},
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("heat")
    store, run = bench_store.make_store(folder), bench_store.make_run(folder / "run")
    suite = bench_store.suite(folder, ENTRIES).model_copy(update={"baselines": ("majority",)})
    options: dict[str, Any] = {"track": TrackConfig(mlflow=False), "device": "cpu", "audit": False}
    done = run_suite(suite, stores=[store], encoders=[str(run)], out=folder / "out", **options)
    assert done.failed == 0
    return folder / "out"


def test_cells_with_all_labels_keep_maps_of_every_outcome_that_there_is(results: Path) -> None:
    with_maps = set()
    for cell in finished_cells(results):
        path = cell.folder / MAPS
        if not path.is_file():
            continue
        with_maps.add((cell.setting[1], cell.setting[2], cell.setting[4]))
        frame = pd.read_parquet(path)
        kept = cell.predictions
        thresholds = cell.result["thresholds"]
        for row in frame.to_dict("records"):
            at, k = kept.sample_ids.index(row["sample_id"]), kept.label_names.index(row["label"])
            present, called = kept.labels[at, k] == 1, kept.scores[at, k] >= thresholds[row["label"]]
            assert heat_module.OUTCOMES[bool(present), bool(called)] == row["outcome"]
            assert row["score"] == pytest.approx(kept.scores[at, k], abs=1e-6)
            assert len(row["map"]) == row["rows"] * row["columns"] > 1
            assert max(row["map"]) == (255 if row["high"] > 0 else 0)
        assert not frame.duplicated(["label", "outcome"]).any()
    assert with_maps == {(protocol, 1.0, "run") for protocol in ("linear_probe", "zero_shot", "fine_tune")}


def test_the_map_of_a_probe_is_its_logit_taken_apart(results: Path) -> None:
    """Of a ResNet, whose features are means over the last map, Grad-CAM is the slope times that map."""
    encoder = load_encoder("random:resnet18@64", stored=None, device="cpu", seed=0)
    store = Store.open(results.parent / "store")
    pixels = store.read(np.arange(3))
    directions = np.random.default_rng(0).normal(size=(2, encoder.dim))
    found = probe_evidence(encoder, pixels, directions)
    shown = normalise(to_tensor(resize_pixels(pixels, 64)), encoder.preprocessing.input)
    tower: Any = encoder.image_tower
    with torch.no_grad():
        activations = tower.backbone.forward_features(shown).numpy().astype(np.float64)
    wanted = np.einsum("kc,bchw->bkhw", directions, activations) / activations[0, 0].size
    assert np.allclose(found, np.maximum(wanted, 0), atol=1e-5 * np.abs(wanted).max())


def test_a_map_that_fails_costs_no_number(results: Path) -> None:
    cell = next(cell for cell in finished_cells(results) if (cell.folder / MAPS).is_file())
    kept = cell.predictions

    def broken(_: Any) -> np.ndarray:
        raise RuntimeError("no gradient")

    from medvlp.bench.plan import Cell
    from medvlp.tasks.base import Head, Samples

    samples = Samples(np.arange(len(kept.sample_ids)), kept.sample_ids, kept.patient_ids, kept.label_names, kept.labels)
    about = Cell(**cell.record)
    head = Head(lambda _: kept, {}, broken)
    thresholds = cell.result["thresholds"]
    assert heat_maps(about, head, samples, kept, thresholds) is None
    good = dataclasses.replace(head, maps=lambda some: np.ones((len(some), len(kept.label_names), 2, 2)))
    found = heat_maps(about, good, samples, kept, thresholds)
    assert found is not None
    assert 0 < len(found) <= heat_module.MOST
    assert heat_maps(dataclasses.replace(about, fraction=0.5), good, samples, kept, thresholds) is None


def test_the_page_draws_them_behind_a_number_and_not_without_patients(results: Path, tmp_path: Path) -> None:
    write_report(results, tmp_path / "with.html")
    write_report(results, tmp_path / "without.html", patients=False)
    with open_page(tmp_path / "with.html") as page:
        link = page.locator("#all tr", has_text="Zero-shot").locator("a.cell").first
        link.click()
        panel = page.locator(".heats").first
        panel.wait_for()
        figures = panel.locator("figure")
        assert figures.count() > 0
        assert "score" in figures.first.inner_text()
        drawn = figures.first.locator("canvas")
        box, below = drawn.bounding_box(), figures.first.locator("img").bounding_box()
        assert box is not None
        assert below is not None
        assert abs(box["width"] - below["width"]) < 2
        some = "c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data].some(v => v > 0)"
        assert any(figures.nth(i).locator("canvas").evaluate(some) for i in range(figures.count()))
    with open_page(tmp_path / "without.html") as page:
        page.locator("#all a.cell").first.click()
        page.locator(".drawn svg, .drawn table").first.wait_for()
        assert page.locator(".heats").count() == 0
