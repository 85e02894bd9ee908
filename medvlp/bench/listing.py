"""The shipped suites and tasks, and the data that they need.

Guarantee: everything is read from suites, tasks and data cards; no store, no weights and no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import shorten

from medvlp.bench.baselines import baseline_hash, baseline_names
from medvlp.bench.plan import Judged, settings_of
from medvlp.bench.suite import TASK_FOLDER, resolve_tasks
from medvlp.config.load import load_config
from medvlp.config.resources import shipped
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.sources import SOURCES
from medvlp.sources.cards import load_card
from medvlp.tasks import TASKS
from medvlp.tasks.base import HEAT_MAPS, SCORES, SPACE

SUITE_FOLDER = "benchmarks/suites"
CELL_CHARACTERS = 60


@dataclass(frozen=True)
class Table:
    """A table to print."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]


def tables() -> Iterator[Table]:
    """Yield the tables of suites, of tasks, and of the data sets that they need."""
    suites = {path: load_config(path, (), SuiteConfig) for path in sorted(shipped(SUITE_FOLDER).glob("*.yaml"))}
    used: dict[str, list[str]] = {}
    rows: list[tuple[object, ...]] = []
    for path, suite in suites.items():
        tasks = resolve_tasks(suite)
        for name in tasks:
            used.setdefault(name, []).append(suite.name)
        own, beside = count_cells(suite)
        datasets = ", ".join(dict.fromkeys(task.dataset for task in tasks.values()))
        file = f"{SUITE_FOLDER}/{path.name}"
        rows.append((file, suite.version, len(tasks), datasets, own, beside, _short(suite.description)))
    columns = ("suite", "version", "tasks", "data sets", "cells per encoder", "of baselines", "about")
    yield Table("Suites", columns, rows)
    configs = [load_config(path, (), TaskConfig) for path in sorted(shipped(TASK_FOLDER).glob("*.yaml"))]
    yield Table(
        "Tasks",
        ("task", "version", "type", "data set", "labels", "protocols", "in suites"),
        [_task_row(task, used) for task in configs],
    )
    yield Table(
        "Data",
        ("data set", "size", "licence", "access", "prepare"),
        [_data_row(name) for name in dict.fromkeys(task.dataset for task in configs)],
    )


def count_cells(suite: SuiteConfig) -> tuple[int, int]:
    """Return the cells of one encoder that can do everything, and those of the baselines without random weights."""
    tasks = {key: TASKS.get(task.type)(task) for key, task in resolve_tasks(suite).items()}
    datasets = list(dict.fromkeys(task.config.dataset for task in tasks.values()))
    able = [Judged("", "", "", name, "encoder", 0, True, (SCORES, SPACE, HEAT_MAPS)) for name in datasets]
    beside = [
        Judged(name, name, baseline_hash(name), dataset, "baseline")
        for name in baseline_names(suite.baselines)
        for dataset in datasets
    ]
    own, others = (len(dict.fromkeys(map(str, settings_of(suite, tasks, judged)))) for judged in (able, beside))
    return own, others


def _task_row(task: TaskConfig, used: dict[str, list[str]]) -> tuple[object, ...]:
    protocols = ", ".join(sorted(TASKS.get(task.type).protocols))
    labels = len(task.labels) or "–"
    return task.name, task.version, task.type, task.dataset, labels, protocols, ", ".join(used.get(task.name, []))


def _data_row(dataset: str) -> tuple[object, ...]:
    SOURCES.check(dataset)
    card = load_card(dataset)
    command = f"medvlp data prepare {dataset} --root DIR --out STORE"
    return dataset, card.size, _short(card.licence), _short(card.access), command


def _short(text: str) -> str:
    return shorten(text, CELL_CHARACTERS, placeholder=" ...")
