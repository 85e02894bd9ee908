"""Shards written here against the two readers of Zarr that exist."""

from __future__ import annotations

import hashlib
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import zarr

from medvlp.store.zarr_files import Layout, array_metadata, encoded_chunks, one_shard, write_shard_file

CASES = list(itertools.product(("int16", "uint16", "uint8"), ("none", "lz4", "zstd")))


def write(folder: Path, array: np.ndarray, layout: Layout, threads: int = 2) -> Path:
    file = folder.joinpath("c", *["0"] * array.ndim)
    file.parent.mkdir(parents=True)
    (folder / "zarr.json").write_bytes(array_metadata(layout))
    with file.open("wb") as stream:
        write_shard_file(stream, encoded_chunks(array, layout, threads), layout.cells)
    return file


@pytest.mark.parametrize(("dtype", "compressor"), CASES)
@pytest.mark.parametrize("shape", [(70, 33, 64), (1, 1, 1), (16, 16, 16)])
def test_both_readers_give_the_array_back(tmp_path: Path, dtype: str, compressor: str, shape: tuple[int, ...]) -> None:
    info = np.iinfo(dtype)
    array = np.random.default_rng(0).integers(info.min, info.max, shape, dtype=dtype, endpoint=True)
    array[:, :8] = 7
    write(tmp_path / "a", array, one_shard(shape, (16, 16, 16), dtype, compressor, ("d", "h", "w")))
    opened = zarr.open_array(tmp_path / "a", mode="r")
    assert (opened.shape, opened.dtype, opened.chunks) == (shape, np.dtype(dtype), (16, 16, 16))
    assert opened.metadata.dimension_names == ("d", "h", "w")
    assert np.array_equal(opened[:], array)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(tmp_path / "a")}}
    assert np.array_equal(tensorstore.open(spec, open=True).result().read().result(), array)


def test_threads_change_no_byte(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(-1000, 1000, (90, 90, 90)).astype(np.int16)
    layout = one_shard(array.shape, (16, 16, 16), "int16", "lz4", ("d", "h", "w"))
    digests = {
        hashlib.sha256(write(tmp_path / str(n), array, layout, threads=1 + n % 5).read_bytes()).digest()
        for n in range(12)
    }
    assert len(digests) == 1


def test_chunks_that_are_not_there_read_as_zero_and_the_index_has_a_checksum(tmp_path: Path) -> None:
    layout = Layout((10, 4), (1, 4), (10, 4), "uint8", "none", ("row", "column"))
    file = tmp_path / "a" / "c" / "0" / "0"
    file.parent.mkdir(parents=True)
    (tmp_path / "a" / "zarr.json").write_bytes(array_metadata(layout))
    with file.open("wb") as stream:
        write_shard_file(stream, [b"abcd", None, b"efgh"], layout.cells)
    expected = np.zeros((10, 4), np.uint8)
    expected[[0, 2]] = [[97, 98, 99, 100], [101, 102, 103, 104]]
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[:], expected)
    data = file.read_bytes()
    assert struct.unpack("<2Q", data[8 : 8 + 16]) == (0, 4)
    file.write_bytes(data[:9] + b"\x01" + data[10:])
    with pytest.raises(ValueError, match=r"(?i)crc|checksum"):
        zarr.open_array(tmp_path / "a", mode="r")[:]


def test_too_many_chunks_are_a_mistake(tmp_path: Path) -> None:
    with (tmp_path / "x").open("wb") as stream, pytest.raises(ValueError, match="3 chunks for a shard of 2"):
        write_shard_file(stream, [b"a", None, b"b"], 2)
