"""What several verbs share: the overrides argument and the printing of tables."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY.PATH=VALUE]...", help="Changes to the configuration, as YAML values."),
]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output; numbers are right-aligned."""
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(title=title, title_justify="left", title_style="bold")
    for position, column in enumerate(columns):
        numeric = all(isinstance(row[position], int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    # A file or pipe gets wide lines instead of cells folded to 80 columns.
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def say(text: str) -> None:
    """Print a line of results on standard output, once also under torchrun."""
    if first_process():
        typer.echo(text)


def say_next(*commands: Sequence[object]) -> None:
    """Print commands to run next, quoted for the shell so that they can be pasted."""
    for position, words in enumerate(commands):
        say(("      " if position else "Next: ") + shlex.join(str(word) for word in words))


def first_process() -> bool:
    """Return whether this process is the only one, or the first of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"
