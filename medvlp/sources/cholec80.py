"""Cholec80: gall bladder operations, one study per second, with phase and instruments.

Guarantee: phases are read by name, never by an index; frames are those that the tool table labels, every 25th from 0. A
video whose phase table has gaps, or whose extracted frames are of another rate, is left out whole: its labels would be
shifted in time. Studies come in the order of video and frame.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvlp.errors import UserError, nearest
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._values import label_value
from medvlp.sources.base import Source
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, ImageRef, Study

FPS = 25
PHASES, TOOLS = "phase_annotations", "tool_annotations"
_FRAME = re.compile(r"(?:video\d+_)?0*(\d+)\.(?:png|jpg)")


@dataclass(frozen=True, slots=True)
class _Video:
    """A video file, or the frames that were extracted from one: number from 1 -> path."""

    path: str
    frames: Mapping[int, str]


class Cholec80(Source):
    """The unpacked data set; see `data_cards/cholec80.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per second of every video.

        Raises:
            UserError: There is no video or no phase table, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        self._phase_names, self._tool_names = self.card.adapter["phases"], self.card.adapter["tools"]
        videos = self._videos()
        tables = {path.name.removesuffix("-phase.txt"): path for path in self._tables(PHASES, "-phase.txt")}
        if not videos or not tables:
            what = f"There is no {PHASES}/video01-phase.txt." if videos else f"There is nothing in {self._folder}/."
            raise UserError(what, self.root, "Unpack the data set so that the root has the folders of the card.")
        for name in sorted(set(videos) - set(tables)):
            self.problem(videos[name].path, "a video without phases", f"Put its table into {PHASES}.", name)
        rows = 0
        for name, path in sorted(tables.items()):
            tools = self._tools(name)
            rows += len(tools)
            if name not in videos:
                where = path.relative_to(self.root).as_posix()
                self.problem(where, f"phases without a video in {self._folder}", "Download the video.", name)
                continue
            yield from self._video(name, videos[name], path, tools)
        self.check_counts({"videos": len(tables), "labelled frames": rows}, "videos")

    @property
    def _folder(self) -> str:
        return str(self.options["edition"])

    def _tables(self, folder: str, end: str) -> list[Path]:
        return [path for path in sorted((self.root / folder).glob(f"video*{end}")) if not path.name.startswith(".")]

    def _videos(self) -> dict[str, _Video]:
        found = {}
        for path in sorted((self.root / self._folder).glob("video*")):
            relative = path.relative_to(self.root).as_posix()
            if self._folder == "videos" and path.suffix == ".mp4":
                found[path.stem] = _Video(relative, {})
            elif self._folder == "frames" and path.is_dir():
                numbers = {int(m[1]): child.name for child in path.iterdir() if (m := _FRAME.fullmatch(child.name))}
                found[path.name] = _Video(relative, {number: f"{relative}/{name}" for number, name in numbers.items()})
        return found

    def _video(self, name: str, video: _Video, table: Path, tools: Mapping[int, Row]) -> Iterator[Study]:
        where = table.relative_to(self.root).as_posix()
        rows = read_csv(table, ("Frame", "Phase"), delimiter="\t")
        number = re.fullmatch(r"video(\d+)", name)
        split = self._split(int(number[1])) if number else None
        gap = next((row.line for place, row in enumerate(rows) if row.cells["Frame"] != str(place)), None)
        mistake = None
        if split is None:
            mistake = f"{name} is none of the 80 videos", "Move it out of the data set."
        elif gap is not None:
            mistake = f"line {gap} breaks the count of frames from 0", "Download the table again."
        elif self._folder == "frames":
            mistake = self._other_rate(video, len(rows))
        if mistake:
            self.problem(where, *mistake, name)
            return
        self.counts["rows of instruments beyond the phases, not used"] += sum(frame >= len(rows) for frame in tools)
        for row in rows[::FPS]:
            labels = self._labels(name, where, row, tools.get(int(row.cells["Frame"])))
            image = self._image(name, video, int(row.cells["Frame"]))
            if labels is not None and image is not None:
                yield Study(image.image_id, name, (image,), labels=labels, split=split)

    def _other_rate(self, video: _Video, frames: int) -> tuple[str, str] | None:
        """Return what is wrong where the number of pictures does not fit the rate that the options say."""
        rate = int(self.options["frames_per_second"])
        expected = frames if rate == FPS else -(-frames // FPS)
        if abs(len(video.frames) - expected) <= 1:
            return None
        reason = f"{len(video.frames)} pictures where {rate} a second make {expected}: labels would be shifted in time"
        return reason, "Set options.frames_per_second to the rate of extraction, or extract the frames again."

    def _image(self, name: str, video: _Video, frame: int) -> ImageRef | None:
        image_id = f"{name}_{frame:06d}"
        if self._folder == "videos":
            return ImageRef(image_id, video.path, self.card.modality, frame=frame)
        number = (frame if int(self.options["frames_per_second"]) == FPS else frame // FPS) + 1
        if number not in video.frames:
            self.problem(f"{video.path}: picture {number}", "the picture is missing", "Extract it again.", image_id)
            return None
        return ImageRef(image_id, video.frames[number], self.card.modality)

    def _labels(self, name: str, where: str, row: Row, tools: Row | None) -> dict[str, float] | None:
        phase = row.cells["Phase"]
        if phase not in self._phase_names:
            reason = f"unknown phase '{phase}'.{nearest(phase, list(self._phase_names))}"
            fix = "Phases are told by their names, as the data card lists them."
            self.problem(f"{where}:{row.line}", reason, fix, f"{name}_{int(row.cells['Frame']):06d}")
            return None
        seen = dict.fromkeys(self._tool_names, NOT_MENTIONED)
        if tools is None:
            self.counts["frames without instruments in the table, not mentioned"] += 1
        else:
            seen = {tool: label_value(tools.cells[tool]) for tool in self._tool_names}
        return {other: PRESENT if other == phase else ABSENT for other in self._phase_names} | seen

    def _tools(self, name: str) -> dict[int, Row]:
        """Return frame -> row of the tool table; rows that cannot be read are recorded."""
        path = self.root / TOOLS / f"{name}-tool.txt"
        where = f"{TOOLS}/{path.name}"
        if not path.is_file():
            self.problem(where, "the table of instruments is missing", "Download it again.", name)
            return {}
        found: dict[int, Row] = {}
        table = read_csv(path, ("Frame", *self._tool_names), delimiter="\t")
        said: dict[int, set[tuple[str, ...]]] = defaultdict(set)
        for row in table:
            if row.cells["Frame"].isdecimal():
                said[int(row.cells["Frame"])].add(tuple(row.cells[tool] for tool in self._tool_names))
        twice = {frame for frame, rows in said.items() if len(rows) > 1}
        for row in table:
            cells = [row.cells[tool] for tool in self._tool_names]
            frame = row.cells["Frame"]
            if frame.isdecimal() and int(frame) in twice:
                mistake = f"frame {frame} has several rows that differ; none is used"
            elif not frame.isdecimal() or int(frame) % FPS or int(frame) in found:
                mistake = f"frame '{frame}' is no further multiple of {FPS}"
            elif not set(cells) <= {"0", "1"}:
                mistake = f"instruments are 0 or 1, found {', '.join(sorted(set(cells) - {'0', '1'}))}"
            else:
                found[int(frame)] = row
                continue
            fix = "Correct the row; the instruments of its frame are not mentioned."
            self.problem(f"{where}:{row.line}", mistake, fix, name)
        return found

    def _split(self, number: int) -> str | None:
        spans = self.card.adapter["splits"][self.options["split"]]
        return next((split for split, (first, last) in spans.items() if first <= number <= last), None)
