"""Which columns of a user's table are labels, told by their values, and what every column was taken for.

Guarantee: what was taken for what can be reported, and why a column that looks like labels is none; a word means
nothing until the user says so. Names of classes that look like people are refused. No message quotes a cell.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.errors import UserError, nearest
from medvlp.sources._csv import Row
from medvlp.sources._tables import COLUMNS, NOTHING, Table, plain_name
from medvlp.sources._values import label_value
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT

MANY_CLASSES, RARE = 20, 3
"""More classes than this with fewer pictures each on average are taken for names of something else."""
_NUMBERED = re.compile(r"\d{6}|\d{1,4}[-./]\d{1,2}[-./]\d{2,4}|\^")
FEW_VALUES = 6
"""A column with at most so many different cells looks like one of labels."""
_YAML_TRUTH = {True: ("yes", "y", "true", "on"), False: ("no", "n", "false", "off")}


@dataclass(frozen=True)
class Labels:
    """How labels are read from a row: `names` in their order."""

    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Columns that hold 1, 0, -1 or nothing."""
    classes: str | None = None
    """Column that holds the names of what is present, joined by |."""
    values: Mapping[str, float] = field(default_factory=dict)
    """What other cells mean, in small letters."""

    def read(self, row: Row) -> dict[str, float]:
        """Return the labels of a row.

        Raises:
            ValueError: A cell is none of 1, 0, -1, blank and the declared words; the message names the column.
        """
        found = {name: _label(name, row.cells[name], self.values) for name in self.columns}
        if self.classes is not None:
            present = _classes(row.cells[self.classes])
            rest = ABSENT if present else NOT_MENTIONED
            found |= {name: PRESENT if name in present else rest for name in self.names if name not in found}
        return found


def label_words(given: object) -> dict[str, float]:
    """Return what words in columns of labels mean, from an option like `{yes: 1, no: 0}`; NaN for null.

    Raises:
        UserError: It is no mapping to 1, 0, -1 and null.
    """
    words: dict[str, float] = {}
    pairs: dict[Any, Any] = given if isinstance(given, dict) else {} if given is None else {"": "no mapping"}
    for word, value in pairs.items():
        try:
            meaning = label_value("" if value is None else str(float(value)))
        except (TypeError, ValueError):
            fix = "Write for example options.label_values='{positive: 1, negative: 0, unclear: -1, unread: null}'."
            raise UserError("A word can mean 1, 0, -1 or null.", "options.label_values", fix) from None
        spellings = _YAML_TRUTH[word] if isinstance(word, bool) else (str(word).strip().lower(),)
        words |= dict.fromkeys(spellings, meaning)
    return words


def find_labels(table: Table, used: Collection[str], declared: object, path: Path, words: object = None) -> Labels:
    """Find out which columns are labels.

    Args:
        table: The table.
        used: Columns that have another meaning.
        declared: Names that the user gives; None takes every column whose cells are 1, 0, -1 or blank, and a column
            `label` or `class` of names.
        path: For messages.
        words: What other cells mean, as `label_words` takes it.

    Raises:
        UserError: A declared column is missing, or a column of classes does not hold classes.
    """
    values = label_words(words)
    if declared is not None:
        names = tuple(str(name) for name in (declared if isinstance(declared, list | tuple) else [declared]))
        for name in names:
            if name not in table.columns:
                hint = nearest(name, list(table.columns))
                fix = f"The columns are: {', '.join(table.columns)}."
                raise UserError(f"options.label_columns names '{name}', which is no column.{hint}", path, fix)
        named = tuple(name for name in names if plain_name(name) in COLUMNS["classes"])
        if len(named) == 1 and not _is_label([row.cells[named[0]] for row in table.rows], values):
            return _with_classes(table, tuple(name for name in names if name != named[0]), named[0], values)
        return Labels(names, names, values=values)
    free = [name for name in table.columns if name not in used]
    numeric = tuple(name for name in free if _is_label([row.cells[name] for row in table.rows], values))
    classes = table.column(COLUMNS["classes"])
    if classes in (None, *used, *numeric):
        return Labels(numeric, numeric, values=values)
    found = _with_classes(table, numeric, str(classes), values)
    counts = Counter(name for row in table.rows for name in _classes(row.cells[str(classes)]))
    fix = f"Rename the column, or set options.label_columns: [{classes}] says that these are classes."
    check_classes(counts, f"The cells of the column {classes}", path, fix)
    return found


