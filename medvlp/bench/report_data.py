"""Reads a results folder for its report, however far the benchmark has come.

Guarantee: a cell that is missing, half written or failed never stops the report: it becomes a row without a value and with
a reason. Paths and patient identifiers are left out at the door.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.html.private import public

BASELINES = ("random", "metadata", "image_statistics", "majority")
PROTOCOLS = ("linear_probe", "fine_tune", "knn", "few_shot", "zero_shot")
METRICS = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "ap": "AP",
    "f1": "F1",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "ece": "ECE",
    "brier": "Brier",
}
LOWER_IS_BETTER = ("ece", "brier")


@dataclass(frozen=True, order=True)
class Setting:
    """What one number of the table stands for, seeds and draws aside."""

    task: str
    protocol: str
    fraction: float
    shots: int
    encoder: str

    @property
    def amount(self) -> str:
        """Return how many labels were used: `10 %`, `5 shots`, or nothing for zero-shot."""
        if self.shots:
            return f"{self.shots} shots"
        return "no labels" if self.protocol == "zero_shot" else f"{100 * self.fraction:.4g} %"

    @property
    def id(self) -> str:
        """Return the name of the setting's record in the page."""
        import hashlib

        return "r" + hashlib.sha256(repr(self).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Score:
    """One score over all seeds and draws of a setting. `low` and `high` bound its 95 % interval."""

    metric: str
    label: str
    value: float | None
    low: float | None
    high: float | None
    n: int | None


@dataclass(frozen=True)
class Cell:
    """One finished cell: its folder, `cell.json` and `result.json`."""

    hash: str
    folder: Path
    info: dict[str, Any]
    result: dict[str, Any]


@dataclass(frozen=True)
class Group:
    """All cells of a setting and their joint scores; without cells, the reason why there are none."""

    setting: Setting
    cells: tuple[Cell, ...] = ()
    scores: tuple[Score, ...] = ()
    reason: str = ""
    pooled: bool = True
    """False where the runner has not summed up the seeds yet and the interval spans those of the cells."""

    def score(self, metric: str, label: str) -> Score | None:
        """Return the score of a metric and label that has a value, or None."""
        return next((s for s in self.scores if s.metric == metric and s.label == label and s.value is not None), None)

    @property
    def seeds(self) -> int:
        """Return the number of different seeds."""
        return len({cell.info.get("seed") for cell in self.cells})

    @property
    def draws(self) -> int:
        """Return the number of different label subsets."""
        return len({cell.info.get("draw") for cell in self.cells})

    @property
    def versions(self) -> str:
        """Return the task version; several, if cells of different versions lie side by side."""
        return ", ".join(sorted({str(cell.info.get("task_version", "?")) for cell in self.cells}))


def is_baseline(encoder: str) -> bool:
    """Return whether an encoder is one of the baselines that every suite runs beside."""
    return encoder.replace("/", ":").split(":")[0] in BASELINES


def number(value: Any) -> float | None:
    """Return a finite number, or None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    return None


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
    comparisons: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    aggregate: list[dict[str, Any]] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

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
        raw = public(read_json(root / "suite.json")) or {}
        cells = sorted(_cells(root), key=lambda cell: cell.hash)
        if not raw and not cells:
            raise UserError("The folder holds no benchmark results: neither suite.json nor a finished cell.", root, fix)
        tasks = raw.get("tasks") or {}
        if isinstance(tasks, list):
            tasks = {task["name"]: task for task in tasks}
        aggregate = public(read_json(root / "aggregate.json")) or []
        return cls(
            root=root,
            suite=raw.get("suite") or {},
            tasks=tasks,
            stores=raw.get("stores") or {},
            encoders=raw.get("encoders") or [],
            facts={key: raw[key] for key in ("versions", "git", "created", "finished") if raw.get(key)},
            cells=cells,
            comparisons=public(read_json(root / "comparisons.json")) or [],
            failures=public(read_lines(root / "failures.jsonl")),
            aggregate=aggregate if isinstance(aggregate, list) else aggregate.get("scores", []),
            examples=read_json(root / "examples" / "index.json") or [],
        )

    @cached_property
    def encoder_names(self) -> list[str]:
        """Return all encoders, the ones under test first, then the baselines."""
        seen = dict.fromkeys([str(e.get("name")) for e in self.encoders] + [str(c.info.get("encoder")) for c in self.cells])
        return sorted(seen, key=is_baseline)

    @cached_property
    def primary(self) -> str:
        """Return the metric that leads the report."""
        return "auroc" if "auroc" in self.metrics or not self.metrics else self.metrics[0]

    @cached_property
    def metrics(self) -> list[str]:
        """Return the metrics present, in the order of `METRICS`, then others."""
        found = dict.fromkeys(str(s.get("metric")) for cell in self.cells for s in cell.result.get("scores", []))
        return [m for m in METRICS if m in found] + [m for m in found if m not in METRICS]

    @cached_property
    def groups(self) -> list[Group]:
        """Return every setting that was run or planned."""
        cells: dict[Setting, list[Cell]] = {}
        for cell in self.cells:
            cells.setdefault(setting_of(cell.info), []).append(cell)
        summed: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.aggregate:
            summed.setdefault(setting_of(row), []).append(row)
        groups = {setting: self._group(setting, found, summed.get(setting, [])) for setting, found in cells.items()}
        for setting in self.planned():
            groups.setdefault(setting, Group(setting, reason=self.reason(setting)))
        order = {name: i for i, name in enumerate(self.encoder_names)}
        rank = {name: i for i, name in enumerate(PROTOCOLS)}
        return sorted(
            groups.values(),
            key=lambda g: (g.setting.task, rank.get(g.setting.protocol, 9), g.setting.fraction, g.setting.shots, order.get(g.setting.encoder, 99)),
        )

    @staticmethod
    def _group(setting: Setting, cells: list[Cell], rows: list[dict[str, Any]]) -> Group:
        if rows:
            return Group(setting, tuple(cells), tuple(_score(row) for row in rows))
        if len(cells) == 1:
            return Group(setting, tuple(cells), tuple(_score(row) for row in cells[0].result.get("scores", [])))
        found: dict[tuple[str, str], list[Score]] = {}
        for cell in cells:
            for row in cell.result.get("scores", []):
                score = _score(row)
                found.setdefault((score.metric, score.label), []).append(score)
        return Group(setting, tuple(cells), tuple(_span(scores) for scores in found.values()), pooled=False)

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
                        yield setting_of({"task": entry["task"], "protocol": protocol, "fraction": fraction, "shots": k, "encoder": name})

    def reason(self, setting: Setting) -> str:
        """Return why a planned setting has no value."""
        for failure in self.failures:
            about = failure.get("cell") if isinstance(failure.get("cell"), dict) else failure
            if setting_of(about) == setting:
                return f"failed: {failure.get('what') or failure.get('reason') or failure.get('error') or 'see the failures'}"
        encoder = next((e for e in self.encoders if e.get("name") == setting.encoder), {})
        if setting.protocol == "zero_shot" and (encoder.get("has_text") is False or is_baseline(setting.encoder)):
            return "not applicable: the encoder reads no text"
        return "not run"


def setting_of(record: dict[str, Any]) -> Setting:
    """Return the setting that a cell, an aggregate row, a failure or a plan entry belongs to."""
    protocol = str(record.get("protocol"))
    free = protocol in ("zero_shot", "few_shot")
    return Setting(
        task=str(record.get("task")),
        protocol=protocol,
        fraction=1.0 if free else float(record.get("fraction") or 1.0),
        shots=int(record.get("shots") or 0) if protocol == "few_shot" else 0,
        encoder=str(record.get("encoder")),
    )


def _cells(root: Path) -> Iterator[Cell]:
    for path in sorted(root.glob("cells/*/result.json")):
        info, result = read_json(path.parent / "cell.json"), read_json(path)
        if isinstance(info, dict) and isinstance(result, dict):
            yield Cell(path.parent.name, path.parent, public(info), public(result))


def _score(row: dict[str, Any]) -> Score:
    n = number(row.get("n"))
    return Score(
        metric=str(row.get("metric")),
        label=str(row.get("label")),
        value=number(row.get("value")),
        low=number(row.get("low")),
        high=number(row.get("high")),
        n=None if n is None else int(n),
    )


def _span(scores: list[Score]) -> Score:
    """Return the mean of the cells' values, with an interval from the lowest lower to the highest upper bound."""
    values = [s.value for s in scores if s.value is not None]
    lows, highs = [s.low for s in scores if s.low is not None], [s.high for s in scores if s.high is not None]
    return Score(
        metric=scores[0].metric,
        label=scores[0].label,
        value=sum(values) / len(values) if values else None,
        low=min(lows) if lows else None,
        high=max(highs) if highs else None,
        n=scores[0].n,
    )
