"""Prepared stores of synthetic clips."""

from __future__ import annotations

from pathlib import Path

import clip_stores
import pytest


@pytest.fixture(scope="session")
def echo_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of 24 loops of the heart, 32 pixels."""
    return clip_stores.make_echo(tmp_path_factory.mktemp("echo"))


@pytest.fixture(scope="session")
def operations_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of the frames of 8 operations, 32 pixels."""
    return clip_stores.make_operations(tmp_path_factory.mktemp("operations"))
