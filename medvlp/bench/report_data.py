"""Reads a results folder for its report, however far the benchmark has come.

Guarantee: a cell that is missing, half written or failed never stops the report: it becomes a row without a value and
with a reason. Paths and patient identifiers are left out at the door.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from medvlp.bench.cells import OK, read_result, status_of
from medvlp.bench.gates import LEAKS
from medvlp.bench.published import Published, published
from medvlp.bench.report_scores import (
    METRICS,
    PROTOCOL_NAMES,
    Cell,
    Group,
    Score,
    Setting,
    is_baseline,
    score_of,
    setting_of,
    span,
)
from medvlp.bench.schedule import CURRENT
from medvlp.errors import UserError
from medvlp.html.private import public


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, or None where it is missing or cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; a last line that was cut off is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


@dataclass
class Results:
    """A results folder in memory."""

    root: Path
    suite: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    stores: dict[str, dict[str, Any]]
    encoders: list[dict[str, Any]]
    facts: dict[str, Any]
    cells: list[Cell]
    stale: int = 0
    """Cells of another store, task or settings than the suite has now, which are left out."""
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    aggregate: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)
    places: list[dict[str, Any]] = field(default_factory=list)
    leaks: dict[str, Any] = field(default_factory=dict)
    published: list[Published] = field(default_factory=list)

    @classmethod
    def read(cls, root: Path) -> Results:
        """Read a results folder.

        Raises:
            UserError: There is no such folder, or it holds no suite and no cell.
        """
        root = Path(root)
        fix = "Name the folder that `medvlp bench run` wrote to with --out."
        if not root.is_dir():
            raise UserError("There is no folder of results.", root, fix)
        raw = public(read_json(root / "suite.json"))
        raw = raw if isinstance(raw, dict) else {}
        cells = sorted(_cells(root), key=lambda cell: (*(cell.info.get(k) or 0 for k in ("seed", "draw")), cell.hash))
        if not raw and not cells:
            raise UserError("The folder holds no benchmark results: neither suite.json nor a finished cell.", root, fix)
        # entries name a task by its file, cells by its own name
        named = {key: {"name": key} | task for key, task in (raw.get("tasks") or {}).items()}
        suite = raw.get("suite") or {}
        for entry in suite.get("entries", []):
            entry["task"] = named.get(entry["task"], {}).get("name", entry["task"])
        aggregate = public(read_json(root / "aggregate.json")) or []
        return cls(
            root=root,
            suite=suite,
            tasks={str(task["name"]): task for task in named.values()},
            stores=raw.get("stores") or {},
            encoders=raw.get("encoders") or [],
            facts={key: raw[key] for key in ("versions", "git", "created", "finished") if raw.get(key)},
            cells=[cell for cell in cells if not _is_stale(cell, raw)],
            stale=sum(_is_stale(cell, raw) for cell in cells),
            comparisons=public(read_json(root / "comparisons.json")) or [],
            failures=public(read_lines(root / "failures.jsonl")),
            aggregate=aggregate if isinstance(aggregate, list) else aggregate.get("scores", []),
            examples=read_json(root / "examples" / "index.json") or [],
            places=read_json(root / "examples" / "places.json") or [],
            leaks=public(read_json(root / LEAKS)) or {},
            published=published(root),
        )

    @property
    def level(self) -> str:
        """Return the coverage of the suite's intervals in words, e.g. `95 %`."""
        return f"{100 * (1 - float(self.suite.get('alpha') or 0.05)):g} %"

    @cached_property
    def encoder_names(self) -> list[str]:
        """Return all encoders, the ones under test first, then the baselines."""
        seen = dict.fromkeys(
            [str(e.get("name")) for e in self.encoders] + [str(c.info.get("encoder")) for c in self.cells]
        )
        return sorted(seen, key=is_baseline)

    def primary(self, task: str) -> str:
        """Return the metric that leads a task."""
        return self.metrics(task)[0]

    def metrics(self, task: str) -> list[str]:
        """Return the metrics present in the cells of a task, in the order of `METRICS`, then others."""
        return self._metrics.get(task, ["auroc"])

    @cached_property
    def _metrics(self) -> dict[str, list[str]]:
        found: dict[str, dict[str, None]] = {}
        cells = ((cell.info, row) for cell in self.cells for row in cell.result.get("scores", []))
        for about, row in [*cells, *((row, row) for row in self.aggregate)]:
            found.setdefault(str(about.get("task")), {})[str(row.get("metric"))] = None
        return {
            task: [m for m in METRICS if m in own] + [m for m in own if m not in METRICS] for task, own in found.items()
        }

    @cached_property
    def groups(self) -> list[Group]:
        """Return every setting that was run or planned."""
        cells: dict[Setting, list[Cell]] = {}
        for cell in self.cells:
            cells.setdefault(setting_of(cell.info), []).append(cell)
        summed: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.aggregate:
            if row.get("status", "ok") == "ok":
                summed.setdefault(setting_of(row), []).append(row)
        marks = self.leaks.get("cells", {})
        groups = {
            setting: replace(
                self._group(setting, found, summed.get(setting, [])),
                leaks=tuple(dict.fromkeys(text for cell in found for text in marks.get(cell.hash, ()))),
            )
            for setting, found in cells.items()
        }
        for setting in self.planned():
            groups.setdefault(setting, Group(setting, reason=self.reason(setting)))
        order = {name: i for i, name in enumerate(self.encoder_names)}
        rank = {name: i for i, name in enumerate(PROTOCOL_NAMES)}
        return sorted(
            groups.values(),
            key=lambda g: (
                g.setting.task,
                rank.get(g.setting.protocol, 9),
                g.setting.fraction,
                g.setting.shots,
                order.get(g.setting.encoder, 99),
            ),
        )

    @cached_property
    def published_groups(self) -> list[Group]:
        """Return the published numbers, one group for each setting and source."""
        found: dict[tuple[Setting, str], list[Score]] = {}
        for row in self.published:
            score = score_of({name: getattr(row, name) for name in ("metric", "label", "value", "low", "high", "n")})
            found.setdefault((setting_of(vars(row)), row.source), []).append(score)
        return [Group(setting, scores=tuple(scores), source=source) for (setting, source), scores in found.items()]

    @staticmethod
    def _group(setting: Setting, cells: list[Cell], rows: list[dict[str, Any]]) -> Group:
        if rows:
            return Group(setting, tuple(cells), tuple(score_of(row) for row in rows))
        if len(cells) == 1:
            return Group(setting, tuple(cells), tuple(score_of(row) for row in cells[0].result.get("scores", [])))
        found: dict[tuple[str, str], list[Score]] = {}
        for cell in cells:
            for row in cell.result.get("scores", []):
                score = score_of(row)
                found.setdefault((score.metric, score.label), []).append(score)
        return Group(setting, tuple(cells), tuple(span(scores) for scores in found.values()), pooled=False)

    def planned(self) -> Iterator[Setting]:
        """Yield the settings that the suite asks for; baselines only where they have been run."""
        names = [name for name in self.encoder_names if not is_baseline(name) or name.startswith("random:")]
        for entry in self.suite.get("entries", []):
            for protocol in entry.get("protocols", []):
                shots = entry.get("shots") or [0]
                amounts = {
                    "few_shot": [(1.0, int(k)) for k in shots],
                    "zero_shot": [(1.0, 0)],
                }.get(protocol, [(float(f), 0) for f in entry.get("fractions", [1.0])])
                for fraction, k in amounts:
                    for name in names:
                        yield setting_of(
                            {
                                "task": entry["task"],
                                "protocol": protocol,
                                "fraction": fraction,
                                "shots": k,
                                "encoder": name,
                            }
                        )

    def reason(self, setting: Setting) -> str:
        """Return why a planned setting has no value."""
        for failure in self.failures:
            about = failure["cell"] if isinstance(failure.get("cell"), dict) else failure
            known = {"encoder", "task", "protocol", "fraction", "shots"} & {
                k for k, v in about.items() if v is not None
            }
            if "encoder" in known and all(getattr(setting, k) == getattr(setting_of(about), k) for k in known):
                what = failure.get("what") or failure.get("reason") or failure.get("error")
                return f"failed: {what or 'see the failures'}"
        for row in self.aggregate:
            if row.get("status", "ok") != "ok" and setting_of(row) == setting:
                return str(row["status"])
        encoder = next((e for e in self.encoders if e.get("name") == setting.encoder), {})
        if setting.protocol == "zero_shot" and (encoder.get("has_text") is False or is_baseline(setting.encoder)):
            return "not applicable: the encoder has no text side"
        return "not run"


def _is_stale(cell: Cell, suite: dict[str, Any]) -> bool:
    """Return whether a cell has another store, task or settings than the suite has now."""
    hashes, stores = cell.info.get("hashes") or {}, suite.get("stores") or {}
    if "current" in suite:
        return [hashes.get(name) for name in CURRENT] not in suite["current"]
    now = stores.get(str(cell.info.get("dataset")), {}).get("hash")
    return now is not None and now != hashes.get("store", now)


def _cells(root: Path) -> Iterator[Cell]:
    for path in sorted(root.glob("cells/*/result.json")):
        info = read_json(path.parent / "cell.json")
        result = read_result(path.parent) if status_of(path.parent) == OK else None
        if isinstance(info, dict) and result is not None:
            run = read_json(path.parent / "run.json")
            times = run if isinstance(run, dict) else {}
            yield Cell(path.parent.name, path.parent, public(info), public(result | times))
