"""What differs between two folders of results, or between results and what a suite would run now.

Guarantee: cells are matched by what they are (task, protocol, labels, encoder, seed, draw), and told apart by their
hashes; of every cell that changed it is said which part of its hash did, down to the setting where that is on record.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medvlp.bench.baselines import baseline_hash, baseline_names
from medvlp.bench.cells import Finished
from medvlp.bench.encoder_records import EncoderRecords
from medvlp.bench.judged import EncoderSlot, judge
from medvlp.bench.plan import Judged
from medvlp.bench.results import failed_cells, finished_cells
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import Suite
from medvlp.bench.work import ended

Kind = Literal["new", "gone", "changed", "other numbers"]
KEY = ("task", "protocol", "fraction", "shots", "encoder", "dataset", "seed", "draw")
PARTS = {
    "store": "the data: another store",
    "split": "the samples: another split or label subset",
    "encoder": "the encoder: other weights or preprocessing",
}
"""Parts of a hash that nothing more is on record of."""
MOST_SETTINGS = 8


@dataclass(frozen=True)
class Side:
    """A cell on one side; `config` is the resolved task and settings, `values` its scores, if it has any."""

    hash: str
    record: Mapping[str, Any]
    config: Mapping[str, Any]
    values: tuple[tuple[str, str, float | None], ...] | None = None


@dataclass(frozen=True)
class Difference:
    """A cell that differs."""

    kind: Kind
    key: tuple[Any, ...]
    """The values of `KEY`."""
    reasons: tuple[str, ...] = ()


Cells = dict[tuple[Any, ...], Side]


def cells_of_results(results: Path) -> Cells:
    """Return the cells of a folder of results; of several versions of one cell the newest.

    Raises:
        UserError: There is no such folder.
    """
    found: list[tuple[float, Side]] = []
    for cell in finished_cells(results):
        found.append((ended(cell.folder), _side(cell)))
    for failed in failed_cells(results):
        folder = results / "cells" / failed["hash"]
        record = json.loads((folder / "cell.json").read_text(encoding="utf-8"))
        found.append((ended(folder), Side(folder.name, record, failed.get("config", {}))))
    return {_key(side.record): side for _, side in sorted(found, key=lambda pair: (pair[0], pair[1].hash))}


def _side(cell: Finished) -> Side:
    values = tuple((row["metric"], row["label"], row["value"]) for row in cell.result["scores"])
    return Side(cell.folder.name, cell.record, cell.result.get("config", {}), values)


def cells_of_plan(schedule: Schedule, plan: Iterable[Planned]) -> Cells:
    """Return the cells that a suite would run now; those that cannot be planned are left out."""
    found = {}
    for planned in plan:
        if planned.cell is not None:
            task = schedule.task(planned.key, planned.judged)
            config = {"task": task.config.resolved(), "settings": schedule.settings(task, planned.cell.protocol)}
            found[_key(planned.about)] = Side(planned.cell.hash, planned.cell.record(), config)
    return found


def recorded_encoders(results: Path, suite: Suite) -> list[Judged]:
    """Return the encoders that results were made with, as they are on record, and the suite's baselines."""
    try:
        entries = json.loads((results / "suite.json").read_text(encoding="utf-8"))["encoders"]
    except (OSError, ValueError, KeyError, TypeError):
        entries = []
    fields = set(Judged.__dataclass_fields__)
    found = []
    for entry in entries:
        if {"name", "spec", "hash", "dataset", "kind"} <= set(entry) <= fields:
            values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in entry.items()}
            found.append(Judged(**values))
    for name in baseline_names(suite.config.baselines):
        found += [Judged(name, name, baseline_hash(name), dataset, "baseline") for dataset in suite.stores]
    return found


def cells_of_suite(suite: Suite, results: Path, specs: Sequence[str] | None) -> tuple[Cells, list[str]]:
    """Return the cells that a suite would run now, and what is left out.

    Args:
        suite: The suite, perhaps without some stores.
        results: Results that it is compared with.
        specs: Encoders, which are loaded unless they are on record; None takes those of the results as they were.
    """
    schedule, problems = Schedule(suite), [f"no store of {name}" for name in suite.missing]
    if specs:
        # loaded as the runner does, since their hashes are part of those of cells
        slot, known = EncoderSlot("cpu"), recorded_encoders(results, suite)
        records = EncoderRecords(results)
        judged, failures = judge(suite, specs, slot, [asdict(one) for one in known if one.kind != "baseline"], records)
        problems += [f"{failure['encoder']}: {failure['reason']}" for failure in failures]
    else:
        judged = recorded_encoders(results, suite)
    return cells_of_plan(schedule, schedule.plan(judged)), problems


