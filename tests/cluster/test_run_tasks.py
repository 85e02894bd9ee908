"""Tasks by processes and by local jobs: the same results, whatever happens to the jobs."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import work

from medvlp.cluster import jobs, run_tasks
from medvlp.cluster.backends import Phase, Sight
from medvlp.config.cluster import ClusterConfig
from medvlp.errors import UserError


@pytest.fixture(autouse=True)
def _importable_by_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def run(tasks: list[work.Task], folder: Path, finished: bool = True, **cluster: object) -> dict[int, int]:
    config = ClusterConfig.model_validate(cluster)
    found: dict[int, int] = {}
    results = run_tasks(work.do, tasks, config, folder, finished=work.finished if finished else None)
    for task, result in results:
        assert task.number not in found, "a result came twice"
        found[task.number] = result
    return found


def squares(count: int) -> dict[int, int]:
    return {number: number**2 for number in range(count)}


@pytest.mark.parametrize("kind", ["none", "local", "debug"])
def test_every_kind_gives_the_same(kind: str, tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 5)
    assert run(tasks, tmp_path / "jobs", kind=kind) == squares(5)
    assert [work.called(task) for task in tasks] == [1] * 5
    assert run([], tmp_path / "jobs", kind=kind) == {}


def test_a_job_uses_its_cores(tmp_path: Path) -> None:
    tasks = [dataclasses.replace(task, seconds=1.5) for task in work.tasks(tmp_path / "out", 4)]
    assert run(tasks, tmp_path / "jobs", kind="local", cpus_per_task=2, tasks_per_job=4) == squares(4)
    assert len({(tmp_path / "out" / f"calls_{n}").read_text() for n in range(4)}) == 2


@pytest.mark.parametrize("with_records", [True, False])
def test_a_job_that_is_killed_is_done_again(with_records: bool, tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 6, t1="first_kill", t5="first_error")
    assert run(tasks, tmp_path / "jobs", with_records, kind="local", tasks_per_job=3, max_jobs=2) == squares(6)
    expected = [1, 2, 1, 1, 1, 2] if with_records else [2, 2, 1, 2, 2, 2]
    assert [work.called(task) for task in tasks] == expected


def test_what_always_fails_is_said_at_the_end_with_its_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tasks = work.tasks(tmp_path / "out", 5, t1="error")
    with pytest.raises(UserError) as caught:
        run(tasks, tmp_path / "jobs", kind="local", tasks_per_job=3, max_jobs=2, attempts=2)
    assert caught.value.what.startswith("1 task failed 2 times as jobs")
    assert "ZeroDivisionError: made for a test" in Path(caught.value.where).read_text()
    assert [task.number for task in tasks if not task.file.exists()] == [1]
    # Job of three: task 0 was finished, so that 1 and 2 come back together; then each alone.
    assert work.called(tasks[1]) == 3
    assert "they are submitted again" in caplog.text


def test_a_mistake_of_the_user_stops_all_at_once(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 4, t0="mistake", t1="hang", t2="hang", t3="hang")
    started = time.monotonic()
    with pytest.raises(UserError, match="The disk is full") as caught:
        run(tasks, tmp_path / "jobs", kind="local", tasks_per_job=1, max_jobs=4)
    assert (caught.value.where, caught.value.fix) == ("the disk", "Free some space.")
    assert time.monotonic() - started < 60
    assert _jobs_in(tmp_path) == []


def test_leaving_the_iterator_ends_the_jobs(tmp_path: Path) -> None:
    tasks = work.tasks(tmp_path / "out", 2, t1="hang")
    config = ClusterConfig(kind="local", tasks_per_job=1, max_jobs=2)
    with contextlib.closing(run_tasks(work.do, tasks, config, tmp_path / "jobs")) as results:
        assert next(results)[1] == 0
        assert _jobs_in(tmp_path)
    assert _jobs_in(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_jobs_end_with_the_command_that_submitted_them(number: int, tmp_path: Path) -> None:
    script = (
        "import work, pathlib\nfrom test_run_tasks import run\n"
        f"base = pathlib.Path({str(tmp_path)!r})\n"
        "run(work.tasks(base / 'out', 1, t0='hang'), base / 'jobs', kind='local')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "out" / "calls_0").exists() and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(30)
    while _jobs_in(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert _jobs_in(tmp_path) == []
    assert (tmp_path / "out" / "calls_0").exists()


def _jobs_in(folder: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["pid", "cmdline", "status"]):
        line = " ".join(process.info["cmdline"] or ())
        if "submitit" in line and str(folder) in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            found.append(process.info["pid"])
    return found


class FakeJob:
    def __init__(self, job_id: str, batch: jobs.Batch[work.Task, int], folder: Path) -> None:
        self.job_id, self.batch = job_id, batch
        self.paths = type("Paths", (), {"stderr": folder / f"{job_id}.err"})


class FakeSystem:
    """A batch system whose jobs see the states of a script, one a look; the last one stays."""

    max_batches = 4
    poll_seconds = 0.0
    settle_seconds = 0.0
    holds_back = True
    max_jobs = 2

    def __init__(self, folder: Path, scripts: list[list[Sight | str | None]]) -> None:
        self.folder, self.scripts = folder, scripts
        self.jobs: list[FakeJob] = []
        self.cancelled: list[str] = []
        self.now: dict[str, Sight | str | None] = {}

    def submit(self, batches: Sequence[jobs.Batch[work.Task, int]]) -> list[FakeJob]:
        new = [FakeJob(str(len(self.jobs) + place), batch, self.folder) for place, batch in enumerate(batches)]
        self.jobs += new
        return new

    def look(self, active: Sequence[FakeJob]) -> dict[str, Sight] | None:
        seen: dict[str, Sight] = {}
        for job in active:
            script = self.scripts[int(job.job_id)]
            state = script.pop(0) if len(script) > 1 else script[0]
            self.now[job.job_id] = state
            if state is None:
                return None
            seen[job.job_id] = state if isinstance(state, Sight) else Sight(Phase.ENDED, "COMPLETED")
        return seen

    def result(self, job: FakeJob) -> list[tuple[int, int]] | None:
        if self.now.get(job.job_id) != "done":
            return None
        return [(place, work.do(task)) for place, task in zip(job.batch.places, job.batch.tasks, strict=True)]

    def cancel(self, active: Sequence[FakeJob]) -> None:
        self.cancelled += [job.job_id for job in active]


WAITS = Sight(Phase.WAITING, "Resources")
RUNS = Sight(Phase.RUNNING)
LOST = Sight(Phase.ENDED, "NODE_FAIL on n1", settled=True)
GONE = Sight(Phase.ENDED, "no longer known")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    def use(*scripts: list[Sight | str | None]) -> FakeSystem:
        system = FakeSystem(tmp_path, list(scripts))
        monkeypatch.setattr(jobs, "make_backend", lambda *arguments: system)
        return system

    return use


def test_lost_jobs_wait_for_room_and_are_split(fake: object, tmp_path: Path) -> None:
    system = fake([WAITS, RUNS, LOST], [RUNS, RUNS, "done"], ["done"], ["done"])  # type: ignore[operator]
    tasks = work.tasks(tmp_path / "out", 4)
    assert run(tasks, tmp_path / "jobs", kind="slurm", tasks_per_job=2) == squares(4)
    assert [job.batch.places for job in system.jobs] == [(0, 1), (2, 3), (0,), (1,)]
    assert [job.batch.attempt for job in system.jobs] == [1, 1, 2, 2]
    assert system.cancelled == ["0"]


def test_a_silent_controller_is_waited_for(fake: object, tmp_path: Path) -> None:
    fake([None, None, RUNS, None, "done"])  # type: ignore[operator]
    assert run(work.tasks(tmp_path / "out", 2), tmp_path / "jobs", kind="slurm", tasks_per_job=2) == squares(2)


def test_a_vanished_job_is_lost_only_after_a_grace(
    fake: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: float(next(clock)))
    system = fake([RUNS, *[GONE] * 5, "done"], [RUNS])  # type: ignore[operator]
    assert run(work.tasks(tmp_path / "a", 1), tmp_path / "jobs", kind="slurm") == squares(1)
    assert len(system.jobs) == 1
    system = fake([RUNS, GONE], ["done"])  # type: ignore[operator]
    assert run(work.tasks(tmp_path / "b", 1), tmp_path / "jobs", kind="slurm") == squares(1)
    assert len(system.jobs) == 2


def test_a_job_that_is_put_back_in_the_queue_is_not_lost(
    fake: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: float(next(clock)))
    system = fake([RUNS, LOST, LOST, WAITS, LOST, LOST, RUNS, "done"])  # type: ignore[operator]
    system.settle_seconds = 8.0
    assert run(work.tasks(tmp_path / "a", 1), tmp_path / "jobs", kind="slurm") == squares(1)
    assert len(system.jobs) == 1


def test_jobs_that_never_start_are_said(fake: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = fake([WAITS, Sight(Phase.DOOMED, "PartitionTimeLimit")])  # type: ignore[operator]
    with pytest.raises(UserError, match="will never start: PartitionTimeLimit"):
        run(work.tasks(tmp_path / "out", 1), tmp_path / "jobs", kind="slurm")
    assert system.cancelled == ["0"]
    clock = iter(range(10_000))
    monkeypatch.setattr(jobs.time, "monotonic", lambda: float(next(clock)))
    system = fake([WAITS])  # type: ignore[operator]
    with pytest.raises(UserError, match=r"No job has started for 2 minutes. The batch system says: Resources"):
        run(work.tasks(tmp_path / "out", 1), tmp_path / "jobs", kind="slurm", start_minutes=2)
    assert system.cancelled == ["0"]


def test_how_tasks_are_made_into_jobs(fake: object, tmp_path: Path) -> None:
    system = fake(["done"])  # type: ignore[operator]

    def sizes(count: int, **cluster: object) -> list[int]:
        tasks = work.tasks(tmp_path / "out", count)
        config = ClusterConfig.model_validate({"kind": "slurm", **cluster})
        return [len(batch.tasks) for batch in jobs.make_batches(work.do, tasks, config, system, None, tmp_path)]

    assert sizes(3) == [1, 1, 1]
    assert sizes(13) == [4, 4, 4, 1]  # at most 4 jobs
    assert sizes(4, tasks_per_job=3) == [3, 1]
    with pytest.raises(UserError, match="9 tasks make 5 jobs, more than the 4 of one array") as caught:
        sizes(9, tasks_per_job=2)
    assert caught.value.fix == "Set it to 3 or more, or leave it out."
