"""The segmentation tasks of BenchX on miniatures of its data sets, from their raw layouts to scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.task import TaskConfig
from medvlp.metrics.scoring import SCORINGS
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks import TASKS
from medvlp.tasks.base import Subject
from medvlp.zoo import load_encoder

EDITIONS: dict[str, dict[str, Any]] = {
    "siim_acr": {"edition": "png"},
    "rsna_pneumonia": {},
    "object_cxr": {},
    "tbx11k": {"edition": "simplified"},
}
SHORT = ["fine_tune.steps=2", "fine_tune.validate_every=2", "fine_tune.warmup_steps=1", "fine_tune.input_size=64"]


@pytest.mark.slow
@pytest.mark.parametrize("name", list(EDITIONS))
def test_a_benchx_task_runs_from_the_raw_layout_to_scores(name: str, tmp_path: Path) -> None:
    write_layout(name, tmp_path / "raw", 90, 5, size=32, image_size=64, options=EDITIONS[name])
    given: dict[str, Any] = {"source": name, "root": tmp_path / "raw", "options": EDITIONS[name], "num_workers": 1}
    given |= {"image": {"size": 64}, "val_fraction": 0}
    prepare(PrepareConfig(out=tmp_path / "whole", **given))
    lists = {split: tmp_path / "lists" / f"{split}.txt" for split in ("val", "test", "train")}
    lists["train"].parent.mkdir()
    images = sorted(Store.open(tmp_path / "whole").images["image_id"])
    for file, own in zip(lists.values(), (images[::4], images[1::4], images[2::4] + images[3::4]), strict=True):
        file.write_text("\n".join(own))
    prepare(PrepareConfig(out=tmp_path / "store", split_lists=tmp_path / "lists", **given))
    store, encoder = Store.open(tmp_path / "store"), load_encoder("random:resnet18@64")
    areas = {}
    for file in (f"benchx_{name}_segmentation", f"{name}_segmentation"):
        task: Any = TASKS.get("segmentation")(load_config(f"benchmarks/tasks/{file}.yaml", SHORT, TaskConfig))
        samples = task.samples(store)
        subject = Subject("x", store, lambda: np.zeros((len(store), 0)), lambda: encoder)
        found = task.fit(subject, "frozen", samples["train"], samples["val"], 0).predict(samples["test"])
        scores = {(row.metric, row.label): row.value for row in SCORINGS.get("segmentation")().scores(found, {})}
        assert 0 <= scores["dice", "macro"] <= 1
        assert 0 < scores["pooled_dice", "macro"] <= 1
        assert {"hd95_mm", "hd95_pixels"} & {metric for metric, _ in scores}
        reference, _ = found.masks(slice(None))
        assert reference.any(axis=(1, 2)).sum() == (samples["test"].labels == 1).sum() > 0
        areas[file] = reference.sum()
    drawn, right = areas.values()
    assert drawn == right if name == "siim_acr" else 0.5 * right < drawn < 2 * right
