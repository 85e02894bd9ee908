"""A tiny prepared store of CT with reports and label maps, and the smallest configuration to pre-train on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import tiny_store

from medvlp.config.prepare import PrepareConfig
from medvlp.config.train import PretrainConfig
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.prepare import prepare

SIZE = 32
"""Voxels of a side."""


def make_store(folder: Path, studies: int = 16, **options: Any) -> Path:
    """Write `folder`/store of CT of 32³ voxels; the first 4 patients are for validation, the others for training."""
    write_layout("phantom_ct", folder / "raw", studies, seed=3, size=SIZE)
    given: dict[str, Any] = {"num_workers": 1, **options}
    prepare(PrepareConfig(source="phantom_ct", root=folder / "raw", out=folder / "store", **given))
    table = folder / "store" / "studies.parquet"
    frame = pd.read_parquet(table)
    first = frame["patient_id"].isin(frame["patient_id"].unique()[:4])
    frame["split"] = pd.array(["val" if own else "train" for own in first], dtype=frame["split"].dtype)
    frame.to_parquet(table)
    return folder / "store"


TOWER = {
    "kind": "volume",
    "family": "vit",
    "name": "vit_tiny_patch16_224",
    "args": {"depth": 2, "embed_dim": 48, "num_heads": 2},
    "patch": [8, 8, 8],
    "input": {"size": [16, 24, 24], "spacing_mm": None, "windows": ["lung", "mediastinum"]},
}


def config(store: Path, run: Path, name: str = "clip", /, **changes: Any) -> PretrainConfig:
    """Return a configuration of seconds; `changes` are sections laid over it key by key."""
    method = {"image": TOWER} | changes.pop("method", {})
    return tiny_store.config(store, run, name, method=method, **changes)
