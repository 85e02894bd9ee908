"""`medvlp bench compare`: two encoders of a folder of results, pair by pair of their cells.

Guarantee: only cells that were summed up together are compared, on the same samples; settings that one of the two lacks
are named. Corrected p values count the comparisons of this table; where the suite's own correction, over all pairs, is
on record it stands beside: it is the one to quote for a pair that was picked from a leaderboard.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.cells import Finished, as_json
from medvlp.bench.comparisons import Rules, by_setting, compare_two
from medvlp.bench.report_data import read_json
from medvlp.bench.report_scores import LOWER_IS_BETTER, setting_of
from medvlp.bench.results import finished_cells
from medvlp.bench.scored import MACRO
from medvlp.bench.stats import values_of
from medvlp.errors import UserError, nearest
from medvlp.metrics.intervals import RULE
from medvlp.store.files import write_atomic

if TYPE_CHECKING:
    from medvlp.config.suite import Correction

FORMATS = (".csv", ".json")
_COLUMNS = (
    *("task", "protocol", "fraction", "shots", "metric", "label", "a", "b", "value_a", "value_b", "difference"),
    *(
        "low",
        "high",
        "p",
        "p_adjusted",
        "correction",
        "comparisons",
        "p_suite",
        "better",
        "test",
        "n",
        "draws",
        "seeds",
    ),
)


@dataclass(frozen=True)
class Compared:
    """Rows of a comparison, and the settings that only one of the two encoders has."""

    rows: list[dict[str, Any]]
    alpha: float
    alone: list[str]


def compare_encoders(
    results: Path,
    a: str,
    b: str,
    *,
    metric: str | None = None,
    tasks: Sequence[str] = (),
    protocols: Sequence[str] = (),
    all_labels: bool = False,
    correction: Correction | None = None,
) -> Compared:
    """Compare two encoders in all settings that both have.

    Args:
        results: Folder of results.
        a: Name of the first encoder in tables.
        b: Name of the second.
        metric: Metric to compare; by default the leading one of each task.
        tasks: Only these tasks; empty takes all.
        protocols: Only these protocols; empty takes all.
        all_labels: Compare each label, too, and not only the mean over labels.
        correction: Of the p values; by default that of the suite.

    Raises:
        UserError: There are no results, a name is unknown, the two are one, they have no setting in common, or the
            intervals of their cells follow another rule.
    """
    cells = _current(Path(results))
    for what, given, known in (
        ("encoder", [a, b], [cell.record["encoder"] for cell in cells]),
        ("task", tasks, [cell.record["task"] for cell in cells]),
        ("protocol", protocols, [cell.record["protocol"] for cell in cells]),
        ("metric", [metric] if metric else [], [name for cell in cells for name, _ in values_of(cell)]),
    ):
        _check_names(what, given, known, results)
    if a == b:
        raise UserError(f"'{a}' is compared with itself.", results, "Name another encoder with --b.")
    chosen = [
        cell
        for cell in cells
        if cell.record["encoder"] in (a, b)
        and (not tasks or cell.record["task"] in tasks)
        and (not protocols or cell.record["protocol"] in protocols)
    ]
    _check_rule(chosen)
    rules = _rules(Path(results), correction)
    rows = compare_two(chosen, a, b, rules, metric)
    if not rows:
        raise UserError(
            f"'{a}' and '{b}' have no setting in common{f' with {metric}' if metric else ''}.",
            results,
            "Run the suite for both, without filters that leave one of them out; `medvlp bench report` shows what is "
            "missing.",
        )
    on_record = _of_suite(Path(results))
    for row in rows:
        row["p_suite"] = on_record.get(_key(row))
        row["better"] = _better(row, rules.alpha)
    kept = [row for row in rows if all_labels or row["label"] == MACRO]
    return Compared(kept, rules.alpha, _alone(chosen, a, b))


def write_comparison(found: Compared, out: Path) -> None:
    """Write the rows as CSV or JSON, by the suffix of the file.

    Raises:
        UserError: The suffix is another, or the file cannot be written.
    """
    check_format(out)
    if out.suffix == ".json":
        text = as_json(found.rows)
    else:
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, _COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"seeds": " / ".join(map(str, row["seeds"]))} for row in json.loads(as_json(found.rows)))
        text = buffer.getvalue()
    try:
        write_atomic(out, text.encode(), out.parent)
    except OSError as error:
        raise UserError(
            f"The table cannot be written: {error.strerror}.", out, "Name a file in a folder that you may write to."
        ) from error


def check_format(out: Path) -> None:
    """Raise `UserError` unless the suffix of a file is one that a comparison can be written as."""
    if out.suffix not in FORMATS:
        raise UserError(f"A comparison is not written as '{out.suffix}'.", out, f"Use {' or '.join(FORMATS)}.")


def _current(results: Path) -> list[Finished]:
    """Return the cells that `aggregate.json` names, all cells where a run was interrupted before it."""
    cells = finished_cells(results)
    rows = read_json(results / "aggregate.json")
    if not isinstance(rows, list):
        return cells
    named = {name for row in rows for name in row.get("cells", ())}
    return [cell for cell in cells if cell.folder.name in named]


def _check_names(what: str, given: Sequence[str], known: Sequence[str], results: Path) -> None:
    names = list(dict.fromkeys(known))
    for name in given:
        if name not in names:
            raise UserError(
                f"The results hold no {what} '{name}'.{nearest(name, names)}",
                results,
                f"There are: {', '.join(sorted(names)) or 'none'}.",
            )


def _check_rule(cells: Sequence[Finished]) -> None:
    for cell in cells:
        rule = cell.result["config"]["settings"]["bootstrap"].get("rule")
        if rule != RULE:
            raise UserError(
                f"The intervals of a cell follow another rule ({rule}) than those of this medvlp ({RULE}).",
                cell.folder,
                "Run the suite again with this version of medvlp; its cells get new hashes.",
            )


def _rules(results: Path, correction: Correction | None) -> Rules:
    suite = (read_json(results / "suite.json") or {}).get("suite") or {}
    plain = Rules()
    return Rules(
        suite.get("alpha", plain.alpha),
        suite.get("permutations", plain.permutations),
        suite.get("bootstrap_seed", plain.seed),
        correction or suite.get("correction", plain.correction),
    )


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    where = (row["task"], row["protocol"], row["fraction"], row["shots"], row["metric"], row["label"])
    return (*where, frozenset((row["a"], row["b"])))


def _of_suite(results: Path) -> dict[tuple[Any, ...], float | None]:
    rows = read_json(results / "comparisons.json")
    return {_key(row): row.get("p_adjusted") for row in rows if row.get("rule")} if isinstance(rows, list) else {}


def _better(row: dict[str, Any], alpha: float) -> str | None:
    """Return the encoder that was shown to be better, by the suite's correction where it is on record."""
    p = row["p_adjusted"] if row["p_suite"] is None else row["p_suite"]
    if not p < alpha or not row["difference"]:
        return None
    a_is_higher = row["difference"] > 0
    return str(row["a"] if a_is_higher != (row["metric"] in LOWER_IS_BETTER) else row["b"])


def _alone(cells: Sequence[Finished], a: str, b: str) -> list[str]:
    """Return in words the settings that one of the two has alone."""
    found = []
    for (task, protocol, _, _), encoders in by_setting(cells).items():
        for name, other in ((a, b), (b, a)):
            if name in encoders and other not in encoders:
                amount = setting_of(encoders[name][0].record).amount
                found.append(f"{task}, {protocol}, {amount}: {name} alone")
    return found
