"""Work that jobs of the tests do: a task is a file to write, and how to go wrong on the way."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from medvlp.errors import UserError


@dataclass(frozen=True)
class Task:
    """Writes its number into `folder`. `fault` happens before; once, where it begins with `first_`."""

    folder: Path
    number: int
    fault: str = ""
    seconds: float = 0.0

    @property
    def file(self) -> Path:
        return self.folder / f"{self.number}.txt"


def tasks(folder: Path, count: int, **faults: str) -> list[Task]:
    """Return `count` tasks; `t3="kill"` gives task 3 that fault."""
    folder.mkdir(parents=True, exist_ok=True)
    return [Task(folder, number, faults.get(f"t{number}", "")) for number in range(count)]


def do(task: Task) -> int:
    time.sleep(task.seconds)
    with (task.folder / f"calls_{task.number}").open("a") as calls:
        calls.write(f"{os.getpid()}\n")
    fault = task.fault
    if fault.startswith("first_"):
        fault = fault.removeprefix("first_") if called(task) == 1 else ""
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "error":
        raise ZeroDivisionError("made for a test")
    if fault == "mistake":
        raise UserError("The disk is full.", "the disk", "Free some space.")
    if fault == "hang":
        time.sleep(600)
    part = task.file.with_suffix(".part")
    part.write_text(str(task.number**2))
    part.replace(task.file)
    return task.number**2


def called(task: Task) -> int:
    file = task.folder / f"calls_{task.number}"
    return len(file.read_text().splitlines()) if file.exists() else 0


def finished(task: Task) -> int | None:
    return int(task.file.read_text()) if task.file.exists() else None
