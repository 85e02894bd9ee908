"""Report generation of BenchX on a miniature of IU X-Ray, and of the phantom, by the shipped tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import phantom_store
import pytest
import torch

from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.task import TaskConfig
from medvlp.metrics import report_generation
from medvlp.metrics.scoring import SCORINGS
from medvlp.models.memory_decoder import MemoryDecoder
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.array_store import Store
from medvlp.store.prepare import prepare
from medvlp.tasks import TASKS
from medvlp.tasks._fine_tune import FineTuning
from medvlp.tasks.base import Subject
from medvlp.zoo import Encoder, load_encoder

SHORT = ["fine_tune.epochs=1", "fine_tune.steps=1", "reports.max_tokens=12", "reports.min_count=1"]
SMALL = ["width=16", "hidden=16", "layers=1", "heads=2", "memory_heads=2"]


@pytest.fixture(scope="module")
def iu(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("iu")
    write_layout("iu_xray", folder / "raw", 24, 5, size=32, image_size=64, options={"edition": "r2gen"})
    given: dict[str, Any] = {"image": {"size": 64}, "num_workers": 1, "options": {"edition": "r2gen"}}
    prepare(PrepareConfig(source="iu_xray", root=folder / "raw", out=folder / "store", **given))
    return Store.open(folder / "store")


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return load_encoder("random:test_vit@32")


def shipped(name: str, *changes: str) -> Any:
    config = load_config(f"benchmarks/tasks/{name}.yaml", list(changes), TaskConfig)
    return TASKS.get("report_generation")(config)


@pytest.mark.parametrize("name", ["iu_xray_reports", "benchx_iu_xray_reports", "phantom_reports"])
def test_a_shipped_task_runs_from_the_raw_layout_to_scores(
    name: str, iu: Store, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_generation, "computable", lambda: ("bleu_4", "rouge_l"))
    store = Store.open(phantom_store.make_store(tmp_path, 24)) if name.startswith("phantom") else iu
    made = shipped(name, *SHORT, "fine_tune.input_size=32", *(f"reports.decoder.{text}" for text in SMALL))
    samples = made.samples(store)
    subject = Subject("x", store, lambda: np.zeros((len(store), 0)), lambda: encoder)
    kept = made.fit(subject, "frozen", samples["train"], samples["val"], 0).predict(samples["test"])
    scores = {(row.metric, row.label): row.value for row in SCORINGS.get("report_generation")().scores(kept, {})}
    assert 0 <= scores["finding_f1_micro", "macro"] <= 1
    assert 0 <= scores["bleu_4", "macro"] <= 1
    assert kept.words == ("r2gen" if name.startswith("benchx") else "simple")
    longest = max(len(text.split()) for text in kept.references)
    assert longest <= 12 if name.startswith("benchx") else longest > 12


def test_benchx_trains_r2gen_as_released(iu: Store, encoder: Encoder) -> None:
    """Settings of its configuration: sizes, Adam with amsgrad, ImageNet normalisation, two views, words of R2Gen."""
    made = shipped("benchx_iu_xray_reports", "reports.min_count=1", "fine_tune.input_size=32")
    samples = made.samples(iu)
    assert {split: len(own) for split, own in samples.items()} == {
        split: int((iu.studies["split"] == split).sum()) for split in ("train", "val", "test")
    }
    with torch.random.fork_rng():
        tunable = made._by("frozen").tunable(encoder, iu, samples["train"], samples["val"], 0)
    decoder = tunable.network.decoder
    assert isinstance(decoder, MemoryDecoder)
    assert (decoder.width, len(decoder.encoder), len(decoder.decoder), decoder.memory.slots) == (512, 3, 3, 3)
    assert tunable.input.mean == pytest.approx((0.449,)), "a grey encoder takes the average"
    shown = tunable.images.of(samples["train"].rows)
    assert shown.shape[1] == 2
    assert (shown >= 0).mean() > 0.9, "nearly every study of the miniature has two images"
    assert tunable.kept is not None
    tuning = FineTuning(tunable, made.config.fine_tune, 0)
    assert isinstance(tuning.optimizer, torch.optim.Adam)
    assert not isinstance(tuning.optimizer, torch.optim.AdamW)
    assert tuning.optimizer.defaults["amsgrad"]
    assert tuning.optimizer.defaults["weight_decay"] == 5e-5
    assert tuning._rate(0) == 1.0
    assert made.config.reports.ban_unknown is False


class OneSize(torch.nn.Module):
    """A tower for images of one side, like the windows of MedCLIP's Swin."""

    def __init__(self, tower: Any) -> None:
        super().__init__()
        self.tower, self.side = tower, 32

    def set_input_size(self, side: int) -> None:
        self.side = side

    def forward(self, pixels: torch.Tensor) -> Any:
        assert pixels.shape[2] == self.side
        return self.tower(pixels)


def test_an_encoder_for_one_size_writes_from_images_of_another(iu: Store) -> None:
    encoder = load_encoder("random:test_vit@32")
    encoder.image_tower = OneSize(encoder.image_tower)
    made = shipped(
        "benchx_iu_xray_reports", *SHORT, "fine_tune.input_size=64", *(f"reports.decoder.{x}" for x in SMALL)
    )
    samples = made.samples(iu)
    subject = Subject("x", iu, lambda: np.zeros((len(iu), 0)), lambda: encoder)
    assert len(made.fit(subject, "frozen", samples["train"], samples["val"], 0).predict(samples["test"]).generated)
    assert encoder.image_tower.side == 32, "the encoder of other cells is left as it was"
