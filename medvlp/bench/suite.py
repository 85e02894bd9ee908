"""A suite with its tasks resolved and matched to prepared stores.

Guarantee: a suite whose tasks, overrides or stores do not fit together starts nothing.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.load import load_config
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.config.tree import overlay, parse_override
from medvlp.errors import UserError, nearest

if TYPE_CHECKING:
    from medvlp.store.array_store import Store

logger = logging.getLogger(__name__)

TASK_FOLDER = "benchmarks/tasks"
META = "store.json"
STORE_DEPTH = 4


@dataclass(frozen=True)
class Suite:
    """A suite, its tasks by the name used in its entries, and the store of each data set."""

    config: SuiteConfig
    tasks: Mapping[str, TaskConfig]
    stores: Mapping[str, Store]

    def store_of(self, task: TaskConfig) -> Store:
        """Return the store that a task runs on.

        Raises:
            UserError: There is none of its data set.
        """
        if task.dataset not in self.stores:
            raise UserError(f"There is no store of {task.dataset}.", f"task {task.name}", _how_to_prepare(task.dataset))
        return self.stores[task.dataset]

    @property
    def missing(self) -> list[str]:
        """Data sets of its tasks that there is no store of."""
        return [name for name in dict.fromkeys(task.dataset for task in self.tasks.values()) if name not in self.stores]

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


def load_suite(path: str | Path, overrides: Sequence[str] = ()) -> SuiteConfig:
    """Load a suite with changes.

    Args:
        path: Its file; a shipped one by its relative path.
        overrides: `key.path=value`; behind `entries.*.` a key of every entry, behind `entries.TASK.` of those of one
            task, e.g. `entries.*.set.fine_tune.epochs=1`.

    Raises:
        UserError: Lists every mistake.
    """
    of_entries = [text for text in overrides if text.startswith("entries.")]
    suite = load_config(path, [text for text in overrides if text not in of_entries], SuiteConfig)
    tree = suite.resolved()
    for text in of_entries:
        key, _, value = text.removeprefix("entries.").partition("=")
        name, dot, rest = key.partition(".")
        known = [entry["task"] for entry in tree["entries"]]
        if not dot or (name != "*" and name not in known):
            raise UserError(
                f"The suite has no entries '{name}'.{nearest(name, known)}",
                text,
                f"Write entries.*.KEY=VALUE, or in place of * one of: {', '.join(dict.fromkeys(known))}.",
            )
        change = parse_override(f"{rest}={value}")
        tree["entries"] = [overlay(one, change) if name in ("*", one["task"]) else one for one in tree["entries"]]
    return load_config(None, (), SuiteConfig, tree) if of_entries else suite


def find_stores(root: Path, wanted: Iterable[str]) -> list[Path]:
    """Return the finished stores of data sets below a folder.

    Args:
        root: Folder that holds stores, at most four folders deep.
        wanted: Names of data sets; stores of others are passed over.

    Raises:
        UserError: There is no such folder, or it holds two stores of one data set.
    """
    from medvlp.store.array_store import read_meta

    if not Path(root).is_dir():
        raise UserError("There is no such folder of stores.", root, "Name the folder that holds prepared stores.")
    names, found = set(wanted), dict[str, Path]()
    for path in sorted(_folders_with_meta(Path(root), STORE_DEPTH)):
        try:
            dataset = read_meta(path)["dataset"]
        except UserError as error:
            logger.warning("%s: %s", path, error.what)
            continue
        if dataset in found and dataset in names:
            raise UserError(
                f"Two stores hold the data set '{dataset}'.",
                f"{found[dataset]} and {path}",
                "Name the one to use with --store; it goes before those of --store-root.",
            )
        found[dataset] = path
    return [path for dataset, path in found.items() if dataset in names]


def _folders_with_meta(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / META).is_file():
        yield folder
        return
    if depth:
        for inner in folder.iterdir():
            if inner.is_dir() and not inner.name.startswith("."):
                yield from _folders_with_meta(inner, depth - 1)


def choose_stores(suite: SuiteConfig, stores: Sequence[Path], root: Path | None) -> list[Path]:
    """Return the stores given, and for the suite's other data sets those found below `root`.

    Raises:
        UserError: A store cannot be opened, or `root` holds two stores of one data set.
    """
    if root is None:
        return list(stores)
    from medvlp.store.array_store import read_meta
    from medvlp.store.remote import place

    given = {read_meta(place(path))["dataset"] for path in stores}
    needed = dict.fromkeys(task.dataset for task in resolve_tasks(suite).values())
    return [*stores, *find_stores(root, [name for name in needed if name not in given])]


def resolve_suite(suite: SuiteConfig, stores: Sequence[Path], *, missing: bool = False) -> Suite:
    """Open the stores and match them with the tasks by data set.

    Args:
        suite: The suite.
        stores: Prepared stores; those of other data sets are passed over.
        missing: Whether a task may be without a store.

    Raises:
        UserError: A store is missing for a task, or two stores hold the same data set.
    """
    from medvlp.bench.reads import SharedReads

    tasks = resolve_tasks(suite)
    opened: dict[str, Store] = {}
    for path in stores:
        store = SharedReads.open(Path(path))
        if store.dataset in opened:
            raise UserError(
                f"Two stores hold the data set '{store.dataset}'.",
                f"{opened[store.dataset].path} and {store.path}",
                "Give one store per data set.",
            )
        opened[store.dataset] = store
    needed = dict.fromkeys(task.dataset for task in tasks.values())
    lacking = [name for name in needed if name not in opened]
    if lacking and not missing:
        raise UserError(
            f"The suite '{suite.name}' needs a store of {' and '.join(lacking)}; given: {', '.join(opened) or 'none'}.",
            f"suite {suite.name}",
            " ".join(_how_to_prepare(name) for name in lacking)
            + " Or add --missing-stores: cells without a store are then shown as missing.",
        )
    return Suite(suite, tasks, {name: opened[name] for name in needed if name in opened})


def _how_to_prepare(dataset: str) -> str:
    return f"Run `medvlp data prepare {dataset} --root DIR --out STORE`, then add --store STORE."
