"""Published numbers beside measured ones.

Guarantee: a published number keeps its source and is marked wherever it is shown. It has an interval only if the source
gives one, and enters no paired test; it is ranked with measured numbers only where that is asked for. A table with a
mistake is refused as a whole, every mistake named.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from medvlp.bench.cells import as_json
from medvlp.bench.locks import Locks
from medvlp.bench.work import LOCKS, own_scratch, remove_scratch
from medvlp.config.load import load_config
from medvlp.config.resources import shipped
from medvlp.config.suite import Protocol
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError, nearest
from medvlp.metrics.scoring import SCORINGS
from medvlp.store.files import write_atomic
from medvlp.tasks import TASKS

FILE = "published.json"
REQUIRED = ("encoder", "task", "protocol", "metric", "value", "source")
OPTIONAL = ("fraction", "shots", "label", "low", "high", "sd", "runs", "n", "note")
KEY = ("encoder", "task", "protocol", "fraction", "shots", "metric", "label", "source")
RANGES = {
    "median_rank": (1.0, math.inf),
    "hd95_mm": (0.0, math.inf),
    "hd95_pixels": (0.0, math.inf),
    "mae": (0.0, math.inf),
    "mae_gain": (-math.inf, math.inf),
    "bias": (-math.inf, math.inf),
    "cider": (0.0, 10.0),
    "cider_d": (0.0, 10.0),
}
"""Metrics that are not between 0 and 1."""


@dataclass(frozen=True)
class Published:
    """A number of a publication. `sd` is the deviation over `runs`, no interval."""

    encoder: str
    task: str
    protocol: str
    fraction: float
    shots: int
    metric: str
    label: str
    value: float
    low: float | None
    high: float | None
    sd: float | None
    runs: int | None
    n: int | None
    source: str
    note: str = ""

    @property
    def key(self) -> tuple[Any, ...]:
        """What there can be one number of."""
        return tuple(getattr(self, name) for name in KEY)


def published(results: Path) -> list[Published]:
    """Return the published numbers of a folder of results."""
    try:
        rows = json.loads((results / FILE).read_text(encoding="utf-8"))["rows"]
        return [Published(**row) for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "Remove the file and add the tables again with `medvlp bench add-results`."
        raise UserError(f"The published numbers cannot be read: {error!r}.", results / FILE, fix) from error


def add_results(table: Path, out: Path, *, percent: bool = False) -> tuple[int, int]:
    """Add a table of published numbers to a folder of results; rows that are there already change nothing.

    Args:
        table: CSV with the columns `REQUIRED` and perhaps `OPTIONAL`.
        out: Folder of results.
        percent: Whether value, low, high and sd are given in percent.

    Returns:
        How many rows are new, and how many there are now.

    Raises:
        UserError: Lists every mistake of the table; nothing is added then.
    """
    table, out = Path(table), Path(out)
    if not out.is_dir():
        raise UserError(
            "There is no folder of results.", out, "Run `medvlp bench run SUITE --out RESULTS` first, or name it."
        )
    tasks = known_tasks(out)
    rows, mistakes = [], []
    for number, record in _records(table):
        row = _row(record, tasks, percent)
        if isinstance(row, Published):
            rows.append((number, row))
        else:
            mistakes += [f"row {number}: {text}" for text in row]
    locks = Locks(out / LOCKS)
    scratch = own_scratch(out, locks)
    try:
        with locks.waited_for("published"):
            before = published(out)
            mistakes += list(_clashes(rows, before))
            if mistakes:
                raise UserError(
                    "\n".join([f"mistakes: {len(mistakes)}", *(f"  {text}" for text in mistakes)]),
                    table,
                    "Mend them all; nothing was added.",
                )
            known = {row.key for row in before}
            new = [row for _, row in rows if row.key not in known]
            kept = {"rows": [asdict(row) for row in before + new]}
            write_atomic(out / FILE, as_json(kept).encode(), scratch)
    finally:
        remove_scratch(out, scratch, locks)
        locks.close()
    return len(new), len(before) + len(new)


def known_tasks(out: Path) -> dict[str, TaskConfig]:
    """Return the tasks of a folder of results, and those that are shipped, by name."""
    found = {}
    for path in sorted(shipped("benchmarks/tasks").glob("*.yaml")):
        task = load_config(path, (), TaskConfig)
        found[task.name] = task
    try:
        own = json.loads((out / "suite.json").read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, KeyError, TypeError):
        own = {}
    return found | {name: load_config(None, (), TaskConfig, dict(given)) for name, given in own.items()}


def _records(table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield number of the line and row."""
    try:
        text = table.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The table cannot be read: {error}", table, "Give a CSV file in UTF-8.") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        yield from _read(reader, table)
    except csv.Error as error:
        at = f"The table cannot be read after line {reader.line_num}: {error}."
        raise UserError(at, table, "Mend the line; each quote that is opened must be closed.") from error


def _read(reader: csv.DictReader[str], table: Path) -> Iterator[tuple[int, dict[str, str]]]:
    columns = list(reader.fieldnames or [])
    missing = [name for name in REQUIRED if name not in columns]
    allowed = [*REQUIRED, *OPTIONAL]
    unknown = [name for name in columns if name not in allowed]
    if missing or unknown or len(set(columns)) < len(columns):
        said = [f"no column {name}" for name in missing]
        said += [f"unknown column '{name}'.{nearest(str(name), allowed)}" for name in unknown]
        said += [] if len(set(columns)) == len(columns) else ["a column stands twice"]
        raise UserError(
            f"The columns are wrong: {'; '.join(said)}",
            table,
            f"Needed: {', '.join(REQUIRED)}. Allowed: {', '.join(OPTIONAL)}.",
        )
    for record in reader:
        if None in record or None in record.values():
            raise UserError(
                f"Line {reader.line_num} has {'more' if None in record else 'fewer'} cells than there are columns.",
                table,
                "Mend the line; quote cells that hold a comma.",
            )
        yield reader.line_num, {name: " ".join(value.split()) for name, value in record.items()}