def _with_classes(table: Table, numeric: tuple[str, ...], classes: str, values: Mapping[str, float]) -> Labels:
    found = sorted({name for row in table.rows for name in _classes(row.cells[classes])} - set(numeric))
    return Labels((*numeric, *found), numeric, classes, values)


def check_classes(named: Mapping[str, int], what: str, where: Path, fix: str) -> None:
    """Refuse names of classes that look like names or numbers of people: a store keeps them as they are.

    Args:
        named: Class -> how many pictures it has.
        what: What holds them.
        where: File or folder.
        fix: What else the user can do.

    Raises:
        UserError: A name holds a date, a number of six digits or a ^, or there are many with hardly a picture each.
    """
    numbered = sum(bool(_NUMBERED.search(name)) for name in named)
    rare = len(named) > MANY_CLASSES and sum(named.values()) < RARE * len(named)
    if not numbered and not rare:
        return
    reason = f"{numbered} of them hold numbers" if numbered else f"{sum(named.values())} pictures have them"
    raise UserError(f"{what} do not look like classes: {len(named)} different names, and {reason}.", where, fix)


def _classes(cell: str) -> set[str]:
    return {part.strip() for part in cell.split("|")} - {""}


def _label(name: str, cell: str, words: Mapping[str, float]) -> float:
    try:
        return _value(cell, words)
    except ValueError:
        raise ValueError(f"{name} is none of 1, 0, -1 and blank") from None


def _value(cell: str, words: Mapping[str, float]) -> float:
    known = words.get(cell.strip().lower())
    return label_value("" if cell.lower() in NOTHING else cell) if known is None else known


def _is_label(cells: list[str], words: Mapping[str, float]) -> bool:
    """Tell whether a column holds labels: some cells say something, and all of them 1, 0 or -1."""
    said = {cell for cell in cells if cell.lower() not in NOTHING}
    try:
        return bool(said) and all(_value(cell, words) is not None for cell in said)
    except ValueError:
        return False


def almost_labels(table: Table, column: str) -> str:
    """Return why a column that looks like one of labels is none, empty for other columns; no cell is quoted."""
    cells = [row.cells[column] for row in table.rows]
    said = [cell for cell in cells if cell.lower() not in NOTHING]
    other = sum(not _is_label([cell], {}) for cell in said)
    if not other or len({cell.lower() for cell in said}) > FEW_VALUES:
        return ""
    return (
        f"{other} of its {len(cells)} cells are none of 1, 0, -1 and blank; options.label_values can say what they mean"
    )


@dataclass
class Chosen:
    """What was taken for what, for the store's record."""

    facts: dict[str, str] = field(default_factory=dict)

    def note(self, table: Table, meanings: Mapping[str, str | None], labels: Labels | None = None) -> None:
        """Record the meaning of the columns of a table, and which are not used."""
        taken = {part for column in meanings.values() if column for part in (column, *column.split(", "))}
        for meaning, column in meanings.items():
            if column:
                self.facts[f"{table.name}: {meaning}"] = column
        if labels is not None:
            self.facts[f"{table.name}: labels"] = ", ".join(labels.names) or "none"
            taken |= {*labels.columns, *([labels.classes] if labels.classes else [])}
        rest = [column for column in table.columns if column not in taken]
        if rest:
            self.facts[f"{table.name}: not used"] = ", ".join(rest)
        for column in rest if labels is not None else []:
            if reason := almost_labels(table, column):
                self.facts[f"{table.name}: {column} is no label"] = reason
