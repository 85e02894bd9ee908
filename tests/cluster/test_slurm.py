"""A real SLURM of one node: jobs are killed, refused, held up and left behind, and the work comes out the same."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import nih_layout as nih
import psutil
import pytest
import slurm_node
import work

from medvlp.cluster import run_tasks
from medvlp.config.cluster import ClusterConfig
from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.store.prepare import PrepareSummary, prepare


@pytest.fixture(scope="module")
def slurm_conf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    lacks = slurm_node.missing()
    if lacks:
        message = f"no SLURM can be started: {lacks}"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    with slurm_node.slurm(tmp_path_factory.mktemp("slurm")) as conf:
        yield conf


@pytest.fixture(autouse=True)
def _on_the_cluster(slurm_conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_conf))
    until(lambda: queue() == [])  # a job of the test before may need a moment after its result
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def run(tasks: list[work.Task], folder: Path, **cluster: object) -> dict[int, int]:
    config = ClusterConfig.model_validate({"kind": "slurm", "poll_seconds": 0.2, **cluster})
    return {task.number: result for task, result in run_tasks(work.do, tasks, config, folder, finished=work.finished)}


def queue() -> list[str]:
    return _command("squeue", "--noheader", "--format=%i %T").splitlines()


def _command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def until(ready: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def tree(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def prepared(root: Path, out: Path, *overrides: str) -> PrepareSummary:
    given = {"kind": "prepare", "source": "nih_chestxray14", "root": str(root), "out": str(out)}
    shape = ["shard_images=6", "image.size=32"]
    return prepare(load_config(None, [*shape, *overrides], PrepareConfig, given))


def job_processes(folder: Path) -> list[psutil.Process]:
    """Return the Python processes of jobs whose files are in `folder`."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if any("submitit" in word for word in words) and any(str(folder) in word for word in words):
            found.append(process)
    return found


def test_a_store_prepared_by_jobs_one_of_which_is_killed_midway(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "medvlp")
    layout = nih.small(patients=60, test_patients=12)
    layout.side = 900
    root = layout.write(tmp_path / "raw")
    (root / "images" / nih.name(17)).write_bytes(b"no picture")
    prepared(root, tmp_path / "one_process", "num_workers=1", "max_quarantine_share=0.1")
    killed: dict[str, int] = {}
    records = tmp_path / "store" / ".progress" / "shards"

    def kill_one() -> None:
        until(lambda: list(records.glob("*.json")), seconds=240)
        processes = job_processes(tmp_path / "store")
        killed["processes"] = len(processes)
        for process in processes:  # of jobs of five shards: none can have written all of them yet
            process.send_signal(signal.SIGKILL)
        killed["done"] = len(list(records.glob("*.json")))

    killer = threading.Thread(target=kill_one)
    killer.start()
    words = ["cluster.partition=main", "cluster=slurm", "cluster.tasks_per_job=5", "cluster.poll_seconds=0.2"]
    summary = prepared(root, tmp_path / "store", "max_quarantine_share=0.1", *words)
    killer.join()
    assert (summary.images, summary.quarantined) == (59, 1)
    assert killed["processes"] >= 1
    assert 1 <= killed["done"] < 10
    assert tree(tmp_path / "store") == tree(tmp_path / "one_process")
    lost = [record.message for record in caplog.records if "they are submitted again" in record.message]
    assert len(lost) == killed["processes"]
    assert "FAILED" in lost[0]
    until(lambda: queue() == [])
    assert prepared(root, tmp_path / "store", "max_quarantine_share=0.1", *words).already_complete


def test_jobs_that_are_cancelled_from_outside_are_done_again(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 3, t0="first_hang")

    def cancel() -> None:
        until(lambda: work.called(tasks[0]))
        job = next(line.split()[0] for line in queue() if "RUNNING" in line)
        _command("scancel", job)

    canceller = threading.Thread(target=cancel)
    canceller.start()
    assert run(tasks, tmp_path / "jobs", tasks_per_job=1, max_jobs=1) == {0: 0, 1: 1, 2: 4}
    canceller.join()
    assert [work.called(task) for task in tasks] == [2, 1, 1]


