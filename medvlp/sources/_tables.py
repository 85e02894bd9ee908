"""Tables that users make: columns found by common names, labels found by their values.

Guarantee: what was taken for what can be reported; a cell that fits no meaning raises `ValueError`, a blank one says
nothing. No message quotes a cell that may name a patient.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from medvlp.errors import UserError, nearest
from medvlp.sources._csv import Row, read_csv, read_text
from medvlp.sources._report import join_sections
from medvlp.sources._values import label_value
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT

COLUMNS = {
    "path": ("path", "imagepath", "filepath", "image", "filename", "file", "img", "imagename", "imagefile"),
    "study": ("studyid", "study", "studyinstanceuid", "studyuid", "examid", "examinationid"),
    "patient": ("patientid", "patient", "subjectid", "subject", "pid", "mrn"),
    "split": ("split", "set", "partition"),
    "report": ("report", "reporttext", "text", "caption"),
    "classes": ("label", "labels", "class", "category"),
    "age": ("age", "patientage"),
    "sex": ("sex", "gender", "patientsex"),
    "view": ("view", "viewposition"),
}
"""Meaning -> names of columns, in small letters without anything but letters and digits."""
SECTIONS = ("indication", "comparison", "technique", "findings", "impression")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_NOTHING = frozenset({"", "nan", "na", "n/a", "none", "null"})


@dataclass(frozen=True)
class Table:
    """A table with its name, its columns in order, and its rows."""

    name: str
    columns: tuple[str, ...]
    rows: list[Row]

    def column(self, names: Iterable[str]) -> str | None:
        """Return the first column that has one of these plain names."""
        plain = {plain_name(column): column for column in reversed(self.columns)}
        return next((plain[name] for name in names if name in plain), None)


def plain_name(column: str) -> str:
    """Return small letters and digits of a name: `Study_Instance UID` is `studyinstanceuid`."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def user_file(root: Path, given: object, option: str) -> Path:
    """Return a file that a user names, relative to the working folder or to the root.

    Raises:
        UserError: It is in neither place.
    """
    for path in (Path(str(given)), root / str(given)):
        if path.is_file():
            return path
    raise UserError(f"options.{option} names no file.", str(given), "Check the path.")


def open_table(path: Path) -> Table:
    """Read a table separated by comma, semicolon or tab: whichever its first line has most of.

    Raises:
        UserError: It cannot be read, has no rows, or two columns have one name.
    """
    first = read_text(path).split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    header = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True), [])
    columns = tuple(name for cell in header if (name := cell.strip()))
    twice = sorted({name for name in columns if columns.count(name) > 1 or "," in name})
    if twice:
        fix = "Give every column a name of its own, without a comma."
        raise UserError(f"A column name occurs twice or holds a comma: {'; '.join(twice)}.", path, fix)
    return Table(path.name, columns, read_csv(path, columns, delimiter=delimiter))


@dataclass(frozen=True)
class Labels:
    """How labels are read from a row: `names` in their order."""

    names: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    """Columns that hold 1, 0, -1 or nothing."""
    classes: str | None = None
    """Column that holds the names of what is present, joined by |."""

    def read(self, row: Row) -> dict[str, float]:
        """Return the labels of a row.

        Raises:
            ValueError: A cell is none of 1, 0, -1 and blank; the message names the column.
        """
        found = {name: _label(name, row.cells[name]) for name in self.columns}
        if self.classes is not None:
            present = _classes(row.cells[self.classes])
            rest = ABSENT if present else NOT_MENTIONED
            found |= {name: PRESENT if name in present else rest for name in self.names if name not in found}
        return found


def find_labels(table: Table, used: Collection[str], declared: object, path: Path) -> Labels:
    """Find out which columns are labels.

    Args:
        table: The table.
        used: Columns that have another meaning.
        declared: Names that the user gives; None takes every column whose cells are 1, 0, -1 or blank, and a column
            `label` or `class` of names.
        path: For messages.

    Raises:
        UserError: A declared column is missing.
    """
    if declared is not None:
        names = tuple(str(name) for name in (declared if isinstance(declared, list | tuple) else [declared]))
        for name in names:
            if name not in table.columns:
                hint = nearest(name, list(table.columns))
                fix = f"The columns are: {', '.join(table.columns)}."
                raise UserError(f"options.label_columns names '{name}', which is no column.{hint}", path, fix)
        return Labels(names, names)
    free = [name for name in table.columns if name not in used]
    numeric = tuple(name for name in free if _is_label([row.cells[name] for row in table.rows]))
    classes = table.column(COLUMNS["classes"])
    if classes in (None, *used, *numeric):
        return Labels(numeric, numeric)
    found = sorted({name for row in table.rows for name in _classes(row.cells[str(classes)])} - set(numeric))
    return Labels((*numeric, *found), numeric, classes)


def _classes(cell: str) -> set[str]:
    return {part.strip() for part in cell.split("|")} - {""}


def _label(name: str, cell: str) -> float:
    try:
        return label_value("" if cell.lower() in _NOTHING else cell)
    except ValueError:
        raise ValueError(f"{name} is none of 1, 0, -1 and blank") from None


def _is_label(cells: list[str]) -> bool:
    """Tell whether a column holds labels: some cells say something, and all of them 1, 0 or -1."""
    said = {cell for cell in cells if cell.lower() not in _NOTHING}
    try:
        return bool(said) and all(label_value(cell) is not None for cell in said)
    except ValueError:
        return False


def split_of(cell: str) -> str | None:
    """Return train, val or test; None for a blank cell.

    Raises:
        ValueError: It is another word.
    """
    if not cell.strip():
        return None
    found = _SPLITS.get(cell.strip().lower())
    if found is None:
        raise ValueError(f"the split is none of {', '.join(_SPLITS)}")
    return found


def report_reader(table: Table) -> tuple[tuple[str, ...], Callable[[Row], str | None]] | None:
    """Return the columns of the report and how to read it: one text, else its sections; None where there is none."""
    whole = table.column(COLUMNS["report"])
    if whole is not None:
        return (whole,), lambda row: row.cells[whole] or None
    sections = [(name.upper(), column) for name in SECTIONS if (column := table.column([name])) is not None]
    if not {"FINDINGS", "IMPRESSION"} & {heading for heading, _ in sections}:
        return None
    columns = tuple(column for _, column in sections)
    return columns, lambda row: join_sections((heading, row.cells[column]) for heading, column in sections)


def view_of(cell: str) -> str | None:
    """Return PA, AP or LATERAL; None for anything else."""
    word = cell.strip().upper()
    return word if word in ("PA", "AP") else "LATERAL" if word in ("LATERAL", "LAT", "LL", "RL") else None


@dataclass
class Chosen:
    """What was taken for what, for the store's record."""

    facts: dict[str, str] = field(default_factory=dict)

    def note(self, table: Table, meanings: Mapping[str, str | None], labels: Labels | None = None) -> None:
        """Record the meaning of the columns of a table, and which are not used."""
        taken = {column for column in meanings.values() if column}
        for meaning, column in meanings.items():
            if column:
                self.facts[f"{table.name}: {meaning}"] = column
        if labels is not None:
            self.facts[f"{table.name}: labels"] = ", ".join(labels.names) or "none"
            taken |= {*labels.columns, *([labels.classes] if labels.classes else [])}
        rest = [column for column in table.columns if column not in taken]
        if rest:
            self.facts[f"{table.name}: not used"] = ", ".join(rest)
