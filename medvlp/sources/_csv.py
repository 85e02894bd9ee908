"""CSV and tab-separated files of data sets, plain or gzipped.

Guarantee: columns are found by name, header and cells are stripped of blanks, and every row knows its line in the file.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

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
    csv.field_size_limit(LARGEST_CELL)
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True, delimiter=delimiter)
    header = [part.strip() for cell in next(reader, []) for part in cell.split(",")]
    for column in columns:
        if column not in header:
            present = [name for name in header if name]
            what = f"{path.name} has no column '{column}'." if present else f"{path.name} is empty."
            fix = f"The columns are: {', '.join(present)}." if present else "Download it again."
            raise UserError(what + nearest(column, present), path, fix)
    places = {column: header.index(column) for column in (*columns, *optional) if column in header}
    absent = dict.fromkeys(set(optional) - set(places), "")
    rows = []
    for cells in reader:
        if any(cell.strip() for cell in cells):
            values = {name: cells[place].strip() if place < len(cells) else "" for name, place in places.items()}
            rows.append(Row(reader.line_num, absent | values))
    if not rows and not may_be_empty:
        raise UserError(f"{path.name} has no rows.", path, "Download it again.")
    return rows