def test_a_requeued_job_is_waited_for(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 1, t0="first_hang")

    def requeue() -> None:
        until(lambda: work.called(tasks[0]))
        _command("scontrol", "requeue", queue()[0].split()[0])
        until(lambda: "PENDING" in queue()[0])
        time.sleep(2)  # a node refuses a job for a second after it has killed it
        _command("scontrol", "update", f"jobid={queue()[0].split()[0]}", "StartTime=now")

    requeuer = threading.Thread(target=requeue)
    requeuer.start()
    assert run(tasks, tmp_path / "jobs") == {0: 0}
    requeuer.join()
    folders = list((tmp_path / "jobs").glob("*/jobs_*"))
    assert len(folders) == 1, "the job was submitted a second time"


def test_what_always_fails_names_its_log(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 3, t1="error")
    with pytest.raises(UserError, match="1 task failed 2 times as jobs") as caught:
        run(tasks, tmp_path / "jobs", attempts=2)
    assert "ZeroDivisionError: made for a test" in Path(caught.value.where).read_text()
    assert [task.file.exists() for task in tasks] == [True, False, True]


@pytest.mark.parametrize(
    ("cluster", "message"),
    [
        ({"partition": "missing"}, "SLURM refuses the jobs: .*Invalid partition name"),
        ({"sbatch": {"begn": "now"}}, "SLURM refuses the jobs: .*begn"),
        ({"partition": "short", "minutes": 60}, "will never start: PartitionTimeLimit"),
    ],
)
def test_what_slurm_refuses_is_said(cluster: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(work.tasks(tmp_path / "out", 2), tmp_path / "jobs", **cluster)
    assert caught.value.where == "cluster"
    assert queue() == []


def test_a_machine_without_slurm_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="This machine has no SLURM: sbatch, squeue, scancel, srun cannot be found"):
        run(work.tasks(tmp_path / "out", 1), tmp_path / "jobs")


def test_a_termination_cancels_the_jobs(tmp_path: Path) -> None:
    process = _hanging_command(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert queue() == []


def test_jobs_that_a_killed_command_left_behind_end_with_the_next(tmp_path: Path) -> None:
    process = _hanging_command(tmp_path)
    process.kill()
    process.wait()
    assert len(queue()) == 1
    other = subprocess.Popen(["sbatch", "--wrap", "sleep 60", "-o", "/dev/null"], stdout=subprocess.DEVNULL)
    assert other.wait() == 0
    tasks = work.tasks(tmp_path / "out", 1, t0="first_hang")
    assert run(tasks, tmp_path / "jobs") == {0: 0}
    until(lambda: len(queue()) == 1)  # the job that was left behind and its successor are gone, that of another is not
    assert "wrap" in _command("squeue", "--noheader", "--format=%j")
    _command("scancel", "--user=root")
    until(lambda: queue() == [])


def _hanging_command(folder: Path) -> subprocess.Popen[bytes]:
    script = (
        "import work, pathlib\nfrom test_slurm import run\n"
        f"base = pathlib.Path({str(folder)!r})\n"
        "run(work.tasks(base / 'out', 1, t0='first_hang'), base / 'jobs')"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    until(lambda: (folder / "out" / "calls_0").exists())
    return process


def test_leaving_the_iterator_cancels_the_jobs(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 4, t1="hang", t2="hang", t3="hang")
    config = ClusterConfig(kind="slurm", poll_seconds=0.2, max_jobs=2)
    with contextlib.closing(run_tasks(work.do, tasks, config, tmp_path / "jobs")) as results:
        assert next(results)[1] == 0
        assert queue()
    assert queue() == []
