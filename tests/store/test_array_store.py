"""Reading a store: the same pixels as zarr-python, in any order, from threads, after pickling and after a fork."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nih_layout as nih
import numpy as np
import pandas as pd
import pytest
import zarr
from test_prepare import run

from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.store.manifest import FORMAT_VERSION


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = nih.small(patients=20, test_patients=6).write(tmp_path_factory.mktemp("raw"))
    out = tmp_path_factory.mktemp("out") / "store"
    run(raw, out)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_reads_what_zarr_reads_in_the_order_asked_for(folder: Path) -> None:
    store = Store.open(folder)
    whole = zarr.open_array(folder / "images.zarr", mode="r")[:]
    wanted = np.array([19, 0, 7, 7, 3, 19])
    assert np.array_equal(store.read(wanted), whole[wanted])
    assert store.read(wanted).dtype == np.uint8
    assert store.read(np.array([], dtype=int)).shape == (0, 16, 16)
    for outside in (20, -1):
        with pytest.raises(IndexError):
            store.read(np.array([0, outside]))


def test_sixteen_bits(tmp_path: Path) -> None:
    raw = nih.small().write(tmp_path / "raw")
    run(raw, tmp_path / "store", image={"size": 16, "dtype": "uint16"})
    eight = Store.open(tmp_path / "store").read(np.arange(12))
    assert eight.dtype == np.uint16
    assert eight.max() > 60000


def test_samples_join_images_with_their_studies(folder: Path) -> None:
    store = Store.open(folder)
    samples = store.samples()
    assert list(samples["image_id"]) == list(store.images["image_id"])
    assert samples.columns.is_unique
    labels = store.studies.set_index("study_id")["label:Pneumonia"]
    assert list(samples["label:Pneumonia"]) == [labels[study] for study in samples["study_id"]]
    assert [f"label:{name}" for name in store.label_names] == [c for c in samples.columns if c.startswith("label:")]
    assert (len(store), store.size, store.dataset) == (20, 16, "nih_chestxray14")
    assert store.card.name == "nih_chestxray14"
    assert store.image_config.size == 16


def test_threads_share_a_store(folder: Path) -> None:
    store = Store.open(folder)
    whole = Store.open(folder).read(np.arange(20))
    batches = [np.random.default_rng(seed).integers(0, 20, 9) for seed in range(64)]
    with ThreadPoolExecutor(8) as pool:
        for batch, pixels in zip(batches, pool.map(store.read, batches), strict=True):
            assert np.array_equal(pixels, whole[batch])


def test_pickled_after_use(folder: Path) -> None:
    store = Store.open(folder)
    pixels = store.read(np.arange(5))
    again = pickle.loads(pickle.dumps(store))
    assert again.hash == store.hash
    assert np.array_equal(again.read(np.arange(5)), pixels)


def test_used_after_a_fork(folder: Path) -> None:
    store = Store.open(folder)
    pixels = store.read(np.array([3, 1, 3]))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put(store.read(np.array([3, 1, 3]))))
    child.start()
    assert np.array_equal(queue.get(), pixels)
    child.join()


def test_opening_is_light(folder: Path) -> None:
    code = (
        "import sys; from medvlp.store.array_store import Store; Store.open(sys.argv[1]);"
        "print([m for m in ('torch', 'pandas', 'zarr', 'tensorstore', 'cv2', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("version", "fix"), [(0, "Prepare the data set again"), (99, "Update medvlp"), ("x", "Update medvlp")]
)
def test_other_format_versions(copy: Path, version: object, fix: str) -> None:
    meta = json.loads((copy / "store.json").read_text())
    (copy / "store.json").write_text(json.dumps(meta | {"format_version": version}))
    with pytest.raises(
        UserError, match=f"format version {version}; this medvlp reads version {FORMAT_VERSION}"
    ) as caught:
        Store.open(copy)
    assert fix in caught.value.fix


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"format_version":'])
def test_a_damaged_store_file(copy: Path, content: str) -> None:
    (copy / "store.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        Store.open(copy)


def test_no_store(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="There is no prepared store") as caught:
            Store.open(path)
        assert "medvlp data prepare" in caught.value.fix


def test_a_missing_shard_is_not_read_as_black(copy: Path) -> None:
    shutil.rmtree(copy / "images.zarr" / "c" / "2")
    with pytest.raises(UserError, match="A shard of the store is missing") as caught:
        Store.open(copy).read(np.array([0]))
    assert caught.value.where.endswith("images.zarr/c/2/0/0")


def test_a_truncated_shard_is_an_error(copy: Path) -> None:
    shard = copy / "images.zarr" / "c" / "1" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(UserError, match="cannot be read"):
        Store.open(copy).read(np.array([4]))


def test_a_damaged_table(copy: Path) -> None:
    (copy / "images.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="table of the store is damaged"):
        _ = Store.open(copy).images


def test_missing_values_stay_missing(folder: Path) -> None:
    studies = Store.open(folder).studies
    assert studies["report"].isna().all()
    assert studies["site"].isna().all()
    assert pd.api.types.is_float_dtype(studies["age"])
