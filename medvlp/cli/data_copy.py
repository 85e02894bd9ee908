"""`medvlp data copy`: a finished store to or from an object store or another disk."""

from __future__ import annotations

from typing import Annotated

import typer

from medvlp.cli._common import say, say_next

EXAMPLE = "Example: medvlp data copy stores/nih s3://bucket/stores/nih"


def copy(
    store: Annotated[str, typer.Argument(help="A prepared store: a folder, or a URL such as s3://bucket/store.")],
    target: Annotated[str, typer.Argument(help="Where its copy shall be, likewise; new or empty.")],
    threads: Annotated[int, typer.Option(min=1, max=256, help="Files sent at the same time.")] = 8,
) -> None:
    """Copy a store and compare every file; run it again to go on after an interruption."""
    from medvlp.store.copying import copy_store

    summary = copy_store(store, target, threads)
    say(f"{summary.files} files of {summary.bytes / 2**30:.2f} GiB are in {summary.target}; {summary.sent} were sent")
    say(f"Store hash: {summary.hash}")
    say_next(["medvlp", "data", "show", summary.target, "--html", "store.html"])
