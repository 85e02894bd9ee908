"""A finished store, copied to or from an object store or another disk.

Guarantee: `copy_store` may be killed at any moment; the same command goes on, and what is whole is not sent again. The
copy can be opened only after every file has been read back and found equal, byte for byte: until then `.copying.json`
stands in it, and `store.json` is written last. A target that holds anything else is never touched. Two runs never
copy into one folder of a disk at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from medvlp.errors import UserError
from medvlp.progress import Advance, progress_bar
from medvlp.store import manifest
from medvlp.store.array_store import Store
from medvlp.store.files import atomic_file, locked, remove_folder, write_atomic, writing
from medvlp.store.remote import COPYING, is_remote, place, reaching, read_bytes, sizes

logger = logging.getLogger(__name__)

THREADS = 8
BLOCK = 8 << 20
SCRATCH = ".copying"
"""Folder for files that are not whole yet, in a target on a disk."""
MEBI = 1 << 20


@dataclass(frozen=True)
class CopySummary:
    """What `copy_store` did. `sent` counts the files that had to be sent in this run."""

    target: str
    files: int
    bytes: int
    sent: int
    seconds: float
    hash: str


def copy_store(source: str | Path, target: str | Path, threads: int = THREADS) -> CopySummary:
    """Copy a finished store, or finish a copy of it, or find that it is there and equal.

    Args:
        source: A store, as a path or URL.
        target: Where its copy shall be: an empty or new folder, or the begun copy of the same store.
        threads: Files sent or read at the same time.

    Raises:
        UserError: The source is no finished store; the target holds something else; the copy differs from its source;
            or one of the two cannot be reached.
    """
    started = time.perf_counter()
    store, there = Store.open(source), place(target)
    if not is_remote(there) and not is_remote(store.path) and there.resolve() == store.path.resolve():
        raise UserError("A store cannot be copied onto itself.", there, "Choose another target.")
    meta = read_bytes(store.path / manifest.META)
    mark = {"store": store.hash, "store.json": hashlib.sha256(meta).hexdigest()}
    files = {name: size for name, size in sizes(store.path).items() if name != manifest.META}
    whole = _is_whole(mark, there)
    with nullcontext() if whole or is_remote(there) else locked(there / SCRATCH):
        sent = 0
        if not whole and not _is_whole(mark, there):  # another run may have finished it since
            sent = _finish_copy(store, there, meta, mark, files, threads)
        else:
            _check_copy(store, there, files, threads)
        if not is_remote(there):
            remove_folder(there / SCRATCH)
    Store.open(there)
    return CopySummary(
        target=str(there),
        files=len(files) + 1,
        bytes=sum(files.values()) + len(meta),
        sent=sent,
        seconds=time.perf_counter() - started,
        hash=store.hash,
    )


def _is_whole(mark: dict[str, str], there: Path) -> bool:
    """Tell whether the target is a whole copy; if not, it is empty or the begun copy of this store.

    Raises:
        UserError: It holds something else.
    """
    found = {name for name in sizes(there) if not name.startswith(f"{SCRATCH}/")}
    if COPYING in found:
        if json.loads(read_bytes(there / COPYING)) != mark:
            raise UserError(
                "The target holds the begun copy of another store.", there, "Choose another target, or empty it."
            )
        return False
    if manifest.META in found:
        if hashlib.sha256(read_bytes(there / manifest.META)).hexdigest() == mark["store.json"]:
            return True
        raise UserError("The target holds another store.", there, "Choose another target.")
    if found or (not is_remote(there) and there.exists() and not _is_empty(there)):
        raise UserError("The target is not empty and holds no store.", there, "Choose an empty or new folder.")
    return False


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and all(path.name == SCRATCH for path in folder.iterdir())


def _finish_copy(
    store: Store, there: Path, meta: bytes, mark: dict[str, str], files: dict[str, int], threads: int
) -> int:
    """Send what is missing, compare all, and make the copy one that can be opened; return how many files were sent."""
    scratch = there / SCRATCH
    _put(there / COPYING, json.dumps(mark).encode(), scratch)
    missing = _missing(files, there)
    total = sum(files[name] for name in missing)
    with progress_bar(f"copy {store.dataset}", total // MEBI, "MiB") as advance:
        _each(missing, files, threads, advance, lambda name: _send(store.path / name, there / name, scratch))
    _verify(store, there, files, threads, True)
    if read_bytes(store.path / manifest.META) != meta:
        raise UserError("The store was changed while it was copied.", store.path, "Run the same command again.")
    _put(there / manifest.META, meta, scratch)
    with reaching(there), writing(there):
        (there / COPYING).unlink()
    return len(missing)


def _check_copy(store: Store, there: Path, files: dict[str, int], threads: int) -> None:
    """Compare a copy that was whole once.

    Raises:
        UserError: A file is missing or differs.
    """
    missing = _missing(files, there)
    if missing:
        raise UserError(
            f"The copy is there, but {len(missing)} of its files are missing or have another size, such as "
            f"{missing[0]}.",
            there,
            "Remove the copy and make it anew.",
        )
    _verify(store, there, files, threads, False)


def _missing(files: dict[str, int], there: Path) -> list[str]:
    found = sizes(there)
    return [name for name, size in files.items() if found.get(name) != size]


def _each(
    names: Iterable[str], files: dict[str, int], threads: int, advance: Advance, work: Callable[[str], Any]
) -> dict[str, Any]:
    """Do something to each file in threads and return the results; the first failure stops what has not begun."""
    results: dict[str, Any] = {}
    moved = shown = 0
    with ThreadPoolExecutor(threads) as pool:
        running = {pool.submit(work, name): name for name in names}
        try:
            for future in as_completed(running):
                name = running[future]
                results[name] = future.result()
                moved += files[name]
                advance(moved // MEBI - shown)
                shown = moved // MEBI
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return results


def _send(source: Path, target: Path, scratch: Path) -> None:
    """Copy one file; it is whole at the target or not there."""
    if not is_remote(target):
        with reaching(source), atomic_file(target, scratch) as copy, source.open("rb") as stream:
            shutil.copyfileobj(stream, copy, BLOCK)
        return
    remote = cast(Any, target)
    with reaching(target):
        if is_remote(source):
            remote.fs.pipe_file(remote.path, read_bytes(source))
        else:
            remote.fs.put_file(str(source), remote.path)


def _put(target: Path, data: bytes, scratch: Path) -> None:
    if not is_remote(target):
        write_atomic(target, data, scratch)
        return
    with reaching(target):
        cast(Any, target).fs.pipe_file(cast(Any, target).path, data)


def _verify(store: Store, there: Path, files: dict[str, int], threads: int, begun: bool) -> None:
    """Read every file here and there; what differs is removed from a begun copy, so that it is sent again.

    Raises:
        UserError: A file differs.
    """

    def equal(name: str) -> bool:
        return _sha256(store.path / name) == _sha256(there / name)

    with progress_bar(f"verify {store.dataset}", sum(files.values()) // MEBI, "MiB") as advance:
        results = _each(files, files, threads, advance, equal)
    wrong = sorted(name for name, same in results.items() if not same)
    if not wrong:
        return
    if begun:
        with reaching(there), writing(there):
            for name in wrong:
                (there / name).unlink()
    raise UserError(
        f"{len(wrong)} files of the copy differ from their source, such as {wrong[0]}.",
        there,
        "Run the same command again: they are sent again." if begun else "Remove the copy and make it anew.",
    )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with reaching(file), file.open("rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
