"""Atomic writing and the lock of a store folder.

Guarantee: a file of a store is either whole or absent, also after `kill -9` or a power cut: it is written beside,
flushed to the disk and renamed. Two runs never write into one store at a time. A full or read-only disk is a
`UserError`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from medvlp.errors import UserError

logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the errors of a full or read-only disk into `UserError`."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(
                f"The disk is full: {error.strerror}.",
                path,
                "Free some space and run the same command again; what is finished is kept.",
            ) from error
        if error.errno in _REFUSED or isinstance(error, NotADirectoryError | FileExistsError):
            raise UserError(
                f"The file or folder cannot be written: {error.strerror}.",
                path,
                "Choose another --out, or make the folder writable.",
            ) from error
        raise


@contextlib.contextmanager
def atomic_file(path: Path, scratch: Path) -> Iterator[BinaryIO]:
    """Open a file for writing through `scratch`, a folder on the same disk; it gets its name when all is on the disk.

    Raises:
        UserError: The disk is full or read-only.
    """
    temporary = scratch / uuid.uuid4().hex
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_atomic(path: Path, data: bytes, scratch: Path) -> None:
    """Write a file through `scratch`, a folder on the same disk.

    Raises:
        UserError: The disk is full or read-only.
    """
    with atomic_file(path, scratch) as file:
        file.write(data)


def write_json(path: Path, value: Any, scratch: Path, indent: int | None = 2) -> None:
    """Write JSON atomically."""
    write_atomic(path, (json.dumps(value, indent=indent, ensure_ascii=False) + "\n").encode(), scratch)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Make a folder beside `path` that takes its place, also that of an older one, when all in it is written."""
    part, old = (path.with_name(f".{path.name}.{os.getpid()}.{word}") for word in ("part", "old"))
    with writing(path):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            yield part
            if path.exists():
                path.rename(old)
            part.rename(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(folder: Path, what: str = "this store") -> Iterator[None]:
    """Hold the lock of a progress folder; the operating system frees it when the process ends, however it ends.

    Args:
        folder: Made where it is missing.
        what: What the folder around it holds, for messages.

    Raises:
        UserError: Another process holds it, or the folder cannot be written.
    """
    import fcntl

    path = folder / "lock"
    while True:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            except FileNotFoundError:
                continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                holder = os.read(descriptor, 200).decode(errors="replace").strip()
                os.close(descriptor)
                raise UserError(
                    f"Another run is writing {what} ({holder or 'just started'}).",
                    folder.parent,
                    "Wait until it has finished, then run the same command again.",
                ) from None
            logger.warning("%s: this file system has no locks; do not start a second run into %s.", folder.parent, what)
        # The former holder may have removed the file between open and lock: then the lock protects nothing.
        if path.exists() and os.fstat(descriptor).st_ino == path.stat().st_ino:
            break
        os.close(descriptor)
    try:
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; a folder that is not there is fine."""
    with writing(folder), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(folder)
