"""The tables of a report for papers: LaTeX with booktabs and graphicx, Markdown, and CSV with one row for each score.

Guarantee: they hold the numbers of the page, with intervals; published numbers and leaks are marked as there; what has
no value is shown as missing with its reason (CSV) or as a dash.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import LOWER_IS_BETTER, METRICS, PROTOCOL_NAMES, Group, Score
from medvlp.bench.report_sections import boards
from medvlp.html import write_page
from medvlp.html.numbers import decimal, interval

COLUMNS = (
    *("origin", "source", "suite", "suite_version", "task", "task_version", "dataset", "encoder", "protocol"),
    *("fraction", "shots", "metric", "label", "value", "low", "high", "sd", "n", "seeds", "draws", "status", "leaks"),
    *("store_hash", "split_hash", "encoder_hash", "task_hash", "config_hash", "cells", "note"),
)
PUBLISHED, LEAKED = "†", "‡"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "–": "--", "−": "$-$", "≈": r"$\approx$",
    "<": "$<$", ">": "$>$", "|": r"\textbar{}", "\"": "''", "\u202f": r"\,", "\u00a0": "~",
    "×": r"$\times$", "±": r"$\pm$", "≤": r"$\leq$", "≥": r"$\geq$", "µ": r"$\mu$", "→": r"$\to$",
}  # fmt: skip


MOST_COLUMNS = 4
"""Of a LaTeX table in its own size; a wider one is scaled to the width of the text."""


def write_exports(results: Path, files: Mapping[str, Path | None], *, rank_published: bool = False) -> Iterator[Path]:
    """Write the files that are asked for, and yield each.

    Args:
        results: Folder of results.
        files: `latex`, `csv`, `markdown` -> file, or None.
        rank_published: Let published numbers be marked as best beside measured ones.

    Raises:
        UserError: The folder holds no results, or a file cannot be written.
    """
    wanted = {kind: Path(file) for kind, file in files.items() if file is not None}
    if not wanted:
        return
    found = Results.read(Path(results))
    tables = list(_tables(found, rank_published))
    write: dict[str, Callable[[], str]] = {
        "latex": lambda: latex(tables),
        "markdown": lambda: markdown(tables),
        "csv": lambda: scores_csv(found),
    }
    for kind, file in wanted.items():
        write_page(file, write[kind]())
        yield file


@dataclass(frozen=True)
class Cell:
    """One entry of a table; empty where there is nothing to show."""

    text: str = ""
    bounds: str = ""
    best: bool = False
    leaked: bool = False


@dataclass(frozen=True)
class Table:
    """One task and metric. `columns` are (protocol, labels); `rows` are (encoder, published, cells)."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, bool, list[Cell]]]
    sources: list[str]
    level: str
    """Coverage of the intervals, in words."""


def _tables(found: Results, rank_published: bool) -> Iterator[Table]:
    for board in boards(found, rank_published):
        for table in board["tables"]:
            metric, label = table["metric"], board["label"]
            down = ", lower is better" if metric in LOWER_IS_BETTER else ""
            of = "mean over labels" if label == "macro" else label
            rows, sources = [], []
            for name, entries in table["rows"]:
                groups = [group for group, _ in entries if group is not None]
                is_published = any(group.source for group in groups)
                sources += [group.source for group in groups if group.source]
                rows.append((name, is_published, [_cell(group, mark, metric, label) for group, mark in entries]))
            columns = [(PROTOCOL_NAMES.get(protocol, protocol), amount) for protocol, amount, _ in board["columns"]]
            title = f"{board['task']}: {METRICS.get(metric, metric)} ({of}{down})"
            yield Table(title, columns, rows, list(dict.fromkeys(sources)), found.level)


def _cell(group: Group | None, mark: str, metric: str, label: str) -> Cell:
    score: Score | None = None if group is None else group.score(metric, label)
    if group is None or score is None:
        return Cell()
    return Cell(decimal(score.value), interval(score.low, score.high), mark == "best", bool(group.leaks))


def markdown(tables: list[Table]) -> str:
    """Return tables in Markdown, with intervals in brackets."""
    parts = []
    for table in tables:
        head = ["Encoder", *(f"{protocol}, {amount}" for protocol, amount in table.columns)]
        lines = [f"### {_plain(table.title)}", "", _line(head), _line(["---", *["---:"] * len(table.columns)])]
        for name, is_published, cells in table.rows:
            lines.append(_line([_plain(name) + (f" {PUBLISHED}" if is_published else ""), *map(_markdown_cell, cells)]))
        parts.append("\n".join([*lines, "", *_notes(table, _plain)]))
    return "\n\n".join(parts) + "\n"


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: str) -> str:
    """Return a text of which Markdown takes nothing for a column, a tag or emphasis."""
    return re.sub(r"([|<*`\\])", r"\\\1", text)


def _markdown_cell(cell: Cell) -> str:
    if not cell.text:
        return "–"
    text = f"**{cell.text}**" if cell.best else cell.text
    return text + (LEAKED if cell.leaked else "") + (f" ({cell.bounds})" if cell.bounds else "")


