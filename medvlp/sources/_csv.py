"""CSV and tab-separated files of data sets, plain or gzipped.

Guarantee: columns are found by name, header and cells are stripped of blanks, and every row knows its line in the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.errors import UserError, nearest

LARGEST_CELL = 10_000_000
"""Characters of one cell; a report is far shorter."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a CSV: its line number and the wanted cells, stripped."""

    line: int
    cells: Mapping[str, str]


def read_text(path: Path) -> str:
    """Return a UTF-8 text file, gzipped or not, without its byte order mark.

    Raises:
        UserError: It cannot be read.
    """
    try:
        if path.suffix == ".gz":
            return gzip.decompress(path.read_bytes()).decode("utf-8-sig")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"The file cannot be read: {error}", path, "Download it again.") from None


def read_csv(
    path: Path,
    columns: tuple[str, ...],
    optional: tuple[str, ...] = (),
    *,
    delimiter: str = ",",
    may_be_empty: bool = False,
) -> list[Row]:
    """Return the rows of a CSV as the named columns, in file order.

    Header cells that hold a comma (`Bbox [x,y,w,h]`), quoted or not, count as several columns, as in the rows. Quoted
    cells may hold line breaks; `Row.line` is then the last line of the row.

    Args:
        path: The file; `.gz` is unpacked.
        columns: Columns that must be there.
        optional: Columns that may be missing; their cells are then empty.
        delimiter: Between the cells.
        may_be_empty: Allow a table without rows.

    Raises:
        UserError: The file is empty or a column is missing.
    """
    rows = list(iterate_csv(path, columns, optional, delimiter=delimiter))
    if not rows and not may_be_empty:
        raise UserError(f"{path.name} has no rows.", path, "Download it again.")
    return rows


def iterate_csv(
    path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = (), *, delimiter: str = ","
) -> Iterator[Row]:
    """Yield what `read_csv` returns, a row at a time: for tables of thousands of columns. They may be empty.

    Raises:
        UserError: The file is empty or a column is missing.
    """
    reader = _reader(path, delimiter)
    header = _header(reader)
    for column in columns:
        if column not in header:
            present = [name for name in header if name]
            what = f"{path.name} has no column '{column}'." if present else f"{path.name} is empty."
            fix = f"The columns are: {', '.join(present)}." if present else "Download it again."
            raise UserError(what + nearest(column, present), path, fix)
    places = {column: header.index(column) for column in (*columns, *optional) if column in header}
    absent = dict.fromkeys(set(optional) - set(places), "")
    for cells in reader:
        if any(cell.strip() for cell in cells):
            values = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
            yield Row(reader.line_num, absent | values)


def csv_columns(path: Path, delimiter: str = ",") -> list[str]:
    """Return the column names of a CSV, as `read_csv` takes them.

    Raises:
        UserError: The file cannot be read.
    """
    return _header(_reader(path, delimiter))


def _reader(path: Path, delimiter: str) -> Any:
    csv.field_size_limit(LARGEST_CELL)
    return csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, delimiter=delimiter)


def _header(reader: Iterator[list[str]]) -> list[str]:
    return [part.strip() for cell in next(reader, []) for part in cell.split(",")]
