"""Tables that users make: columns found by common names.

Guarantee: a cell that fits no meaning raises `ValueError`, a blank one says nothing. No message quotes a cell that may
name a patient.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from medvlp.errors import UserError
from medvlp.sources._csv import EXCEL_SEPARATOR, Row, read_csv, read_text
from medvlp.sources._report import join_sections
from medvlp.sources._values import sex

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
NAMES = frozenset(
    (
        *(
            "patientname",
            "patientsname",
            "patientfullname",
            "fullname",
            "lastname",
            "surname",
            "familyname",
            "firstname",
        ),
        *("givenname", "patientlastname", "patientfirstname", "nachname", "vorname", "nombre", "apellido", "apellidos"),
        *("physician", "referringphysician", "radiologist", "referringphysicianname", "requestingphysician"),
    )
)
"""Meaning -> names of columns, in small letters without anything but letters and digits."""
SECTIONS = ("indication", "comparison", "technique", "findings", "impression")
_SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validate", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_SPANISH_SEXES = {"h": "M", "v": "M", "hombre": "M", "var\u00f3n": "M", "varon": "M", "m": "F", "mujer": "F"}
_GERMAN_SEXES = {"w": "F", "weiblich": "F", "m\u00e4nnlich": "M"}
_EXCEL_TEXT = re.compile(r'\A="(.*)"\Z', re.DOTALL)
NOTHING = frozenset({"", "nan", "na", "n/a", "none", "null"})


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


def name_columns(table: Table) -> tuple[str, ...]:
    """Return the columns that hold names of people; they are removed from reports."""
    return tuple(column for column in table.columns if plain_name(column) in NAMES)


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


def sex_reader(cells: Iterable[str]) -> Callable[[str], str | None]:
    """Return how to read a column of sexes: M and F, or None.

    In Spanish M is mujer, a woman; it is taken for that where the column also holds hombre or var\u00f3n (H, V). In
    German W stands for weiblich, a woman.
    """
    spanish = any(cell.strip().lower() in _SPANISH_SEXES.keys() - {"m"} for cell in cells)
    words = _SPANISH_SEXES if spanish else _GERMAN_SEXES
    return lambda cell: words.get(cell.strip().lower()) or sex(cell)


def view_of(cell: str) -> str | None:
    """Return PA, AP or LATERAL; None for anything else."""
    word = cell.strip().upper()
    return word if word in ("PA", "AP") else "LATERAL" if word in ("LATERAL", "LAT", "LL", "RL") else None
