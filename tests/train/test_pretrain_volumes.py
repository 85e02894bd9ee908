"""A method on volumes trains, resumes to the same bits, and is exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_ct
from safetensors.numpy import load_file

from medvlp.store.array_store import Store
from medvlp.train import pretrain
from medvlp.zoo import load_encoder

AUGMENT = {"flip": ["w"], "rotate_degrees": [10, 0, 0], "scale": 0.1, "noise": 10}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ct.make_store(tmp_path_factory.mktemp("ct"))


def run(store: Path, folder: Path, steps: int, **changes: Any) -> Path:
    train = {"steps": steps, "batch_size": 4, "optimizer": {"schedule": "constant"}}
    return pretrain(tiny_ct.config(store, folder, train=train, data={"augment": AUGMENT, **changes}))


def test_a_resumed_run_ends_with_the_same_bits(store: Path, tmp_path: Path) -> None:
    whole = run(store, tmp_path / "whole", 6)
    run(store, tmp_path / "parts", 4)
    parts = run(store, tmp_path / "parts", 6, num_workers=0)
    one, two = (load_file(folder / "model" / "model.safetensors") for folder in (whole, parts))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)
    steps = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert any("val/loss" in step for step in steps)
    encoder = load_encoder(str(whole))
    features = encoder.encode_rows(Store.open(store), np.arange(3))
    assert features.pooled.shape[0] == 3
    again = load_encoder(str(parts)).encode_rows(Store.open(store), np.arange(3))
    assert np.array_equal(features.pooled.numpy(), again.pooled.numpy())
