"""A suite with its tasks resolved and matched to prepared stores.

Guarantee: a suite whose tasks, overrides or stores do not fit together starts nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.load import load_config
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.errors import UserError

if TYPE_CHECKING:
    from medvlp.store.array_store import Store

TASK_FOLDER = "benchmarks/tasks"


@dataclass(frozen=True)
class Suite:
    """A suite, its tasks by the name used in its entries, and the store of each data set."""

    config: SuiteConfig
    tasks: Mapping[str, TaskConfig]
    stores: Mapping[str, Store]

    def store_of(self, task: TaskConfig) -> Store:
        """Return the store that a task runs on."""
        return self.stores[task.dataset]

    def resolved(self) -> dict[str, Any]:
        """Return suite and tasks as plain JSON types; entries name a task by its name, also where it is a file."""
        suite = self.config.resolved()
        for entry in suite["entries"]:
            entry["task"] = self.tasks[entry["task"]].name
        return {"suite": suite, "tasks": {task.name: task.resolved() for task in self.tasks.values()}}


def resolve_tasks(suite: SuiteConfig) -> dict[str, TaskConfig]:
    """Return the tasks of a suite with the fields that its entries `set`.

    An entry names a task of `benchmarks/tasks`, or a YAML file.

    Raises:
        UserError: A task is unknown, a `set` key is wrong, or two entries set one key of a task to different values.
    """
    changes: dict[str, dict[str, Any]] = {}
    for entry in suite.entries:
        found = changes.setdefault(entry.task, {})
        for key, value in entry.set.items():
            if found.setdefault(key, value) != value:
                raise UserError(
                    f"Two entries set '{key}' of the task '{entry.task}' to {found[key]!r} and {value!r}.",
                    f"suite {suite.name}",
                    "A task has one setting per suite: give both the same value, or make two task files.",
                )
    tasks = {}
    for name, overrides in changes.items():
        path = name if name.endswith((".yaml", ".yml")) else f"{TASK_FOLDER}/{name}.yaml"
        # JSON is YAML: quoting keeps text such as "1e-3" what it is.
        texts = [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
        tasks[name] = load_config(path, texts, TaskConfig)
    names = [task.name for task in tasks.values()]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"Two task files of the suite have the name '{name}'.",
                f"suite {suite.name}",
                "Give each task file its own name.",
            )
    return tasks


def resolve_suite(suite: SuiteConfig, stores: Sequence[Path]) -> Suite:
    """Open the stores and match them with the tasks by data set.

    Raises:
        UserError: A store is missing for a task, or two stores hold the same data set.
    """
    from medvlp.store.array_store import Store

    tasks = resolve_tasks(suite)
    opened: dict[str, Store] = {}
    for path in stores:
        store = Store.open(Path(path))
        if store.dataset in opened:
            raise UserError(
                f"Two stores hold the data set '{store.dataset}'.",
                f"{opened[store.dataset].path} and {store.path}",
                "Give one store per data set.",
            )
        opened[store.dataset] = store
    needed = dict.fromkeys(task.dataset for task in tasks.values())
    missing = [name for name in needed if name not in opened]
    if missing:
        raise UserError(
            f"The suite '{suite.name}' needs a store of {' and '.join(missing)}; given: {', '.join(opened) or 'none'}.",
            f"suite {suite.name}",
            " ".join(
                f"Run `medvlp data prepare {name} --root DIR --out STORE`, then add --store STORE." for name in missing
            ),
        )
    return Suite(suite, tasks, {name: opened[name] for name in needed})
