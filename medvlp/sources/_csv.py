"""CSV and tab-separated files of data sets, plain or gzipped.

Guarantee: columns are found by name, header and cells are stripped of blanks, and every row knows its line in the file.
No encoding is guessed: UTF-8, or UTF-16 where the byte order mark says so, or the one that the caller names.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.errors import UserError, nearest

GZIP = b"\x1f\x8b"
EXCEL_SEPARATOR = re.compile(r"sep=[,;\t|]\r?\n")
"""First line by which Excel is told the delimiter; no row of the table."""
LARGEST_CELL = 10_000_000
"""Characters of one cell; a report is far shorter."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a CSV: its line number and the wanted cells, stripped."""

    line: int
    cells: Mapping[str, str]


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """Return a text file, gzipped or not, without its byte order mark.

    Args:
        path: The file.
        encoding: Name of the encoding; a file with the byte order mark of UTF-16 is read as that.

    Raises:
        UserError: It cannot be read, or is of another encoding.
    """
    try:
        data = path.read_bytes()
        packed = data.startswith(GZIP)
        data = gzip.decompress(data) if packed else data
        marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        utf8 = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
        text = data.decode("utf-16" if marked else utf8)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"The file cannot be read: {error}", path, "Download it again.") from None
    except LookupError:
        raise UserError(f"'{encoding}' is no known encoding.", path, "Name one like windows-1252.") from None
    except UnicodeDecodeError as error:
        what = f"The file is not encoded as {encoding}: byte {error.object[error.start]:#04x} at {error.start}."
        fix = "Download it again; a table of yours: save it as UTF-8 (in Excel: CSV UTF-8)."
        raise UserError(what, path, fix) from None
    return text if packed else text.replace("\r\n", "\n").replace("\r", "\n")


def read_csv(
    path: Path,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
    may_be_empty: bool = False,
) -> list[Row]:
    """Return the rows of a CSV as the named columns, in file order.

    Header cells that hold a comma (`Bbox [x,y,w,h]`), quoted or not, count as several columns, as in the rows. Quoted
    cells may hold line breaks; `Row.line` is then the last line of the row.

    Args:
        path: The file; gzip is unpacked.
        columns: Columns that must be there.
        optional: Columns that may be missing; their cells are then empty.
        delimiter: Between the cells.
        encoding: As for `read_text`.
        may_be_empty: Allow a table without rows.

    Raises:
        UserError: The file is empty, a column is missing or occurs twice, or a row has more cells than the header.
    """
    rows = list(iterate_csv(path, columns, optional, delimiter=delimiter, encoding=encoding))
    if not rows and not may_be_empty:
        raise UserError(f"{path.name} has no rows.", path, "Download it again.")
    return rows


def column_places(
    path: Path, header: Sequence[str], columns: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, int]:
    """Return column -> place in the header, for those that are there.

    Raises:
        UserError: One of `columns` is missing, a column occurs twice, or the header is empty.
    """
    for column in columns:
        if column not in header:
            present = [name for name in header if name]
            what = f"{path.name} has no column '{column}'." if present else f"{path.name} is empty."
            fix = f"The columns are: {', '.join(present)}." if present else "Download it again."
            raise UserError(what + nearest(column, present), path, fix)
    places = {column: header.index(column) for column in (*columns, *optional) if column in header}
    twice = [column for column in places if header.count(column) > 1]
    if twice:
        fix = "Keep the right one; nothing says which of them is meant."
        raise UserError(f"{path.name} has several columns '{twice[0]}'.", path, fix)
    return places


def iterate_csv(
    path: Path,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    delimiter: str = ",",
    encoding: str = "utf-8",
) -> Iterator[Row]:
    """Yield what `read_csv` returns, a row at a time: for tables of thousands of columns. They may be empty.

    Raises:
        UserError: The file is empty, a column is missing or occurs twice, a row has more cells than the header (a
            delimiter within a cell: those behind it would be read as other columns), or the last row is cut off, as
            half a download leaves it: its missing cells would read as blank.
    """
    text = read_text(path, encoding)
    reader = _reader(text, delimiter)
    header = _header(reader, delimiter)
    places = column_places(path, header, columns, optional)
    absent = dict.fromkeys(set(optional) - set(places), "")
    last = max((places[column] for column in columns), default=-1)
    cells: list[str] = []
    for cells in reader:
        if any(cell.strip() for cell in cells[len(header) :]):
            what = f"Line {reader.line_num} has {len(cells)} cells, and the header {len(header)}."
            fix = f"Put cells that hold a '{delimiter}' into quotation marks, or name every column."
            raise UserError(what, path, fix)
        if any(cell.strip() for cell in cells):
            values = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
            yield Row(reader.line_num, absent | values)
    if any(cells) and len(cells) <= last and not text.endswith("\n"):
        what = f"The table ends in the middle of a row: line {reader.line_num} has only {len(cells)} cells."
        raise UserError(what, path, "Download it again.")


def csv_columns(path: Path, delimiter: str = ",") -> list[str]:
    """Return the column names of a CSV, as `read_csv` takes them.

    Raises:
        UserError: The file cannot be read.
    """
    return _header(_reader(read_text(path), delimiter), delimiter)


def _reader(text: str, delimiter: str) -> Any:
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, delimiter=delimiter)
    if EXCEL_SEPARATOR.match(text):
        next(reader)
    return reader


def _header(reader: Iterator[list[str]], delimiter: str) -> list[str]:
    parts = [cell.split(",") if delimiter == "," else [cell] for cell in next(reader, [])]
    return [part.strip() for own in parts for part in own]
