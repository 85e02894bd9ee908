"""A tiny prepared store of the phantom, with boxes, masks and reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.phantom import write_phantom
from medvlp.store.prepare import prepare


def make_store(folder: Path, studies: int = 48, **options: Any) -> Path:
    """Write `folder`/store of radiographs of 64 × 64 pixels."""
    write_phantom(folder / "raw", studies, seed=3, size=32, image_size=64)
    given: dict[str, Any] = {"image": {"size": 64}, "num_workers": 1, **options}
    prepare(PrepareConfig(source="phantom", root=folder / "raw", out=folder / "store", **given))
    return folder / "store"
