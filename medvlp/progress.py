"""Progress of long work, on standard error, so that standard output stays for results.

Guarantee: on a terminal one live bar with speed and time left; elsewhere (a log file, CI) one line at the start and the
end. Where only warnings are logged there is none.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

logger = logging.getLogger(__name__)


class Advance(Protocol):
    """Reports that `count` more items are done, with short facts to show beside the bar."""

    def __call__(self, count: int = 1, **facts: object) -> None:
        """Count `count` items as done."""


@contextmanager
def progress_bar(description: str, total: int, unit: str = "items") -> Iterator[Advance]:
    """Show the progress of `total` items.

    Yields:
        A function `advance(count=1, **facts)`.
    """
    started = time.perf_counter()
    done = 0
    # Only `medvlp --quiet`, or the second process of a training, sets the package's own level above INFO.
    if not sys.stderr.isatty() or logging.getLogger("medvlp").level > logging.INFO:
        logger.info("%s: %d %s", description, total, unit)

        def count_only(count: int = 1, **facts: object) -> None:
            nonlocal done
            done += count

        yield count_only
        seconds = max(time.perf_counter() - started, 1e-9)
        logger.info("%s: %d %s in %.1f s (%.1f a second)", description, done, unit, seconds, done / seconds)
        return

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[speed]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[facts]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total, speed="", facts="")

        def advance(count: int = 1, **facts: object) -> None:
            nonlocal done
            done += count
            seconds = max(time.perf_counter() - started, 1e-9)
            shown = "  ".join(
                f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                for name, value in facts.items()
            )
            progress.update(task, advance=count, speed=f"{done / seconds:.1f} {unit}/s", facts=shown)

        yield advance
