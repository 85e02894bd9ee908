"""The cells of a suite with the samples they need.

Guarantee: the samples of a task and each subset of its training labels are made once and are the same for every
encoder. A task whose samples cannot be made yields cells with the reason instead, so that the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medvlp.bench.plan import Amount, Cell, Judged, settings_of
from medvlp.bench.suite import Suite
from medvlp.config.base import json_sha256
from medvlp.errors import UserError, nearest
from medvlp.metrics.intervals import RULE as INTERVAL_RULE
from medvlp.metrics.scoring import SCORINGS
from medvlp.tasks import TASKS
from medvlp.tasks.base import Samples, Task
from medvlp.zoo.release import release_names

logger = logging.getLogger(__name__)

Setting = tuple[str, str, float, int, str]
CURRENT = ("store", "task", "config")
"""Hashes by which a cell belongs to a suite as it is now."""
STATISTICS = ("bootstrap", "scoring")
"""Settings that decide scores and intervals, and no prediction."""


@dataclass(frozen=True)
class Planned:
    """A cell of the plan; `cell` is None where its samples cannot be made, for `reason`."""

    about: dict[str, Any]
    judged: Judged
    key: str
    """Name of the task in the suite's entries."""
    amount: Amount
    cell: Cell | None
    reason: UserError | None = None

    @property
    def setting(self) -> Setting:
        """Task, protocol, fraction, shots, encoder."""
        about = self.about
        return about["task"], about["protocol"], about["fraction"], about["shots"], about["encoder"]

    @property
    def shown(self) -> str:
        """The cell in words."""
        about = self.about
        amount = f"{about['shots']} shots" if about["shots"] else f"{100 * about['fraction']:g} %"
        rest = f"seed {about['seed']}, draw {about['draw']}"
        return f"{about['encoder']} on {about['task']}, {about['protocol']}, {amount}, {rest}"


class Schedule:
    """Tasks of a suite, their samples, and the plan of cells.

    Raises:
        UserError: The suite asks for a protocol that a kind of task does not have.
    """

    def __init__(self, suite: Suite) -> None:
        self.suite = suite
        self.tasks: dict[str, Task] = {key: TASKS.get(task.type)(task) for key, task in suite.tasks.items()}
        for entry in suite.config.entries:
            _check_protocols(self.tasks[entry.task], entry.protocols, suite.config.name)
        self._of_encoders: dict[tuple[str, tuple[str, ...]], Task] = {}
        self._samples: dict[str, dict[str, Samples] | UserError] = {}
        self._subsets: dict[tuple[str, Amount], Samples] = {}

    def samples(self, key: str) -> dict[str, Samples]:
        """Return train, val and test samples of a task.

        Raises:
            UserError: They cannot be made; see `Task.samples`.
        """
        if key not in self._samples:
            task = self.tasks[key]
            try:
                self._samples[key] = task.samples(self.suite.store_of(task.config))
            except UserError as error:
                logger.warning("task %s: %s", task.config.name, error.what)
                self._samples[key] = error
        found = self._samples[key]
        if isinstance(found, UserError):
            raise found
        return found

    def subset(self, key: str, amount: Amount) -> Samples:
        """Return the training samples of a task for a fraction or number of shots, and a draw."""
        if (key, amount) not in self._subsets:
            train = self.samples(key)["train"]
            self._subsets[key, amount] = self.tasks[key].training_subset(
                train, fraction=amount.fraction, shots=amount.shots, draw=amount.draw
            )
        return self._subsets[key, amount]

    def task(self, key: str, judged: Judged) -> Task:
        """Return a task with the settings that it has for an encoder."""
        at = key, judged.names
        if at not in self._of_encoders:
            self._of_encoders[at] = self.tasks[key].for_encoder(*judged.names)
        return self._of_encoders[at]

    def plan(self, judged: Sequence[Judged]) -> Iterator[Planned]:
        """Yield every cell once, encoder by encoder.

        Raises:
            UserError: A task has settings for an encoder that there is not, or an entry excludes it.
        """
        self._check_encoders(judged)
        seen: set[str] = set()
        for key, protocol, amount, seed, one in settings_of(self.suite.config, self.tasks, judged):
            task = self.task(key, one)
            about: dict[str, Any] = {
                "task": task.config.name,
                "task_version": task.config.version,
                "dataset": task.config.dataset,
                "encoder": one.name,
                "protocol": protocol,
                "fraction": amount.fraction,
                "seed": seed,
                "draw": amount.draw,
                "shots": amount.shots,
            }
            try:
                samples = self.samples(key)
                parts = [self.subset(key, amount), samples["val"], samples["test"]]
            except UserError as error:
                yield Planned(about, one, key, amount, None, error)
                continue
            hashes = {
                "store": self.suite.store_of(task.config).hash,
                "split": json_sha256([part.sha256 for part in parts]),
                "encoder": one.hash,
                "task": task.config.sha256(),
                "config": json_sha256(self.settings(task, protocol)),
            }
            cell = Cell(**about, hashes=hashes)
            if cell.hash not in seen:
                seen.add(cell.hash)
                yield Planned(about, one, key, amount, cell)

    def _check_encoders(self, judged: Sequence[Judged]) -> None:
        known = [*release_names(), *(name for one in judged if one.kind != "baseline" for name in one.names)]
        named = [
            (name, f"task {own.config.name}, per_encoder")
            for own in self.tasks.values()
            for name in own.config.per_encoder
        ]
        named += [
            (name, f"task {entry.task}, exclude") for entry in self.suite.config.entries for name in entry.exclude
        ]
        for name, where in named:
            # The view of a format of the zoo need not be among the encoders of this run.
            if name not in known and name.removeprefix("zoo:").partition("@")[0] not in known:
                raise UserError(
                    f"There is no encoder '{name}'.{nearest(name, known)}",
                    where,
                    "Use a name of `medvlp zoo list`, or that of an encoder of this run.",
                )

    def is_current(self, hashes: Mapping[str, str]) -> bool:
        """Return whether a cell with these hashes belongs to this suite with its tasks, settings and stores as now."""
        return tuple(hashes[key] for key in CURRENT) in self.current

    @cached_property
    def current(self) -> set[tuple[str, ...]]:
        """Hashes (`CURRENT`) that the cells of this suite have."""
        return {
            (self.suite.store_of(own.config).hash, own.config.sha256(), json_sha256(self.settings(own, protocol)))
            for task in self.tasks.values()
            if task.config.dataset in self.suite.stores
            for own in (task.for_encoder(), *(task.for_encoder(name) for name in task.config.per_encoder))
            for protocol in task.protocols
        }

    def settings(self, task: Task, protocol: str) -> dict[str, Any]:
        """Return what decides the numbers of a cell's protocol and intervals; its hash is the cell's `config`.

        The first version of a scoring rule's code is not named.
        """
        suite = self.suite.config
        bootstrap = {
            "resamples": suite.bootstrap_resamples,
            "seed": suite.bootstrap_seed,
            "alpha": suite.alpha,
            "rule": INTERVAL_RULE,
        }
        found = task.settings(protocol) | {"bootstrap": bootstrap}
        version = SCORINGS.get(task.rule).code_version
        return found if version == 1 else found | {"scoring": version}


def _check_protocols(task: Task, protocols: Sequence[str], suite: str) -> None:
    other = [protocol for protocol in protocols if protocol not in task.protocols]
    if other:
        raise UserError(
            f"The task '{task.config.name}' is of the type {task.config.type}, which has no {' and no '.join(other)}.",
            f"suite {suite}",
            f"Use: {', '.join(sorted(task.protocols))}.",
        )
