"""A small prepared phantom for tests of methods."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.phantom.write import write_phantom
from medvlp.store.prepare import prepare


@pytest.fixture(scope="session")
def phantom_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of 48 phantom studies at 64 pixels, with reports, boxes and several views."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder / "raw", studies=48, seed=3)
    prepare(
        PrepareConfig(source="phantom", root=folder / "raw", out=folder / "store", image={"size": 64}, num_workers=1)
    )
    return folder / "store"