def _row(record: Mapping[str, str], tasks: Mapping[str, TaskConfig], percent: bool) -> Published | list[str]:
    """Return a row, or its mistakes."""
    mistakes = [f"{name} is empty" for name in REQUIRED if not record[name]]
    numbers: dict[str, float | None] = {}
    for name in ("value", "low", "high", "sd", "fraction", "shots", "runs", "n"):
        try:
            numbers[name] = _number(record.get(name, ""))
        except ValueError:
            mistakes.append(f"{name} '{record[name]}' is no number")
    for name, least in (("shots", 0), ("runs", 1), ("n", 1)):
        count = numbers.get(name)
        if count is not None and (count != int(count) or count < least):
            mistakes.append(f"{name} {count:g} is no whole number from {least} up")
    protocol, task = record["protocol"], tasks.get(record["task"])
    if task is None and record["task"]:
        mistakes.append(f"there is no task '{record['task']}'.{nearest(record['task'], list(tasks))}")
    if protocol and protocol not in get_args(Protocol):
        mistakes.append(f"there is no protocol '{protocol}'.{nearest(protocol, list(get_args(Protocol)))}")
    if task is not None:
        mistakes += _against(task, record)
    if mistakes:
        return mistakes
    scale = 0.01 if percent else 1.0
    value, low, high, sd = (
        None if (x := numbers[name]) is None else x * scale for name in ("value", "low", "high", "sd")
    )
    fraction, shots, runs, n = (numbers[name] for name in ("fraction", "shots", "runs", "n"))
    assert value is not None
    mistakes = list(_out_of_range(record["metric"], value, low, high, sd, percent))
    free = protocol in ("zero_shot", "few_shot")
    if fraction is not None and (not 0 < fraction <= 1 or (free and fraction != 1)):
        mistakes.append(
            f"fraction {fraction:g} does not go with {protocol}" if free else f"fraction {fraction:g}: 0 to 1"
        )
    if (protocol == "few_shot") != bool(shots):
        mistakes.append("few_shot needs shots" if protocol == "few_shot" else f"shots has no effect on {protocol}")
    if mistakes:
        return mistakes
    return Published(
        encoder=record["encoder"],
        task=record["task"],
        protocol=protocol,
        fraction=1.0 if fraction is None else fraction,
        shots=int(shots or 0),
        metric=record["metric"],
        label=record.get("label") or "macro",
        value=value,
        low=low,
        high=high,
        sd=sd,
        runs=None if runs is None else int(runs),
        n=None if n is None else int(n),
        source=record["source"],
        note=record.get("note", ""),
    )


def _number(text: str) -> float | None:
    if not text:
        return None
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


def _against(task: TaskConfig, record: Mapping[str, str]) -> Iterator[str]:
    """Yield what does not fit the task: protocol, metric, label."""
    kind = TASKS.get(task.type)
    metrics = SCORINGS.get(kind(task).rule).metrics
    if record["protocol"] in get_args(Protocol) and record["protocol"] not in kind.protocols:
        yield f"the task {task.name} has no {record['protocol']}; it has {', '.join(sorted(kind.protocols))}"
    if record["metric"] and record["metric"] not in metrics:
        yield f"the task {task.name} has no metric '{record['metric']}'.{nearest(record['metric'], list(metrics))}"
    labels = [label.name for label in task.labels]
    label = record.get("label") or "macro"
    if labels and label not in [*labels, "macro"]:
        yield f"the task {task.name} has no label '{label}'.{nearest(label, labels)}"


def _out_of_range(
    metric: str, value: float, low: float | None, high: float | None, sd: float | None, percent: bool
) -> Iterator[str]:
    bottom, top = RANGES.get(metric, (0.0, 1.0))
    if percent and math.isinf(top):
        yield f"{metric} is never in percent; give it in a table of its own, without --percent"
    for name, number in (("value", value), ("low", low), ("high", high)):
        if number is not None and not bottom <= number <= top:
            hint = "; give --percent if it is in percent" if not percent and 1 < number <= 100 and top == 1 else ""
            yield f"{name} {number:g} of {metric} is not between {bottom:g} and {top:g}{hint}"
    if (low is None) != (high is None):
        yield "an interval needs low and high"
    elif low is not None and high is not None and not low <= value <= high:
        yield f"the value {value:g} is outside of its interval, {low:g} to {high:g}"
    if sd is not None and sd < 0:
        yield f"sd {sd:g} is below 0"


def _clashes(rows: Sequence[tuple[int, Published]], before: Sequence[Published]) -> Iterator[str]:
    """Yield rows of which another says the same or something else."""
    seen: dict[tuple[Any, ...], int] = {}
    kept = {row.key: row for row in before}
    for number, row in rows:
        if row.key in seen:
            yield f"row {number}: the same cell as row {seen[row.key]}: {_named(row)}"
        seen.setdefault(row.key, number)
        if row.key in kept and kept[row.key] != row:
            old, new = kept[row.key].value, row.value
            yield f"row {number}: {_named(row)} is in the results already, with {old:g} instead of {new:g}"


def _named(row: Published) -> str:
    return f"{row.encoder}, {row.task}, {row.protocol}, {row.metric} of {row.label} ({row.source})"
