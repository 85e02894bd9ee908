"""Which cells a suite consists of, and the hash that names each.

Guarantee: the hash of a cell covers everything that decides its numbers (task with version, protocol settings, code
version of the task, bootstrap settings, store, samples, encoder weights and preprocessing, fraction, shots, seed, draw)
and the name that the encoder has in tables; no path, nothing of other cells. The plan is the same in every order of
stores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from medvlp.bench.baselines import LOCATION_PRIOR
from medvlp.config.base import json_sha256
from medvlp.config.suite import SuiteConfig, SuiteEntry
from medvlp.tasks.base import FROZEN, ZERO_SHOT, Task


@dataclass(frozen=True)
class Judged:
    """What is judged on one store: an encoder (of one seed, if it is random) or a baseline without encoder."""

    name: str
    spec: str
    hash: str
    dataset: str
    kind: Literal["encoder", "random", "baseline"]
    seed: int = 0
    has_text: bool = False
    offers: tuple[str, ...] = ()
    """Of `SCORES`, `SPACE` and `HEAT_MAPS`."""
    other_preprocessing: tuple[str, ...] = ()
    """How the store's images were made unlike those that the encoder was trained on, one line per setting."""
    loaded: tuple[str, ...] = ()
    """How its weights were read, in words."""

    @property
    def names(self) -> tuple[str, ...]:
        """What a task may call it: its name in tables, without the piece of its hash, and its format in the zoo."""
        kind, _, rest = self.spec.partition(":")
        own = (self.name, self.name.rpartition("@")[0], rest.partition(":")[0] if kind == "zoo" else "")
        return tuple(name for name in own if name)


@dataclass(frozen=True)
class Cell:
    """One cell: what is run, and the hashes of what it is run on."""

    task: str
    task_version: int
    dataset: str
    encoder: str
    protocol: str
    fraction: float
    seed: int
    draw: int
    shots: int
    hashes: dict[str, str] = field(hash=False)

    def record(self) -> dict[str, Any]:
        """Return the cell as JSON types, as in `cell.json`."""
        return asdict(self)

    @cached_property
    def hash(self) -> str:
        """Name of the cell's folder."""
        return json_sha256(self.record())[:24]

    @property
    def setting(self) -> tuple[str, str, float, int, str]:
        """What cells of different seeds and draws have in common: task, protocol, fraction, shots, encoder."""
        return (self.task, self.protocol, self.fraction, self.shots, self.encoder)


@dataclass(frozen=True, order=True)
class Amount:
    """How much of the training labels a cell sees: a fraction, or shots per class; and which draw of them."""

    fraction: float = 1.0
    shots: int = 0
    draw: int = 0


def amounts(entry: SuiteEntry, protocol: str) -> list[Amount]:
    """Return the label subsets that an entry asks for in a protocol."""
    if protocol == ZERO_SHOT:
        return [Amount()]
    if protocol == "few_shot":
        return [Amount(1.0, shots, draw) for shots in entry.shots for draw in range(entry.draws)]
    return [
        Amount(fraction, 0, draw) for fraction in entry.fractions for draw in range(entry.draws if fraction < 1 else 1)
    ]


def seeds(entry: SuiteEntry, protocol: str, judged: Judged) -> Sequence[int]:
    """Return the seeds that change a number: those of training, and those of random weights; else the first alone."""
    if judged.kind == "random":
        return [judged.seed] if judged.seed in entry.seeds else []
    return entry.seeds if protocol in (FROZEN, "fine_tune") and judged.kind != "baseline" else entry.seeds[:1]


def lacking(task: Task, protocol: str, judged: Judged) -> str:
    """Return what an encoder lacks for a protocol of a task; nothing where it can be run."""
    needed = task.needed_by(protocol)
    if not needed or judged.kind == "baseline" or needed in judged.offers:
        return ""
    return f"the encoder has no {needed}" if judged.has_text else "the encoder has no text side"


def hindrance(entry: SuiteEntry, task: Task, protocol: str, judged: Judged) -> str:
    """Return why an encoder does not run a protocol of an entry: the suite excludes it, or it lacks something."""
    if judged.kind == "baseline":
        return ""
    reason = next((entry.exclude[name] for name in judged.names if name in entry.exclude), "")
    return f"left out: {reason}" if reason else lacking(task, protocol, judged)


def entry_protocols(suite: SuiteConfig, entry: SuiteEntry, task: Task, judged: Judged) -> tuple[str, ...]:
    """Return the protocols of an entry for an encoder or a baseline.

    Baselines stand beside as linear probes, or as nearest neighbours where a task has no linear probe; where the suite
    does not ask for that, with all labels beside the task's first entry. The location prior stands beside tasks that it
    answers, in the first protocol of an entry.
    """
    if judged.kind != "baseline":
        return tuple(entry.protocols)
    if judged.name == LOCATION_PRIOR:
        return entry.protocols[:1] if task.asks_where else ()
    probe = next((protocol for protocol in ("linear_probe", "knn") if protocol in task.protocols), None)
    if probe is None or probe in entry.protocols:
        return () if probe is None else (probe,)
    same_task = [other for other in suite.entries if other.task == entry.task]
    probed = any(probe in other.protocols for other in same_task)
    return () if probed or entry is not same_task[0] else (probe,)


def settings_of(
    suite: SuiteConfig, tasks: Mapping[str, Task], judged: Sequence[Judged]
) -> Iterator[tuple[str, str, Amount, int, Judged]]:
    """Yield (task, protocol, amount, seed, judged) of every cell; without those that do not apply."""
    for one in judged:
        for entry in suite.entries:
            task = tasks[entry.task]
            if task.config.dataset != one.dataset:
                continue
            for protocol in entry_protocols(suite, entry, task, one):
                if hindrance(entry, task, protocol, one):
                    continue
                if one.kind == "baseline" and protocol not in entry.protocols:
                    wanted = [Amount()]
                else:
                    wanted = amounts(entry, protocol)
                for amount in wanted:
                    for seed in seeds(entry, protocol, one):
                        yield entry.task, protocol, amount, seed, one


def left_out(
    suite: SuiteConfig, tasks: Mapping[str, Task], judged: Sequence[Judged]
) -> Iterator[tuple[str, str, Amount, str, str]]:
    """Yield (task, protocol, amount, encoder, why) of what encoders do not run: they lack something or are excluded."""
    for one in judged:
        for entry in suite.entries:
            task = tasks[entry.task]
            if task.config.dataset != one.dataset or one.kind == "baseline":
                continue
            for protocol in entry.protocols:
                if why := hindrance(entry, task, protocol, one):
                    for amount in amounts(entry, protocol):
                        yield task.config.name, protocol, amount, one.name, why


def not_applicable(
    suite: SuiteConfig, tasks: Mapping[str, Task], judged: Sequence[Judged]
) -> list[tuple[str, str, str, str]]:
    """Return (task, protocol, encoder, why) of what encoders do not run, whatever the amount of labels."""
    found = left_out(suite, tasks, judged)
    return list(dict.fromkeys((task, protocol, encoder, why) for task, protocol, _, encoder, why in found))
