"""EchoNet-Dynamic: echocardiographic loops with ejection fraction, volumes, and outlines of the left ventricle.

Guarantee: names match with and without `.avi`; an outline is the polygon of the chords without the long axis, which is
the first row of its frame; which frame is diastole follows from the area, not from the order of rows. Loops come in
the order of their names.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from medvlp.sources._checks import name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Mask, Study

TABLE, TRACINGS = "FileList.csv", "VolumeTracings.csv"
COLUMNS = ("FileName", "EF", "ESV", "EDV", "FrameHeight", "FrameWidth", "NumberOfFrames", "Split")
LINE = ("X1", "Y1", "X2", "Y2")
SPLITS = ("train", "val", "test")

Points = tuple[tuple[float, float], ...]


class EchonetDynamic(Source):
    """The unpacked data set; see `data_cards/echonet_dynamic.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per loop.

        Raises:
            UserError: A table, a column or every loop is missing, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        table = read_csv(table_path(self, TABLE), COLUMNS)
        rows = unique_rows(self, table, lambda row: _name(row.cells["FileName"]), TABLE, "loop")
        videos = index_files(self, ["Videos/*"], {".avi"})
        require_files(self, videos, "Videos/")
        splits = Counter(row.cells["Split"].lower() for row in rows.values())
        self.check_counts({"videos": len(rows), **{f"{split} videos": splits[split] for split in SPLITS}}, "videos")
        tracings = self._tracings()
        for name in sorted(set(tracings) - {_name(row.cells["FileName"]) for row in table}):
            self.problem(TRACINGS, f"outlines of a loop that {TABLE} does not list", "Add its row.", name)
        for name, row in sorted(rows.items()):
            study = self._study(name, row, videos.get(name), tracings.get(name, {}))
            if study is not None:
                yield study
        name_unlisted(self, videos, (_name(row.cells["FileName"]) for row in table), TABLE)

    def _tracings(self) -> dict[str, dict[str, list[Row]]]:
        """Return loop -> frame as written -> rows in the order of the file."""
        path = self.root / TRACINGS
        if not path.is_file():
            self.counts[f"no {TRACINGS}"] = 1
            return {}
        found: dict[str, dict[str, list[Row]]] = {}
        for row in read_csv(path, ("FileName", *LINE, "Frame")):
            found.setdefault(_name(row.cells["FileName"]), {}).setdefault(row.cells["Frame"], []).append(row)
        return found

    def _study(self, name: str, row: Row, path: str | None, tracings: dict[str, list[Row]]) -> Study | None:
        cells, where = row.cells, f"{TABLE}:{row.line}"
        split = cells["Split"].lower()
        values = {key: number(cells[key]) for key in ("EF", "ESV", "EDV")}
        mistake = None
        if path is None:
            mistake = f"row without loop: there is no Videos/{name}.avi", "Download it again."
        elif split not in SPLITS:
            mistake = f"unknown split '{cells['Split']}'", f"Write one of {', '.join(SPLITS).upper()}."
        elif values["EF"] < 0 or values["EF"] > 100 or min(values["ESV"], values["EDV"]) < 0:
            mistake = f"impossible values: EF {cells['EF']}, ESV {cells['ESV']}, EDV {cells['EDV']}", "Correct the row."
        if mistake or path is None:
            self.problem(where, *(mistake or ("", "")), name)
            return None
        self._count_values(values)
        masks = self._masks(name, cells, tracings)
        return Study(
            study_id=name,
            patient_id=name,
            images=(ImageRef(name, path, self.card.modality),),
            masks=masks,
            values=values | self._phases(masks),
            split=split,
        )

    def _count_values(self, values: dict[str, float]) -> None:
        if any(math.isnan(value) for value in values.values()):
            self.counts["loops that lack EF, ESV or EDV"] += 1
        elif values["EDV"] > 0 and abs(values["EF"] - 100 * (1 - values["ESV"] / values["EDV"])) > 1:
            self.counts["loops whose EF is not that of their volumes, by more than 1 %"] += 1

    def _masks(self, name: str, cells: Mapping[str, str], tracings: dict[str, list[Row]]) -> tuple[Mask, ...]:
        if not tracings:
            self.counts["loops without outlines"] += 1
        masks = []
        for written, rows in tracings.items():
            frame, frames = number(written), number(cells["NumberOfFrames"])
            points = _outline(rows)
            mistake = ""
            if not (frame >= 0 and frame == int(frame)):
                mistake = f"an outline of frame '{written}', which is no number"
            elif frame >= frames:
                mistake = f"an outline of frame {written}, and the loop has {cells['NumberOfFrames']}"
            elif points is None:
                mistake = f"the outline of frame {written} has fewer than three chords, chords that do not follow"
                mistake += " each other along the long axis, or a value that is no number"
            if mistake or points is None:
                fix = "Correct the rows; the loop is kept without this outline."
                self.problem(f"{TRACINGS}:{rows[0].line}", mistake, fix, name)
                continue
            width, height = number(cells["FrameWidth"]), number(cells["FrameHeight"])
            if any(not (0 <= x <= width and 0 <= y <= height) for x, y in points):
                self.counts["outlines that reach beyond the frame"] += 1
            masks.append(Mask(name, self.card.structures[0], points=points, frame=int(frame)))
        return tuple(sorted(masks, key=lambda mask: mask.frame or 0))

    def _phases(self, masks: Sequence[Mask]) -> dict[str, float]:
        """Return the frames of diastole and systole: of two outlines the larger and the smaller one."""
        if len(masks) != 2:
            if masks:
                self.counts["loops with another number of outlines than two"] += 1
            return {}
        systole, diastole = sorted(masks, key=lambda mask: polygon_area(mask.points))
        return {"frame_ED": float(diastole.frame or 0), "frame_ES": float(systole.frame or 0)}


def _name(cell: str) -> str:
    return cell.removesuffix(".avi")


def _outline(rows: Sequence[Row]) -> Points | None:
    """Return the polygon along one end of the chords and back along the other; the first row is the long axis.

    None where a value is no number, or the chords do not follow each other along that axis (rows in another order, or
    twice): the polygon would cross itself.
    """
    axis, *lines = [[number(row.cells[column]) for column in LINE] for row in rows]
    if len(lines) < 3 or not all(math.isfinite(value) for line in (axis, *lines) for value in line):
        return None
    x, y = axis[2] - axis[0], axis[3] - axis[1]
    places = [x * (line[0] + line[2]) + y * (line[1] + line[3]) for line in lines]
    if len({math.copysign(1, b - a) if a != b else 0 for a, b in pairwise(places)}) != 1 or places[0] == places[1]:
        return None
    return tuple((x, y) for x, y, _, _ in lines) + tuple((x, y) for _, _, x, y in reversed(lines))


def polygon_area(points: Points) -> float:
    """Return the area of a polygon in the square of its unit."""
    return abs(sum(a[0] * b[1] - a[1] * b[0] for a, b in pairwise((*points, points[0])))) / 2
