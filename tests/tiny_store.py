"""A tiny prepared store with reports, and the smallest pre-training configurations, for tests of data and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nih_layout as nih
import pandas as pd

from medvlp.config.prepare import PrepareConfig
from medvlp.config.train import PretrainConfig
from medvlp.store.prepare import prepare

SICK = (
    "FINDINGS: There is a consolidation in the right lower lobe, consistent with pneumonia. Moderate pulmonary edema. "
    "IMPRESSION: Right lower lobe pneumonia."
)
WELL = "FINDINGS: The lungs are clear. No pleural effusion. The heart is normal in size. IMPRESSION: Normal chest."


def make_store(folder: Path, patients: int = 40, reports: bool = True, val_fraction: float = 0.25) -> Path:
    """Write `folder`/store: one image a patient, 8 of them for test; every second one has Pneumonia and Edema."""
    root = nih.small(patients, 8).write(folder / "raw")
    store = folder / "store"
    options: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "val_fraction": val_fraction}
    prepare(PrepareConfig(source="nih_chestxray14", root=root, out=store, **options))
    if reports:
        studies = pd.read_parquet(store / "studies.parquet")
        numbers = range(len(studies))
        texts = [
            (SICK if sick else WELL) + f" Comparison with study {number % 7}."
            for sick, number in zip(studies["label:Pneumonia"] == 1, numbers, strict=True)
        ]
        studies["report"] = pd.array(texts, dtype=studies["report"].dtype)
        studies.to_parquet(store / "studies.parquet")
    return store


def config(store: Path, run: Path, name: str = "medclip", /, **changes: Any) -> PretrainConfig:
    """Return a configuration of seconds; `changes` are sections laid over it key by key."""
    tower: dict[str, Any] = {"name": "test_vit", "input": {"size": 32, "channels": 1, "mean": [0.5], "std": [0.25]}}
    if "kind" in changes.get("method", {}).get("image", {}):
        tower = {}  # nothing of a tower of images carries over
    text = {"hidden": 32, "layers": 2, "heads": 2, "vocab_size": 300, "max_tokens": 24, "pool": "mean"}
    tree: dict[str, Any] = {
        "run": {"dir": str(run), "seed": 1},
        "data": {"store": str(store), "num_workers": 2},
        "method": {"name": name, "image": tower, "text": text, "projection": {"dim": 16}},
        "train": {
            "steps": 6,
            "batch_size": 8,
            "device": "cpu",
            "checkpoint_every": 2,
            "log_every": 1,
            "validate_every": 3,
            "optimizer": {"lr": 1e-3, "warmup_steps": 2},
        },
        "track": {"mlflow": False},
    }
    return PretrainConfig.model_validate(_merged(tree, changes))


def _merged(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    both = {k: v for k, v in changes.items() if isinstance(v, dict) and isinstance(tree.get(k), dict)}
    return {**tree, **changes, **{key: _merged(tree[key], value) for key, value in both.items()}}
