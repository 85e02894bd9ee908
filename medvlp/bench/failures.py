"""Why a cell has no numbers, kept where its numbers would be.

Guarantee: a failure says of what kind it is, what happened, where, and the next step, without machine paths. It stands
in `result.json` with the status `failed`; a later success takes its place, and never the other way round.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvlp.bench.cells import CELL, FAILED, RESULT, RUN, as_text, write_folder
from medvlp.bench.finite import NotFiniteError
from medvlp.errors import UserError
from medvlp.html.private import public

if TYPE_CHECKING:
    from medvlp.bench.plan import Cell

Kind = Literal["input", "not_finite", "memory", "timeout", "died", "error"]
LOST_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}
"""Where one file cannot be written, no other can: the run ends."""
_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")


@dataclass(frozen=True)
class Failure:
    """Why a cell failed; the fields stand in `result.json` under `failure`."""

    kind: Kind
    reason: str
    where: str = ""
    next: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return what an exception says."""
        if isinstance(error, UserError):
            kind: Kind = "not_finite" if isinstance(error, NotFiniteError) else "input"
            return cls(kind, error.what, error.where, error.fix)
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        if isinstance(error, MemoryError) or any(word in str(error).lower() for word in _MEMORY):
            fix = "Use a machine with more memory, fewer --jobs, or smaller batches, then run the same command again."
            return cls("memory", f"The memory was not enough ({text}).", "", fix)
        return cls("error", text, "", "See the log; run the same command again to try it once more.")

    @classmethod
    def timeout(cls, minutes: float) -> Failure:
        """Return the failure of a cell that ran too long."""
        return cls(
            "timeout",
            f"The cell was stopped after {minutes:g} minutes.",
            "",
            "Run the same command again with a larger --timeout.",
        )

    @classmethod
    def unborn(cls, seconds: float) -> Failure:
        """Return the failure of a cell whose process did not start."""
        fix = "Look at the load of the machine, or use --jobs 0, then run the same command again."
        return cls("died", f"The process did not start within {seconds / 60:g} minutes.", "", fix)

    @classmethod
    def died(cls, code: int | None) -> Failure:
        """Return the failure of a cell whose process ended by itself; a negative code is a signal."""
        if code == -9:
            fix = "Use a machine with more memory or fewer --jobs, then run the same command again."
            return cls("memory", "The process was killed (signal 9), as systems do when the memory is full.", "", fix)
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        return cls("died", f"The process ended {how}.", "", "See the log; run the same command again.")

    def record(self) -> dict[str, str]:
        """Return the fields without machine paths."""
        found: dict[str, str] = public(asdict(self))
        return found


def lost_disk(error: BaseException) -> OSError | None:
    """Return the error of a full, read-only or limited disk that is behind an exception."""
    cause = error.__cause__ if isinstance(error, UserError) else error
    return cause if isinstance(cause, OSError) and cause.errno in LOST_DISK else None


def write_failure(
    cell: Cell,
    failure: Failure,
    *,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    started: float,
    out: Path,
    scratch: Path,
) -> None:
    """Write the folder of a cell that failed; the folder of one that has numbers is kept.

    Args:
        cell: The cell.
        failure: Why.
        config: Resolved task and settings, as in the result of a cell that did not fail.
        facts: Versions and git hash.
        started: When it began, in seconds since 1970.
        out: Folder of the results.
        scratch: Folder on the same disk.
    """
    record, ended = cell.record(), time.time()
    result = record | {"status": FAILED, "failure": failure.record(), "scores": [], "config": config, **facts}
    run = {"started": round(started, 3), "seconds": round(ended - started, 3), "ended": round(ended, 3)}
    files = {CELL: as_text(record), RESULT: as_text(result), RUN: as_text(run)}
    write_folder(out / "cells" / cell.hash, files, scratch)
