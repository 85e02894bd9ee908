"""Stores on an S3 server of this machine: the same contents, and never half a store."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nih_layout as nih
import numpy as np
import pytest
import s3fs
import volume_source
from moto.server import ThreadedMotoServer
from test_prepare import run, tree
from upath import UPath

from medvlp.cli import app
from medvlp.errors import UserError
from medvlp.store import copying
from medvlp.store.array_store import Store
from medvlp.store.copying import copy_store
from medvlp.store.files import locked
from medvlp.store.remote import kvstore, place

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    moto = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    moto.start()
    yield "http://{}:{}".format(*moto.get_host_and_port())
    moto.stop()


@pytest.fixture(autouse=True)
def bucket(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[UPath]:
    """An empty bucket."""
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server, "AWS_MAX_ATTEMPTS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no_config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    root = UPath("s3://hospital")
    root.fs.mkdir("hospital")
    yield root
    s3fs.S3FileSystem.clear_instance_cache()
    UPath("s3://hospital").fs.rm("hospital", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = nih.small(patients=20, test_patients=6).write(tmp_path_factory.mktemp("raw"))
    out = tmp_path_factory.mktemp("out") / "store"
    run(raw, out)
    return out


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    volume_source.run(volume_source.write(tmp_path_factory.mktemp("raw") / "volumes"), out)
    return out


def objects(at: UPath) -> dict[str, int]:
    at.fs.invalidate_cache()
    start = len(at.path) + 1
    return {name[start:]: facts["size"] for name, facts in at.fs.find(at.path, detail=True).items()}


def test_images_there_are_the_images_here(folder: Path, bucket: UPath) -> None:
    summary = copy_store(folder, str(bucket / "stores" / "nih"))
    here, there = Store.open(folder), Store.open("s3://hospital/stores/nih")
    assert summary.hash == there.hash == here.hash
    assert (summary.files, summary.sent) == (len(tree(folder)), len(tree(folder)) - 1)
    assert objects(bucket / "stores" / "nih") == {name: (folder / name).stat().st_size for name in tree(folder)}
    assert there.studies.equals(here.studies)
    assert there.images.equals(here.images)
    assert there.card.text == here.card.text
    rows = np.random.default_rng(0).integers(0, 20, 64)
    assert np.array_equal(there.read(rows), here.read(rows))
    with ThreadPoolExecutor(4) as pool:
        for part, pixels in zip(rows.reshape(8, 8), pool.map(there.read, rows.reshape(8, 8)), strict=True):
            assert np.array_equal(pixels, here.read(part))
    assert np.array_equal(pickle.loads(pickle.dumps(there)).read(rows), here.read(rows))
    with multiprocessing.get_context("spawn").Pool(1) as processes:
        assert np.array_equal(processes.apply(there.read, (rows,)), here.read(rows))
    assert kvstore(there.path)["driver"] == "s3"


def test_volumes_there_are_the_volumes_here(volumes: Path, bucket: UPath) -> None:
    copy_store(volumes, "s3://hospital/ct")
    here, there = Store.open(volumes), Store.open("s3://hospital/ct")
    for index in range(len(here)):
        assert np.array_equal(there.read_volume(index).array, here.read_volume(index).array)
        assert there.has_labels(index) == here.has_labels(index)
    assert np.array_equal(there.crop(0, (1, 2, 3), (4, 5, 6)), here.crop(0, (1, 2, 3), (4, 5, 6)))
    labelled = next(index for index in range(len(here)) if here.has_labels(index))
    assert np.array_equal(there.read_labels(labelled)[0], here.read_labels(labelled)[0])
    (bucket / "ct" / "volumes.zarr" / "000001" / "c" / "0" / "0" / "0").unlink()
    with pytest.raises(UserError, match="is missing"):
        Store.open("s3://hospital/ct").read_volume(1)


def test_back_to_a_disk(folder: Path, bucket: UPath, tmp_path: Path) -> None:
    copy_store(folder, "s3://hospital/nih")
    copy_store("s3://hospital/nih", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(folder)
    assert copy_store(tmp_path / "back", tmp_path / "again").sent == len(tree(folder)) - 1
    assert tree(tmp_path / "again") == tree(folder)
    assert copy_store(folder, tmp_path / "again").sent == 0


def test_other_file_systems_are_read_through_zarr(folder: Path, volumes: Path) -> None:
    copy_store(folder, "memory://stores/nih")
    copy_store(volumes, "memory://stores/ct")
    assert kvstore(place("memory://stores/nih")) is None
    rows = np.array([3, 17, 3, 0])
    assert np.array_equal(Store.open("memory://stores/nih").read(rows), Store.open(folder).read(rows))
    there = Store.open("memory://stores/ct")
    assert np.array_equal(there.crop(1, (0, 1, 2), (3, 3, 3)), Store.open(volumes).crop(1, (0, 1, 2), (3, 3, 3)))


def test_a_copy_that_was_interrupted_goes_on(folder: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Path] = []
    send = copying._send

    def some(source: Path, target: Path, scratch: Path) -> None:
        if len(sent) == 4:
            raise KeyboardInterrupt
        sent.append(source)
        send(source, target, scratch)

    with monkeypatch.context() as patch:
        patch.setattr(copying, "_send", some)
        with pytest.raises(KeyboardInterrupt):
            copy_store(folder, "s3://hospital/nih", threads=1)
    assert len(objects(bucket / "nih")) == 5  # four files and the mark
    with pytest.raises(UserError, match="only half copied") as caught:
        Store.open("s3://hospital/nih")
    assert "`medvlp data copy`" in caught.value.fix
    assert copy_store(folder, "s3://hospital/nih").sent == len(tree(folder)) - 1 - 4
    assert Store.open("s3://hospital/nih").hash == Store.open(folder).hash
    assert ".copying.json" not in objects(bucket / "nih")


def test_a_copy_that_was_killed_goes_on(folder: Path, tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom medvlp.store import copying\n"
        "verify = copying._verify\ncopying._verify = lambda *a: os.kill(os.getpid(), 9)\n"
        "copying.copy_store(sys.argv[1], sys.argv[2])"
    )
    for target in ("s3://hospital/nih", str(tmp_path / "copy")):
        killed = subprocess.run([sys.executable, "-c", script, str(folder), target], capture_output=True)
        assert killed.returncode == -9
        with pytest.raises(UserError, match="only half copied"):
            Store.open(target)
        assert copy_store(folder, target).sent == 0
    assert tree(tmp_path / "copy") == tree(folder)


def test_two_runs_never_copy_into_one_folder(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with locked(target / copying.SCRATCH), pytest.raises(UserError, match="Another run is writing this store") as told:
        copy_store(folder, target)
    assert told.value.where == str(target)
    assert copy_store(folder, target).sent == len(tree(folder)) - 1
    with locked(target / copying.SCRATCH):
        assert copy_store(folder, target).sent == 0  # a whole copy is only read
    assert tree(target) == tree(folder)


def test_what_is_damaged_on_the_way_is_found(folder: Path, bucket: UPath, monkeypatch: pytest.MonkeyPatch) -> None:
    send = copying._send

    def damage(source: Path, target: Path, scratch: Path) -> None:
        if target.name == "0" and "/c/2/" in str(target):
            data = bytearray(source.read_bytes())
            data[5] ^= 1
            target.write_bytes(bytes(data))
        else:
            send(source, target, scratch)

    with monkeypatch.context() as patch:
        patch.setattr(copying, "_send", damage)
        with pytest.raises(
            UserError, match=r"1 files of the copy differ from their source, such as images\.zarr/c/2/0/0"
        ):
            copy_store(folder, "s3://hospital/nih")
    with pytest.raises(UserError, match="only half copied"):
        Store.open("s3://hospital/nih")
    assert copy_store(folder, "s3://hospital/nih").sent == 1
    shard = bucket / "nih" / "images.zarr" / "c" / "2" / "0" / "0"
    shard.write_bytes(b"x" + shard.read_bytes()[1:])
    with pytest.raises(UserError, match="differ") as caught:
        copy_store(folder, "s3://hospital/nih")
    assert caught.value.fix == "Remove the copy and make it anew."
    shard.unlink()
    with pytest.raises(UserError, match="A shard of the store is missing"):
        Store.open("s3://hospital/nih").read([0])
    with pytest.raises(UserError, match="1 of its files are missing"):
        copy_store(folder, "s3://hospital/nih")


def test_nothing_else_is_overwritten(folder: Path, volumes: Path, bucket: UPath, tmp_path: Path) -> None:
    copy_store(volumes, "s3://hospital/ct")
    with pytest.raises(UserError, match="holds another store"):
        copy_store(folder, "s3://hospital/ct")
    (bucket / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty and holds no store"):
        copy_store(folder, "s3://hospital/notes")
    (bucket / "begun" / ".copying.json").write_text(json.dumps({"store": "other"}))
    with pytest.raises(UserError, match="begun copy of another store"):
        copy_store(folder, "s3://hospital/begun")
    (tmp_path / "empty_inside" / "sub").mkdir(parents=True)
    with pytest.raises(UserError, match="not empty and holds no store"):
        copy_store(folder, tmp_path / "empty_inside")
    with pytest.raises(UserError, match="onto itself"):
        copy_store(folder, folder)
    assert sorted(objects(bucket / "notes")) == ["a.txt"]
    half = Path(shutil.copytree(folder, tmp_path / "half"))
    (half / "store.json").unlink()
    with pytest.raises(UserError, match="no prepared store"):
        copy_store(half, "s3://hospital/half")


def test_what_cannot_be_reached_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(function: object, *arguments: object) -> UserError:
        s3fs.S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError) as caught:
            function(*arguments)  # type: ignore[operator]
        return caught.value

    assert "The bucket does not exist" in said(copy_store, folder, "s3://nowhere/store").what
    assert "There is no prepared store" in said(Store.open, "s3://hospital/nothing").what
    assert "nix" in said(Store.open, "nix://bucket/store").what
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        error = said(Store.open, "s3://hospital/store")
        assert "no usable credentials" in error.what
        assert "AWS_ACCESS_KEY_ID" in error.fix
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        error = said(Store.open, "s3://hospital/store")
        assert "cannot be reached" in error.what
        assert "AWS_ENDPOINT_URL" in error.fix
    script = "import sys\nsys.modules['s3fs'] = None\nfrom medvlp.store.remote import place\nplace('s3://a/b')"
    failed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'medvlp[s3]'" in failed.stderr


def test_a_local_path_needs_none_of_the_libraries(folder: Path) -> None:
    script = (
        "import sys\nfrom medvlp.store.array_store import Store\n"
        f"store = Store.open({str(folder)!r})\nstore.read([0])\nstore.images\n"
        "assert not {'upath', 's3fs', 'botocore'} & set(sys.modules), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert place(f"file://{folder}") == folder


def test_the_command_line_takes_urls(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def call(*words: object) -> str:
        with pytest.raises(SystemExit) as ended:
            app([str(word) for word in words])
        assert ended.value.code == 0
        return capsys.readouterr().out

    out = call("data", "copy", folder, "s3://hospital/nih")
    assert "are in s3://hospital/nih" in out
    assert "medvlp data show s3://hospital/nih --html store.html" in out
    call("data", "show", "s3://hospital/nih", "--html", tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_size > 10_000
    with pytest.raises(UserError, match="A store is prepared on a disk") as caught:
        run(tmp_path, Path("s3://hospital/new"))
    assert "medvlp data copy FOLDER s3://hospital/new" in caught.value.fix
