"""M3D-Cap: cases with several series, as folders of pictures or as prepared arrays, and one text per case.

Guarantee: slices are ordered by their numbers and have one size; the text is cut as the authors cut it; a case is in
one split. Studies come by collection and case.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from medvlp.errors import UserError
from medvlp.sources._csv import read_text
from medvlp.sources._files import read_json
from medvlp.sources._slices import numbered_slices, of_common_size
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Study, VolumeFacts

RAW, PREPARED, LIST, TEXT = "M3D_Cap", "M3D_Cap_npy", "M3D_Cap.json", "text.txt"
COLLECTIONS = ("ct_case", "ct_quizze")
SPLITS = {"train": "train", "validation": "val", "test": "test"}
MARKS = ("study_findings:", "discussion:")
LEAST_CHARACTERS = 5
GREY_SCALE = 255.0
_PLANE = re.compile(r"axial|coronal|sagittal", re.IGNORECASE)
_WINDOW = re.compile(r"(?:\A|[^a-z])(bone|lung|brain|liver|soft[_ ]tissue|mediastinal|subdural|stroke)(?![a-z])", re.I)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One series of the prepared list."""

    split: str
    image: str
    text: str


class M3dCap(Source):
    """The data set below a root folder; see `data_cards/m3d_cap.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per case, by collection and case.

        Raises:
            UserError: The folder or list of the edition is missing, or the list has another form.
        """
        self.problems, self.counts = [], Counter()
        yield from self._raw() if self.options["edition"] == "raw" else self._prepared()

    def _base(self, name: str) -> Path:
        """Return the folder of the edition: the root, or `name` below it."""
        below = self.root / name
        if below.is_dir():
            return below
        if any((self.root / collection).is_dir() for collection in COLLECTIONS):
            return self.root
        other = {RAW: PREPARED, PREPARED: RAW}[name]
        hint = " The other edition is there: give options.edition." if (self.root / other).is_dir() else ""
        raise UserError(f"There is no folder {name}.{hint}", self.root, f"Give the folder that holds {name}/.")

    def _raw(self) -> Iterator[Study]:
        base = self._base(RAW)
        cases = [case for name in COLLECTIONS for case in sorted((base / name).glob("[!.]*")) if case.is_dir()]
        if not cases:
            raise UserError(f"There is no case in {' or '.join(COLLECTIONS)}.", base, "Unpack the data set.")
        series_of = {case: sorted(path for path in case.glob("[!.]*") if path.is_dir()) for case in cases}
        self._count(sum(map(len, series_of.values())), len(cases))
        for case, series in series_of.items():
            name = f"{case.parent.name}_{case.name}"
            images = [image for folder in series if (image := self._slices(folder, name)) is not None]
            yield from self._case(name, case / TEXT, images, None)

    def _slices(self, folder: Path, case: str) -> ImageRef | None:
        """Return a series of pictures; its files are named where some of the folder are left out."""
        where = self._relative(folder)
        try:
            slices, left_out = numbered_slices(folder)
        except ValueError as error:
            self.problem(where, str(error), "Remove the series, or restore it.", case)
            return None
        kept, odd = of_common_size(slices)
        reasons = [(path, "the name of the slice is no number") for path in left_out]
        reasons += [(path, "the slice is no picture, or of another size than most of its series") for path in odd]
        for path, reason in reasons:
            self.problem(self._relative(path), reason, "Nothing to do: the series is kept without it.", case)
        if not kept:
            return None
        files = tuple(self._relative(path) for path in kept) if reasons else ()
        return ImageRef(f"{case}/{folder.name}", where, "CT", files=files, facts=VolumeFacts(Intensity.STORED))

    def _prepared(self) -> Iterator[Study]:
        base = self._base(PREPARED)
        cases: dict[str, list[_Entry]] = {}
        entries = self._entries(base / LIST)
        self._count(len(entries), len({entry.text for entry in entries}))
        for entry in entries:
            collection, case = PurePosixPath(entry.image).parts[-3:-1]
            cases.setdefault(f"{collection}_{case}", []).append(entry)
        for name, own in sorted(cases.items()):
            splits = sorted({entry.split for entry in own})
            if len(splits) > 1:
                reason = f"the case {name} has series in {' and '.join(splits)}: its text would be in both"
                self.problem(own[0].text, reason, f"Name the case in one split of {LIST}.", name)
                continue
            images = self._arrays(name, own, base)
            yield from self._case(name, self._inside(own[0].text, base), images, SPLITS[splits[0]])

    def _entries(self, path: Path) -> list[_Entry]:
        content = read_json(path)
        known = isinstance(content, dict) and set(content) <= set(SPLITS) and all(map(_is_list, content.values()))
        if not known:
            fix = f"Download {LIST} again."
            raise UserError(f"{LIST} is no object with the lists {', '.join(SPLITS)}.", path, fix)
        found = []
        for split in SPLITS:
            for place, entry in enumerate(content.get(split, [])):
                image, text = (entry.get("image"), entry.get("text")) if isinstance(entry, dict) else (None, None)
                if not (isinstance(image, str) and isinstance(text, str) and _is_safe(image) and _is_safe(text)):
                    reason = "the entry does not name an image and a text below the root"
                    self.problem(f"{path.name}:{split}[{place}]", reason, "Correct the entry.")
                    continue
                if PurePosixPath(image).parts[-3:-1] != PurePosixPath(text).parts[-3:-1]:
                    reason = "the text of the entry is that of another case than its image"
                    self.problem(f"{path.name}:{split}[{place}]", reason, "Correct the entry.")
                    continue
                found.append(_Entry(split, image, text))
        return found

    def _arrays(self, case: str, entries: Sequence[_Entry], base: Path) -> list[ImageRef]:
        images: dict[str, ImageRef] = {}
        for entry in entries:
            path, series = self._inside(entry.image, base), PurePosixPath(entry.image).stem
            if series in images or not path.is_file():
                reason = "the entry occurs twice" if series in images else "the file of the entry is missing"
                self.problem(entry.image, reason, f"Correct {LIST}, or make the array again.", case)
                continue
            facts = VolumeFacts(Intensity.STORED, slope=GREY_SCALE, intercept=0.0)
            images[series] = ImageRef(f"{case}/{series}", self._relative(path), "CT", facts=facts)
        return [images[series] for series in sorted(images)]

    def _inside(self, path: str, base: Path) -> Path:
        """Return a path of the list: relative to the folder that holds the edition's folder, or to that itself."""
        inner = PurePosixPath(path)
        return base / (inner.relative_to(PREPARED) if inner.parts[0] == PREPARED else inner)

    def _case(self, name: str, text: Path, images: list[ImageRef], split: str | None) -> Iterator[Study]:
        """Yield the study of a case, unless it lacks text or images."""
        try:
            report, part = caption(read_text(text))
        except UserError:
            self.problem(
                self._relative(text), "the text is missing or cannot be read", "Restore the text of the case.", name
            )
            return
        if len(report.replace(" ", "")) < LEAST_CHARACTERS:
            self.problem(self._relative(text), "the text is empty", "Restore the text of the case.", name)
            return
        if not images:
            self.problem(self._relative(text.parent), "the case has no usable series", "Restore its series.", name)
            return
        if part != MARKS[0] and self.options["edition"] == "raw":  # prepared texts bear no heading
            self.counts[
                f"texts that are {'a discussion' if part else 'neither findings nor discussion, kept whole'}"
            ] += 1
        series = [image.image_id.split("/", 1)[1] for image in images]
        yield Study(
            study_id=name,
            patient_id=UNKNOWN_PATIENT,
            images=tuple(images),
            report=report,
            attributes={
                "series": " | ".join(series),
                "planes": " | ".join(_found(_PLANE, own) for own in series),
                "windows": " | ".join(_found(_WINDOW, own) for own in series),
            },
            language=self.card.language,
            split=split,
        )

    def _count(self, images: int, texts: int) -> None:
        self.check_counts({"images": images, "texts": texts}, "images")

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def caption(text: str) -> tuple[str, str | None]:
    """Return the text of a case on one line, and the heading that it stood under (None: all of the text).

    It is what follows `study_findings:`, the last part of a file, else what follows `discussion:`, else all.
    """
    for mark in MARKS:
        _, found, rest = text.partition(mark)
        line = " ".join(rest.partition(MARKS[0])[0].split())
        empty = line.startswith(MARKS) or len(line.replace(" ", "")) < LEAST_CHARACTERS
        if found and not empty:
            return line, mark
    return " ".join(text.split()), None


def _found(pattern: re.Pattern[str], name: str) -> str:
    match = pattern.search(name)
    return match[match.lastindex or 0].lower().replace("_", " ") if match else "unknown"


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _is_safe(path: str) -> bool:
    """Return whether a path of the list has a collection, a case and a name, and stays below the root."""
    parts = PurePosixPath(path).parts
    return len(parts) >= 3 and not PurePosixPath(path).is_absolute() and ".." not in parts
