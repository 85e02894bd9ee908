"""Fixtures that many tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder of real test data: MEDVLP_TEST_DATA, else ../shared/data; missing, it skips a test and fails it in CI."""
    root = Path(os.environ.get("MEDVLP_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not root.is_dir():
        message = f"real test data is missing: set MEDVLP_TEST_DATA (looked at {root})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return root


@pytest.fixture(scope="session")
def oracles(test_data: Path) -> Path:
    """Folder of reference values computed with official implementations, beside the test data."""
    root = Path(os.environ.get("MEDVLP_ORACLES", test_data.parent / "oracles"))
    if not root.is_dir():
        message = f"reference values are missing: set MEDVLP_ORACLES (looked at {root})"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    return root


@pytest.fixture(scope="session")
def own_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with an export of a hospital (`export`), its store with ids kept (`store`), and a fine-tuning (`run`)."""
    import own_data

    from medvlp.finetune.run import finetune

    folder = tmp_path_factory.mktemp("own")
    store = own_data.make_store(folder, identifiers={"ids": "keep"})
    finetune(own_data.config(store, folder / "run"))
    return folder
