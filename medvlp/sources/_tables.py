"""Tables that users make: columns found by common names, labels found by their values.

Guarantee: what was taken for what can be reported; a cell that fits no meaning raises `ValueError`, a blank one says
nothing. No message quotes a cell that may name a patient.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.errors import UserError, nearest
from medvlp.sources._csv import EXCEL_SEPARATOR, Row, read_csv, read_text
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
MANY_CLASSES, RARE = 20, 3
"""More classes than this with fewer pictures each on average are taken for names of something else."""
FEW_VALUES = 6
"""A column with at most so many different cells looks like one of labels."""
_YAML_TRUTH = {True: ("yes", "y", "true", "on"), False: ("no", "n", "false", "off")}
_EXCEL_TEXT = re.compile(r'\A="(.*)"\Z', re.DOTALL)
_NOTHING = frozenset({"", "nan", "na", "n/a", "none", "null"})


@dataclass(frozen=True)
class Table:
    """A table: what a store's record calls it, its file name, its columns in order, and its rows."""

    name: str
    file: str
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


def open_table(path: Path, encoding: object = None, role: str = "table") -> Table:
    """Read a table separated by comma, semicolon or tab: whichever parts its first line into most cells.

    A cell `="007"`, by which Excel is kept from reading a number, is 007.

    Args:
        path: The file.
        encoding: As the user names it; None is UTF-8.
        role: What a store's record calls the table; its file name may name a person.

    Raises:
        UserError: It cannot be read, has no rows, or two columns have one name.
    """
    encoding = "utf-8" if encoding is None else str(encoding)
    try:
        text = read_text(path, encoding)
    except UserError as error:
        if "is not encoded as" not in error.what:
            raise
        fix = "Save the table as UTF-8 (in Excel: CSV UTF-8), or set options.encoding, e.g. to windows-1252."
        raise UserError(error.what, path, fix) from None
    first = EXCEL_SEPARATOR.sub("", text, count=1).split("\n", 1)[0]
    headers = {mark: next(csv.reader([first], delimiter=mark, skipinitialspace=True), []) for mark in ",;\t"}
    delimiter = max(headers, key=lambda mark: len(headers[mark]))
    columns = tuple(name for cell in headers[delimiter] if (name := cell.strip()))
    twice = sorted({name for name in columns if columns.count(name) > 1 or "," in name})
    if twice:
        fix = "Give every column a name of its own, without a comma."
        raise UserError(f"A column name occurs twice or holds a comma: {'; '.join(twice)}.", path, fix)
    rows = read_csv(path, columns, delimiter=delimiter, encoding=encoding)
    kept = [Row(row.line, {name: _EXCEL_TEXT.sub(r"\1", cell) for name, cell in row.cells.items()}) for row in rows]
    return Table(role, path.name, columns, kept)


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
        return Labels(names, names, values=values)
    free = [name for name in table.columns if name not in used]
    numeric = tuple(name for name in free if _is_label([row.cells[name] for row in table.rows], values))
    classes = table.column(COLUMNS["classes"])
    if classes in (None, *used, *numeric):
        return Labels(numeric, numeric, values=values)
    named = Counter(name for row in table.rows for name in _classes(row.cells[str(classes)]))
    fix = "Rename the column, or set options.label_columns to the columns that are labels."
    check_classes(named, f"The cells of the column {classes}", path, fix)
    return Labels((*numeric, *sorted(set(named) - set(numeric))), numeric, classes, values)


def check_classes(named: Mapping[str, int], what: str, where: Path, fix: str) -> None:
    """Refuse names of classes that look like names or numbers of people: a store keeps them.

    Args:
        named: Class -> how many pictures it has.
        what: What holds them.
        where: File or folder.
        fix: What else the user can do.

    Raises:
        UserError: A name holds four digits or a ^, or there are many classes with hardly a picture each.
    """
    numbered = sum(bool(re.search(r"\d\D?\d\D?\d\D?\d|\^", name)) for name in named)
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
    return label_value("" if cell.lower() in _NOTHING else cell) if known is None else known


def _is_label(cells: list[str], words: Mapping[str, float]) -> bool:
    """Tell whether a column holds labels: some cells say something, and all of them 1, 0 or -1."""
    said = {cell for cell in cells if cell.lower() not in _NOTHING}
    try:
        return bool(said) and all(_value(cell, words) is not None for cell in said)
    except ValueError:
        return False


def almost_labels(table: Table, column: str) -> str:
    """Return why a column that looks like one of labels is none, empty for other columns; no cell is quoted."""
    cells = [row.cells[column] for row in table.rows]
    said = [cell for cell in cells if cell.lower() not in _NOTHING]
    other = sum(not _is_label([cell], {}) for cell in said)
    if not other or len({cell.lower() for cell in said}) > FEW_VALUES:
        return ""
    return (
        f"{other} of its {len(cells)} cells are none of 1, 0, -1 and blank; options.label_values can say what they mean"
    )


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
        for column in rest if labels is not None else []:
            if reason := almost_labels(table, column):
                self.facts[f"{table.name}: {column} is no label"] = reason
