"""The cells that are still to be run, shared with other runs into the same folder.

Guarantee: a cell is handed out once, locked, and only while it has no result. What another run finishes meanwhile is
not run again, a failure of another run neither; failures of earlier commands are tried once more.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

from medvlp.bench.cells import OK, status_of
from medvlp.bench.locks import Locks
from medvlp.bench.schedule import Planned
from medvlp.bench.work import Bench, ended


class Queue:
    """Cells to run.

    Args:
        bench: Where results are.
        planned: The cells; those that have numbers already are settled at once.
        locks: Of this process.
        since: When the command began, in seconds since 1970; None: now.
    """

    def __init__(self, bench: Bench, planned: Iterable[Planned], locks: Locks, since: float | None = None) -> None:
        self.bench, self.locks, self.since = bench, locks, time.time() if since is None else since
        self.left = list(planned)
        self._settled: list[tuple[Planned, bool]] = []
        for one in list(self.left):
            self._settle(one)

    def take(self, prefer: str = "") -> Planned | None:
        """Lock and return a cell, of the encoder with the hash `prefer` where there is one.

        None: nothing is left, or other runs are at all that is left.
        """
        for one in sorted(self.left, key=lambda planned: planned.judged.hash != prefer):
            if self._settle(one) or not self.locks.acquire(_name(one)):
                continue
            if self._settle(one):  # by another run, between the look and the lock
                self.locks.release(_name(one))
                continue
            self.left.remove(one)
            return one
        return None

    def give_back(self, planned: Planned) -> None:
        """Unlock a cell that was run."""
        self.locks.release(_name(planned))
        self._settled.append((planned, True))

    def settled(self) -> list[tuple[Planned, bool]]:
        """Return the cells that got a result since the last call, and whether they were run here."""
        found, self._settled = self._settled, []
        return found

    def is_settled(self, planned: Planned) -> bool:
        """Return whether a cell has numbers, or has failed since this command began."""
        return settled_status(self.bench.folder(planned), self.since) is not None

    def _settle(self, planned: Planned) -> bool:
        if not self.is_settled(planned):
            return False
        self.left.remove(planned)
        self._settled.append((planned, False))
        return True


def settled_status(folder: Path, since: float) -> str | None:
    """Return `ok`, or `failed` where that happened after `since`; None for a cell that is to be run."""
    status = status_of(folder)
    return status if status == OK or ended(folder) >= since else None


def _name(planned: Planned) -> str:
    assert planned.cell is not None
    return planned.cell.hash
