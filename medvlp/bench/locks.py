"""Locks by which several runs into one folder of results share the work.

Guarantee: a lock names its holder (machine, process) and beats while that process lives. One that was left behind is
taken over: at once where its process is known to be gone, else after a time without a beat, by the clock of the disk.
Locks spare double work and decide nothing: whoever finishes first leaves the result, so that a lock which is lost or
held twice costs time and no number.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from medvlp.store.files import writing

BEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
"""Without a beat for so long, a lock of another machine is taken for left behind."""
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Holder:
    """Who holds a lock. `space` tells machines and containers apart that share a name."""

    host: str
    space: str
    pid: int
    start: float
    token: str = ""

    @classmethod
    def current(cls) -> Holder:
        """Return this process."""
        import psutil

        return cls(socket.gethostname(), _space(), os.getpid(), psutil.Process().create_time())

    @property
    def name(self) -> str:
        """Name for files of this process, unlike that of every process alive."""
        return f"{self.host}-{self.space}-{self.pid}"

    @property
    def is_gone(self) -> bool | None:
        """Whether the process has ended; None where that cannot be seen from here."""
        import psutil

        if (self.host, self.space) != (socket.gethostname(), _space()):
            return None
        try:
            process = psutil.Process(self.pid)
            # The same number and another start: a later process.
            return process.create_time() != self.start or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


@cache
def _space() -> str:
    """Return what processes have in common that can see each other: the boot and the namespace of process numbers."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:8]


class Locks:
    """Locks of one process, by name, in a folder that all runs see.

    Args:
        folder: `RESULTS/locks`.
        beat_seconds: Time between two beats.
        stale_seconds: Age of the last beat at which a lock counts as left behind.
    """

    def __init__(self, folder: Path, beat_seconds: float = BEAT_SECONDS, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder, self.beat_seconds, self.stale_seconds = folder, beat_seconds, stale_seconds
        self.me = Holder.current()
        self._held: dict[str, str] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._beats: threading.Thread | None = None

    def acquire(self, name: str) -> bool:
        """Take a lock and return True, or return False where another run holds it.

        Raises:
            UserError: The folder cannot be written.
        """
        path = self._path(name)
        token = uuid.uuid4().hex
        for _ in range(2):
            if self._create(path, token):
                with self._guard:
                    self._held[name] = token
                self._beat()
                return True
            if not self._remove_stale(path):
                return False
        return False

    def release(self, name: str) -> None:
        """Give a lock back; one that another run has taken over is left to it."""
        with self._guard:
            token = self._held.pop(name, None)
        path = self._path(name)
        holder = _read(path)
        if holder is not None and holder.token == token:
            path.unlink(missing_ok=True)

    def holder(self, name: str) -> Holder | None:
        """Return who holds a lock; None where nobody does."""
        path = self._path(name)
        return None if self._is_stale(path) else _read(path)

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[bool]:
        """Hold a lock inside the block if nobody else does; yields whether it is held."""
        got = self.acquire(name)
        try:
            yield got
        finally:
            if got:
                self.release(name)

    @contextlib.contextmanager
    def waited_for(self, name: str, meanwhile: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a lock inside the block, waiting for other runs; `meanwhile` is called between two looks."""
        while not self.acquire(name):
            meanwhile()
            time.sleep(POLL_SECONDS)
        try:
            yield
        finally:
            self.release(name)

    def close(self) -> None:
        """Give all locks back, remove those left behind, and the folder if nothing is left in it."""
        self._stop.set()
        if self._beats is not None:
            self._beats.join()
        for name in list(self._held):
            self.release(name)
        for path in self.folder.glob("*.lock"):
            self._remove_stale(path)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    def _create(self, path: Path, token: str) -> bool:
        with writing(self.folder):
            while True:
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                    break
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    continue  # another run has just removed the empty folder
            try:
                os.write(descriptor, json.dumps(asdict(self.me) | {"token": token}).encode())
            except OSError:
                path.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)
        return True

    def _remove_stale(self, path: Path) -> bool:
        """Remove a lock that was left behind; return whether it may be free now."""
        seen = _read(path)
        if not self._is_stale(path):
            return not path.exists()
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            path.rename(aside)
        except FileNotFoundError:
            return True
        try:
            moved = _read(aside)
            if moved is not None and (seen is None or moved.token != seen.token):
                # Between look and rename another run took it over: it gets its lock back.
                with contextlib.suppress(OSError):
                    os.link(aside, path)
                return False
        finally:
            aside.unlink(missing_ok=True)
        return True

    def _is_stale(self, path: Path) -> bool:
        holder = _read(path)
        if holder is not None and holder.is_gone is not None:
            return holder.is_gone
        try:
            beat = path.stat().st_mtime
        except FileNotFoundError:
            return False
        return self._now() - beat > self.stale_seconds

    def _now(self) -> float:
        """Return the time by the clock that dates files: those of machines differ."""
        probe = self.folder / f".clock.{self.me.name}"
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _beat(self) -> None:
        with self._guard:
            if self._beats is None:
                self._beats = threading.Thread(target=self._beat_all, daemon=True, name="medvlp-locks")
                self._beats.start()

    def _beat_all(self) -> None:
        while not self._stop.wait(self.beat_seconds):
            with self._guard:
                names = list(self._held)
            for name in names:
                with contextlib.suppress(OSError):
                    os.utime(self._path(name))


def _read(path: Path) -> Holder | None:
    """Return the holder that a lock names; None where there is no lock, or it is only half written."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
