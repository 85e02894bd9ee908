"""Killed, starved or doubled: the store comes out the same."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nih_layout as nih
import psutil
import pytest
import volume_source
from test_prepare import run, tree

from medvlp.errors import UserError
from medvlp.store import files, workers
from medvlp.store.array_store import Store

KILL_AT_EVERY_STEP = """
import importlib, os, pathlib, shutil, signal, sys
run = importlib.import_module(sys.argv[4]).run

root, out, at_once = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3])

def killed_after(count):
    "Prepare in a fork that kills itself after `count` changes of the disk; tell whether it was killed."
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = count
    def dying(function):
        def wrapped(*arguments, **options):
            nonlocal left
            value = function(*arguments, **options)
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return value
        return wrapped
    os.fsync, shutil.rmtree = dying(os.fsync), dying(shutil.rmtree)
    pathlib.Path.replace, pathlib.Path.unlink = dying(pathlib.Path.replace), dying(pathlib.Path.unlink)
    run(root, out)
    os._exit(0)

run(root, out.with_name("warm"))  # imports everything, so that a fork is quick
kills = 0
if at_once:   # one chain of kills, each run living longer than the last
    while killed_after(at_once * (kills + 1)):
        kills += 1
else:         # every step on its own, each from an empty folder
    while killed_after(kills + 1):
        kills += 1
        assert not killed_after(10 ** 9)
        os.rename(out, out.with_name(f"killed_{kills}"))
print(kills)
"""


def python(*arguments: object) -> subprocess.Popen[str]:
    folder = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(folder.parent), *sys.path])}
    command = [sys.executable, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nih.small(patients=7, test_patients=3).write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def reference(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("reference") / "store"
    run(raw, out)
    return out


def test_killed_at_every_single_step(raw: Path, reference: Path, tmp_path: Path) -> None:
    out, error = python("-c", KILL_AT_EVERY_STEP, raw, tmp_path / "store", 0, "test_prepare").communicate()
    assert out, error
    kills = int(out)
    assert kills >= 2 * (2 * 2 + 7)  # flush and rename of 2 shards and records, plan, array, 4 tables and store.json
    expected = tree(reference)
    for kill in range(1, kills + 1):
        assert tree(tmp_path / f"killed_{kill}") == expected, f"killed after change {kill}"


def test_killed_again_and_again(raw: Path, reference: Path, tmp_path: Path) -> None:
    out, error = python("-c", KILL_AT_EVERY_STEP, raw, tmp_path / "store", 5, "test_prepare").communicate()
    assert out, error
    assert int(out) >= 2
    assert tree(tmp_path / "store") == tree(reference)


def test_volumes_and_label_maps_killed_at_every_third_step(tmp_path: Path) -> None:
    root = volume_source.write(tmp_path / "raw")
    volume_source.run(root, tmp_path / "reference")
    out, error = python("-c", KILL_AT_EVERY_STEP, root, tmp_path / "store", 3, "volume_source").communicate()
    assert out, error
    assert int(out) >= 5
    assert tree(tmp_path / "store") == tree(tmp_path / "reference")


def test_killed_from_outside_with_worker_processes(tmp_path: Path) -> None:
    layout = nih.small(patients=48, test_patients=10)
    layout.side = 700
    root = layout.write(tmp_path / "raw")
    run(root, tmp_path / "reference")
    command = (
        "from pathlib import Path\nfrom test_prepare import run\n"
        f"run(Path({str(root)!r}), Path({str(tmp_path / 'store')!r}), num_workers=2)"
    )
    process = python("-c", command)
    records = tmp_path / "store" / ".progress" / "shards"
    while process.poll() is None and len(list(records.glob("*.json"))) < 4:
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run ended before it could be killed"
    process.communicate()
    assert children
    assert psutil.wait_procs(children, timeout=20)[1] == [], "workers outlive the run that started them"
    with pytest.raises(UserError, match="not finished"):
        Store.open(tmp_path / "store")
    done = {path.name for path in records.glob("*.json")}
    assert 4 <= len(done) < 12
    before = {path: path.stat().st_mtime_ns for path in records.parent.parent.glob("images.zarr/c/*/0/0")}
    run(root, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(tmp_path / "reference")
    kept = [path for path, changed in before.items() if path.stat().st_mtime_ns == changed]
    assert len(kept) >= len(done), "finished shards were written again"


def test_a_full_disk_is_said_and_the_work_goes_on_later(
    raw: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = [5]
    flush = os.fsync

    def fill(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        flush(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(UserError, match="The disk is full: No space left") as caught:
            run(raw, tmp_path / "store")
    assert "run the same command again" in caught.value.fix
    assert list((tmp_path / "store" / ".progress" / "tmp").iterdir()) == []
    run(raw, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(reference)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A real disk of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_really_full_and_a_really_read_only_disk(raw: Path, reference: Path, small_disk: Path) -> None:
    out = small_disk / "store"
    (small_disk / "filler").write_bytes(bytes(50 << 10))
    with pytest.raises(UserError, match="The disk is full"):
        run(raw, out, num_workers=2)
    (small_disk / "filler").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UserError, match="cannot be written: Read-only file system"):
        run(raw, out)
    subprocess.run(["mount", "-o", "remount,rw,size=1m", str(small_disk)], check=True)
    run(raw, out)
    assert tree(out) == tree(reference)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert run(raw, out).already_complete
    assert len(Store.open(out).read(range(4))) == 4


def test_a_worker_that_dies_is_said(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start_worker", functools.partial(os._exit, 3))
    with pytest.raises(UserError, match="A worker process died"):
        run(raw, tmp_path / "store", num_workers=2)


def test_two_runs_into_one_store_and_a_dead_one(raw: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    command = (
        "import time\nfrom pathlib import Path\nfrom medvlp.store.files import locked\n"
        f"with locked(Path({str(out)!r}) / '.progress'):\n    print('holding', flush=True)\n    time.sleep(60)"
    )
    other = python("-c", command)
    assert other.stdout is not None
    assert other.stdout.readline() == "holding\n"
    with pytest.raises(UserError, match=rf"Another run is writing this store \(process {other.pid} on "):
        run(raw, out)
    other.kill()
    other.communicate()
    run(raw, out)
    assert tree(out) == tree(reference)


def test_a_damaged_record_or_shard_is_written_again(raw: Path, reference: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvlp.store.prepare.finish", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(raw, out)
    records = sorted((out / ".progress" / "shards").iterdir())
    records[0].write_text('{"rows": [')
    record = json.loads(records[1].read_text())
    shard = out / "images.zarr" / "c" / "1" / "0" / "0"
    assert record["bytes"] == [shard.stat().st_size, 0]
    shard.write_bytes(shard.read_bytes()[:-1])
    run(raw, out)
    assert tree(out) == tree(reference)


def test_a_lock_that_was_removed_while_waiting_protects_nothing(tmp_path: Path) -> None:
    with files.locked(tmp_path / "p"):
        (tmp_path / "p" / "lock").unlink()
        with files.locked(tmp_path / "p"), pytest.raises(UserError, match="Another run"), files.locked(tmp_path / "p"):
            pass
