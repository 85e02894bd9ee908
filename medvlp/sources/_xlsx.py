"""Excel workbooks of data sets.

Guarantee: as for CSV, columns are found by name, and every row knows its number in the sheet. No formula is computed
and no link is followed.
"""

from __future__ import annotations

import warnings
from datetime import date, datetime
from pathlib import Path
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._csv import Row, column_places


def read_xlsx(path: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> list[Row]:
    """Return the rows of the first sheet as the named columns, in the order of the sheet; cells are stripped text.

    Whole numbers come without a decimal point, dates as YYYY-MM-DD, empty cells as "".

    Args:
        path: A .xlsx file.
        columns: Columns that must be there.
        optional: Columns that may be missing; their cells are then empty.

    Raises:
        UserError: The file cannot be read, has no rows, or a column is missing.
    """
    rows = _cells(path)
    header = [_text(cell) for cell in rows[0]] if rows else []
    places = column_places(path, header, columns, optional)
    absent = dict.fromkeys(set(optional) - set(places), "")
    found = []
    for line, cells in enumerate(rows[1:], start=2):
        values = {name: _text(cells[place]) if place < len(cells) else "" for name, place in places.items()}
        if any(cell is not None for cell in cells):
            found.append(Row(line, absent | values))
    if not found:
        raise UserError(f"{path.name} has no rows.", path, "Download it again.")
    return found


def _cells(path: Path) -> list[tuple[Any, ...]]:
    import openpyxl

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about styles and extensions, which are not read
            book = openpyxl.load_workbook(path, read_only=True, data_only=True, keep_links=False)
        try:
            return list(book.worksheets[0].iter_rows(values_only=True)) if book.worksheets else []
        finally:
            book.close()
    except Exception as error:  # whatever a parser throws at a broken file
        raise UserError(f"The workbook cannot be read: {error}", path, "Download it again.") from None


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    if isinstance(cell, datetime | date):
        return cell.strftime("%Y-%m-%d")
    return str(cell).strip()
