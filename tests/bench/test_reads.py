"""Images that are decoded once are those of the store."""

from __future__ import annotations

import pickle
from pathlib import Path

import bench_store
import numpy as np
import pytest

from medvlp.bench import reads
from medvlp.bench.reads import SharedReads
from medvlp.store.array_store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_store(tmp_path_factory.mktemp("reads"), patients=12, test_patients=4)


def test_images_are_those_of_the_store_and_each_is_decoded_once(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shared, asked = Store.open(store), SharedReads.open(store), []
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, rows: asked.extend(np.asarray(rows).tolist()) or read(self, rows))
    for rows in ([3, 1, 3], [1, 2], [], [5, 3]):
        wanted = np.array(rows, dtype=np.int64)
        assert np.array_equal(shared.read(wanted), read(plain, wanted))
    assert sorted(asked) == [1, 2, 3, 5]
    shared.read(np.array([1]))[:] = 0  # a copy: what is kept stays as it is
    assert np.array_equal(shared.read(np.array([1])), read(plain, np.array([1])))
    with pytest.raises(IndexError, match="rows 0 to 99"):
        shared.read(np.array([0, 99]))


def test_a_store_that_does_not_fit_is_read_as_it_is(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "MEMORY_SHARE", 1e-9)
    shared = SharedReads.open(store)
    assert np.array_equal(shared.read(np.array([2])), Store.open(store).read(np.array([2])))
    assert shared._kept is None


def test_it_travels_as_its_path(store: Path) -> None:
    again = pickle.loads(pickle.dumps(SharedReads.open(store)))
    assert isinstance(again, SharedReads)
    assert again.path == store