def _notes(table: Table, escape: Callable[[str], str]) -> Iterator[str]:
    """Yield what stands below a table."""
    yield escape(f"With {table.level} intervals; the best value is bold; – is missing.")
    if table.sources:
        yield f"{PUBLISHED} {escape('published, not measured here: ' + '; '.join(table.sources) + '.')}"
    if any(cell.leaked for _, _, cells in table.rows for cell in cells):
        yield f"{LEAKED} {escape('touched by a leak that the audit of the data found.')}"


def latex(tables: list[Table]) -> str:
    """Return tables for LaTeX; they need the packages booktabs and graphicx."""
    return "% \\usepackage{booktabs,graphicx}\n" + "\n\n".join(map(_latex_table, tables)) + "\n"


def _latex_table(table: Table) -> str:
    protocols = list(dict.fromkeys(protocol for protocol, _ in table.columns))
    spans, rules, at = [], [], 2
    for protocol in protocols:
        width = sum(other == protocol for other, _ in table.columns)
        spans.append(rf"\multicolumn{{{width}}}{{c}}{{{tex(protocol)}}}")
        rules.append(rf"\cmidrule(lr){{{at}-{at + width - 1}}}")
        at += width
    # columns of one protocol stand together under its name
    order = [i for protocol in protocols for i, (other, _) in enumerate(table.columns) if other == protocol]
    amounts = [tex(table.columns[i][1]) for i in order]
    wide = len(table.columns) > MOST_COLUMNS
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{tex(table.title)}}}",
        *([r"\resizebox{\textwidth}{!}{%"] if wide else []),
        rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["", *spans]) + r" \\",
        " ".join(rules),
        " & ".join(["Encoder", *amounts]) + r" \\",
        r"\midrule",
    ]
    measured = [row for row in table.rows if not row[1]]
    for number, (name, is_published, cells) in enumerate(table.rows):
        if is_published and number == len(measured) and measured:
            lines.append(r"\midrule")
        shown = tex(name) + (r"$^{\dagger}$" if is_published else "")
        lines.append(" & ".join([shown, *(_latex_cell(cells[i]) for i in order)]) + r" \\")
    notes = r" \\ ".join(_notes(table, tex)).replace(PUBLISHED, r"$^{\dagger}$").replace(LEAKED, r"$^{\ddagger}$")
    return "\n".join(
        [
            *lines,
            r"\bottomrule",
            r"\end{tabular}" + ("}" if wide else ""),
            r"\par\smallskip{\footnotesize " + notes + "}",
            r"\end{table}",
        ]
    )


def _latex_cell(cell: Cell) -> str:
    if not cell.text:
        return "--"
    text = rf"\textbf{{{tex(cell.text)}}}" if cell.best else tex(cell.text)
    bounds = rf" {{\scriptsize ({tex(cell.bounds)})}}" if cell.bounds else ""
    return text + (r"$^{\ddagger}$" if cell.leaked else "") + bounds


def tex(text: str) -> str:
    """Return a text with LaTeX's special characters escaped."""
    return "".join(_LATEX.get(character, character) for character in text)


def scores_csv(found: Results) -> str:
    """Return one row for each score, measured or published, and for each setting without a value."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in [*_measured(found), *_published(found)]:
        writer.writerow({"suite": found.suite.get("name"), "suite_version": found.suite.get("version")} | row)
    return buffer.getvalue()


def _measured(found: Results) -> Iterator[dict[str, Any]]:
    """Yield the rows of `aggregate.json`; of a run that was interrupted before, those of the page."""
    for row in found.aggregate:
        hashes = row.get("hashes") or {}
        yield {name: row.get(name) for name in COLUMNS if name in row and name not in ("leaks", "cells")} | {
            "origin": "measured",
            "dataset": row.get("dataset") or found.tasks.get(str(row.get("task")), {}).get("dataset"),
            "leaks": " ".join(row.get("leaks", ())),
            "cells": " ".join(row.get("cells", ())),
            **{f"{name}_hash": _one(value) for name, value in hashes.items() if f"{name}_hash" in COLUMNS},
        }
    if not found.aggregate:
        for group in found.groups:
            setting = {
                name: getattr(group.setting, name) for name in ("task", "encoder", "protocol", "fraction", "shots")
            }
            for score in group.scores:
                numbers = {name: getattr(score, name) for name in ("metric", "label", "value", "low", "high", "n")}
                yield (
                    setting
                    | numbers
                    | {"origin": "measured", "status": "not summed up", "leaks": " ".join(group.leaks)}
                )
            if not group.scores:
                yield setting | {"origin": "measured", "status": group.reason}


def _one(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _published(found: Results) -> Iterator[dict[str, Any]]:
    for row in found.published:
        record = {name: value for name, value in vars(row).items() if name in COLUMNS}
        dataset = found.tasks.get(row.task, {}).get("dataset")
        yield record | {"origin": "published", "status": "published", "dataset": dataset}