def compare_cells(before: Cells, after: Cells) -> list[Difference]:
    """Return what differs, in the order of `after`, then what is gone."""
    found = []
    for key, side in after.items():
        old = before.get(key)
        if old is None:
            found.append(Difference("new", key))
        elif old.hash != side.hash:
            found.append(Difference("changed", key, tuple(reasons(old, side))))
        elif old.values is not None and side.values is not None and old.values != side.values:
            found.append(
                Difference("other numbers", key, ("the same hash and other scores: rescored, or not the same",))
            )
    return found + [Difference("gone", key) for key in before if key not in after]


def reasons(old: Side, new: Side) -> Iterator[str]:
    """Yield which parts of a cell's hash changed."""
    hashes = [side.record["hashes"] for side in (old, new)]
    changed = {name for name in hashes[0] | hashes[1] if hashes[0].get(name) != hashes[1].get(name)}
    versions = [side.record["task_version"] for side in (old, new)]
    if "task" in changed or versions[0] != versions[1]:
        yield from _named("the task", old.config.get("task"), new.config.get("task"))
    if "config" in changed:
        yield from _settings(old.config.get("settings"), new.config.get("settings"))
    for part, sentence in PARTS.items():
        if part in changed:
            yield sentence
    for part in sorted(changed - {"task", "config", *PARTS}):
        yield f"the hash '{part}'"


def _settings(old: Any, new: Any) -> Iterator[str]:
    versions = [side.get("code_version") if isinstance(side, Mapping) else None for side in (old, new)]
    if versions[0] != versions[1]:
        yield f"the code of the task: version {versions[0]} → {versions[1]}"
    parts = [_without(side, "code_version") for side in (old, new)]
    if parts[0] != parts[1] or versions[0] == versions[1]:
        yield from _named("settings", *parts)


def _without(side: Any, key: str) -> Any:
    return {name: value for name, value in side.items() if name != key} if isinstance(side, Mapping) else side


def _named(what: str, old: Any, new: Any) -> Iterator[str]:
    found = list(differences(old, new))
    if not found:
        yield f"{what}: what changed is not on record"
    for path, before, after in found[:MOST_SETTINGS]:
        yield f"{what}: {path} {before} → {after}"
    if len(found) > MOST_SETTINGS:
        yield f"{what}: and {len(found) - MOST_SETTINGS} more settings"


def differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (path, value before, value after) of every leaf that differs in two nested records."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys([*old, *new]):
            inner = f"{path}.{name}" if path else str(name)
            yield from differences(old.get(name), new.get(name), inner)
    elif isinstance(old, Sequence) and isinstance(new, Sequence) and not isinstance(old, str | bytes):
        if len(old) == len(new):
            for place, (before, after) in enumerate(zip(old, new, strict=True)):
                yield from differences(before, after, f"{path}[{place}]")
        else:
            yield path, _shown(old), _shown(new)
    elif old != new:
        yield path, _shown(old), _shown(new)


def _shown(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in KEY)


def summary(found: Sequence[Difference]) -> list[tuple[str, int, str, str]]:
    """Return rows (what, cells, which, why): cells that differ in the same way stand in one."""
    groups: dict[tuple[str, tuple[str, ...], str, str], list[tuple[Any, ...]]] = defaultdict(list)
    for one in found:
        task, protocol = one.key[:2]
        groups[one.kind, one.reasons, task, protocol].append(one.key)
    order = {"changed": 0, "other numbers": 1, "new": 2, "gone": 3}
    rows = []
    for (kind, why, task, protocol), keys in sorted(groups.items(), key=lambda item: (order[item[0][0]], item[0])):
        encoders = list(dict.fromkeys(str(key[4]) for key in keys))
        some = ", ".join(encoders[:4]) + (f" and {len(encoders) - 4} more" if len(encoders) > 4 else "")
        rows.append((kind, len(keys), f"{task}, {protocol}: {some}", "\n".join(why)))
    return rows
