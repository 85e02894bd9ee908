"""Image files that a user names: which they are, and their pixels, read ahead.

Guarantee: every file is named once, in the order given, folders sorted; one that cannot be used is a `Bad` with reason
and next step, and never stops the others.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from medvlp.errors import UserError
from medvlp.io import find_images

F = TypeVar("F")
T = TypeVar("T")

IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})
"""A file of a folder with such a name is expected to be an image: if it is none, it is reported, not passed over."""


@dataclass(frozen=True)
class Bad:
    """A file that has no result."""

    path: str
    reason: str
    fix: str


def list_files(paths: Sequence[Path]) -> tuple[list[Path], list[Bad]]:
    """Return the files to read, each once, in the order given (folders sorted), and what is no file at all."""
    files: dict[Path, None] = {}
    bad: list[Bad] = []
    for path in map(Path, paths):
        if path.is_dir():
            named = {
                p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and p.is_file()
            }
            found = sorted(named | set(find_images(path)))
            files.update(dict.fromkeys(found))
            if not found:
                bad.append(Bad(str(path), "The folder holds no DICOM, PNG or JPEG file.", "Check the path."))
        elif path.exists():
            files[path] = None
        else:
            bad.append(Bad(str(path), "The file does not exist.", "Check the path."))
    return list(files), bad


def told_by_name(files: Sequence[F], bad: Sequence[Bad]) -> tuple[list[F], list[Bad]]:
    """Return the files whose name a table can hold, and the others among what has no result.

    Args:
        files: Files, or what else `str` names by its path.
        bad: What has no result already.
    """
    reason, fix = "The name of the file is not in UTF-8.", "Rename the file, or its folder."
    others = [Bad(str(one), reason, fix) for one in files if _in_utf8(str(one)) != str(one)]
    kept = [one for one in files if _in_utf8(str(one)) == str(one)]
    return kept, [replace(one, path=_in_utf8(one.path)) for one in [*bad, *others]]


def _in_utf8(name: str) -> str:
    """Return a name with its bytes that are no UTF-8 written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def read_ahead(
    read: Callable[[F], T], files: Sequence[F], batch_size: int, num_workers: int
) -> Iterator[tuple[list[tuple[str, T]], list[Bad]]]:
    """Yield what was read of each batch of files, with their names, and the others, in order.

    The next batch is read meanwhile.

    Args:
        read: Reads one file; called from threads.
        files: Files, or what else `str` names by its path.
        batch_size: Files at a time.
        num_workers: Threads.
    """
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        ahead: deque[Future[T | Bad]] = deque()
        submitted = 0
        for start in range(0, len(files), batch_size):
            while submitted < min(len(files), start + 2 * batch_size):
                ahead.append(pool.submit(safely, read, files[submitted]))
                submitted += 1
            results = [(str(path), ahead.popleft().result()) for path in files[start : start + batch_size]]
            good = [(name, result) for name, result in results if not isinstance(result, Bad)]
            yield good, [result for _, result in results if isinstance(result, Bad)]


def safely(read: Callable[[F], T], path: F) -> T | Bad:
    """Return what `read` gives, or why it gives nothing."""
    try:
        return read(path)
    except UserError as error:
        return Bad(str(path), error.what, error.fix)
    except Exception as error:  # one file must not end the work on the others, whatever a decoder does
        return Bad(str(path), f"{type(error).__name__}: {error}", "Check the file; report the message if it is sound.")


@contextmanager
def whole_table(out: Path) -> Iterator[Path]:
    """Give a file that becomes `out` at the end; nothing of it is left after an error.

    Raises:
        UserError: It cannot be written.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"The table cannot be written: {error.strerror or error}.", out, "Free space, or another place."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def quarantine_of(out: Path) -> Path:
    """Return the file beside `out` that names what has no result."""
    return out.with_name(f"{out.name}.quarantine.jsonl")


def write_quarantine(out: Path, bad: Sequence[Bad]) -> Path | None:
    """Write one line of JSON for each bad file, sorted; without any, an older list is removed and None returned."""
    file = quarantine_of(out)
    file.unlink(missing_ok=True)
    if not bad:
        return None
    lines = [json.dumps(vars(one), ensure_ascii=False) for one in sorted(bad, key=lambda one: one.path)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
