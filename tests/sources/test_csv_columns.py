"""Tables whose cells may stand in another column than their header says are refused, never read."""

from __future__ import annotations

from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.sources._csv import read_csv


def table(folder: Path, text: str) -> Path:
    path = folder / "t.csv"
    path.write_text(text)
    return path


def test_a_row_with_more_cells_than_the_header_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "id,text,label\n1,a,0\n2,no mass, no fluid,1,0\n")
    with pytest.raises(UserError, match="Line 3 has 5 cells, and the header 3"):
        read_csv(path, ("id", "label"))


def test_blank_cells_beyond_the_header_mean_nothing(tmp_path: Path) -> None:
    (row,) = read_csv(table(tmp_path, "id,box [x,y]\n1,2,3,, \n"), ("id", "y]"))
    assert row.cells == {"id": "1", "y]": "3"}


@pytest.mark.parametrize("optional", [False, True])
def test_a_column_that_occurs_twice_is_refused(tmp_path: Path, optional: bool) -> None:
    path = table(tmp_path, "id,label,label\n1,0,1\n")
    with pytest.raises(UserError, match="several columns 'label'"):
        read_csv(path, ("id",) if optional else ("id", "label"), ("label",) if optional else ())
    assert len(read_csv(path, ("id",))) == 1
