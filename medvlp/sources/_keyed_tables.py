"""A table of a user tied to the files of a data set by an id that both have.

Guarantee: an id must be equal, letter by letter; a row that could mean several examinations, or that names another
patient than the file, is used for none. No message quotes an id.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._csv import Row
from medvlp.sources._heap_item import Item
from medvlp.sources._tables import COLUMNS, Table, open_table, plain_name, user_file
from medvlp.sources.base import Source

KEYS = {
    "file": (*COLUMNS["path"], "dicom", "dicompath", "dicomfile"),
    "SOP instance": ("sopinstanceuid", "sopuid", "imageuid", "instanceuid", "imageid"),
    "series": ("seriesinstanceuid", "seriesuid", "seriesid", "series"),
    "study": COLUMNS["study"],
    "accession": ("accessionnumber", "accession", "accessionno", "accessionid"),
    "patient": COLUMNS["patient"],
}
"""Kind of id, from fine to coarse -> plain names of columns that hold it."""
FINE = ("file", "SOP instance", "series")
_FIX = (
    "Correct the id, or name a finer one (accession, study, file) in a column of its own; nothing is made of the row."
)


@dataclass
class Keyed:
    """A table with the column that ties it to files, and the rows of each item (by its number)."""

    table: Table
    path: Path
    column: str
    kind: str
    rows: dict[int, list[Row]] = field(default_factory=dict)
    compares_patients: bool = False
    """Whether the table names patients as the headers do, so that each row is compared with them."""

    @property
    def id_columns(self) -> set[str]:
        """Columns that hold an id of any kind."""
        return {name for name in self.table.columns if _kinds(name)} | {self.column}

    def row(self, source: Source, name: str, numbers: Sequence[int]) -> Row | None:
        """Return the row of an examination; its rows must say the same, but for the ids that tie them to files.

        Args:
            source: Records what is wrong.
            name: The examination.
            numbers: Its items.
        """
        rows = list({row.line: row for number in numbers for row in self.rows.get(number, [])}.values())
        if not rows:
            reason = f"no row of the {self.table.name} belongs to this examination"
            source.problem(self.table.file, reason, "Add one; it is kept without.", name)
            return None
        said = {tuple(cell for key, cell in row.cells.items() if key not in self.id_columns) for row in rows}
        if len(said) > 1:
            lines = ", ".join(str(row.line) for row in rows)
            where = f"{self.table.file}:{rows[0].line}"
            source.problem(where, f"lines {lines} contradict each other; none is used", "Keep one of them.", name)
            return None
        for row in rows[1:]:
            if row.cells == rows[0].cells:
                reason = f"the row repeats line {rows[0].line}; the first is used"
                source.problem(f"{self.table.file}:{row.line}", reason, "Remove it.", name)
        return rows[0]


def tie(source: Source, option: str, items: Sequence[Item]) -> Keyed | None:
    """Open the table of an option and tie its rows to items; None where the option is not given.

    A column whose name says what it holds comes before one whose values merely fit. Of several columns the one with the
    finest id is taken that ties at least half as many rows as the best.

    Raises:
        UserError: The table cannot be used, or none of its rows belongs to a file.
    """
    if source.options[option] is None:
        return None
    path = user_file(source.root, source.options[option], option)
    table = open_table(path, source.options["encoding"], f"table of {option}")
    indexes = {kind: _index(kind, items) for kind in KEYS}
    candidates = [column for column in table.columns if _kinds(column)]
    for by_name in (True, False):
        tied = {
            (kind, column): sum(row.cells[column] in indexes[kind] for row in table.rows)
            for kind in KEYS
            for column in candidates
            if (kind in _kinds(column)) == by_name
        }
        best = max(tied.values(), default=0)
        for (kind, column), count in tied.items():
            if best and count >= best / 2:
                return _tied(source, Keyed(table, path, column, kind), indexes[kind], items)
    columns = " or ".join(candidates)
    tried = f"no cell of {columns} is an id that the files have" if candidates else "no column is named like an id"
    lost = max(_without_zeros(table, column, indexes) for column in candidates) if candidates else 0
    zeros = f" {lost} rows would belong to files if their leading zeros were back." if lost else ""
    raise UserError(
        f"No row of the {table.name} belongs to any file: {tried}.{zeros}",
        path,
        "Name a column like the DICOM attribute, e.g. AccessionNumber, or filename, and save ids as text: Excel drops "
        f"leading zeros and shortens long numbers. The columns are: {', '.join(table.columns)}.",
    )


def _without_zeros(table: Table, column: str, indexes: dict[str, dict[str, set[int]]]) -> int:
    """Count rows whose cell is an id of that column's kinds but for leading zeros."""
    bare = {value.lstrip("0") for kind in _kinds(column) for value in indexes[kind] if value.isdigit()}
    return sum(row.cells[column].lstrip("0") in bare for row in table.rows if row.cells[column].isdigit())


def _kinds(column: str) -> list[str]:
    return [kind for kind, names in KEYS.items() if plain_name(column) in (*names, "id")]


def _index(kind: str, items: Sequence[Item]) -> dict[str, set[int]]:
    index: dict[str, set[int]] = {}
    for number, item in enumerate(items):
        for value in item.keys[kind]:
            index.setdefault(value, set()).add(number)
    index.pop("", None)
    return index


def _tied(source: Source, keyed: Keyed, index: dict[str, set[int]], items: Sequence[Item]) -> Keyed:
    patients = {item.patient for item in items}
    column = keyed.table.column(KEYS["patient"])
    keyed.compares_patients = column is not None and any(row.cells[column] in patients for row in keyed.table.rows)
    doubtful = _doubtful({row.cells[keyed.column] for row in keyed.table.rows}, index)
    for row in keyed.table.rows:
        cell = row.cells[keyed.column]
        found = index.get(cell, set())
        mistake = ""
        if cell in doubtful:
            mistake = "the id of the row could be several once its leading zeros are lost"
        elif not found:
            mistake = "the row belongs to no usable file"
        elif len({items[number].study for number in found}) > 1:
            mistake = f"the {keyed.kind} of the row has several examinations, and it does not say which"
        elif keyed.compares_patients and {items[number].patient for number in found} != {row.cells[str(column)]}:
            mistake = f"{column} of the row is another patient than the header of the file"
        if mistake:
            source.problem(f"{keyed.table.file}:{row.line}", mistake, _FIX)
            continue
        for number in found:
            keyed.rows.setdefault(number, []).append(row)
    return keyed


def _doubtful(cells: set[str], index: dict[str, set[int]]) -> set[str]:
    """Return numbers that belong to one file as they stand, and to another one with leading zeros.

    Only where no cell has a leading zero although files have: the table has then lost them.
    """
    zeroed = {value.lstrip("0") for value in index if value.isdigit() and value.startswith("0")}
    if not zeroed or any(cell.isdigit() and cell.startswith("0") for cell in cells):
        return set()
    return cells & zeroed & set(index)
