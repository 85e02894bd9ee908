"""Tiles of histology with captions: Quilt-1M's look-up table, or a simple table of image and caption.

Guarantee: tiles of one video (or of one patient of the user's own table) share `patient_id`, and no such group is in
two splits; captions of one image are joined, never multiplied into several studies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart, name_unlisted
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import PICTURES, index_files, require_files
from medvlp.sources._tables import split_of
from medvlp.sources.base import Source
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study

TABLES = {"quilt": "quilt_1M_lookup.csv", "csv": "tiles.csv"}
COLUMNS = {"quilt": ("image_path", "caption"), "csv": ("image", "caption")}
OPTIONAL = {
    "quilt": ("subset", "split", "pathology", "med_umls_ids", "magnification", "not_histology"),
    "csv": ("patient", "split", "magnification"),
}
ATTRIBUTES = {
    "subset": "subset",
    "pathology": "pathology",
    "magnification": "magnification",
    "med_umls_ids": "concepts",
}
SUFFIXES = (*PICTURES, ".tif", ".tiff")


class PathologyTiles(Source):
    """The tiles below a root folder; see `data_cards/pathology_tiles.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of their paths.

        Raises:
            UserError: The table, a column or all images are missing, a group is in two splits, or a full edition has
                other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        edition = str(self.options["edition"])
        self._table = TABLES[edition]
        path = self.root / self._table
        if not path.is_file():
            raise UserError(f"{self._table} is missing.", self.root, "Check root and options.edition.")
        name_column, _ = COLUMNS[edition]
        rows = read_csv(path, COLUMNS[edition], OPTIONAL[edition])
        if edition == "quilt":
            self.check_counts({"quilt rows": len(rows)}, "quilt rows")
        images = index_files(self, ["**/*"], SUFFIXES, by="path")
        require_files(self, images, "any folder below the root")
        ends = _by_ending(images) if edition == "quilt" else {path: [path] for path in images}
        grouped: dict[str, list[Row]] = {}
        for row in rows:
            name = row.cells[name_column].replace("\\", "/").removeprefix("./")
            if PurePosixPath(name).name:
                grouped.setdefault(name, []).append(row)
            else:
                self.problem(
                    f"{self._table}:{row.line}", "the row names no image", "Name its image, or remove the row."
                )
        studies = []
        for name, own in grouped.items():
            study = self._study(name, own, ends.get(name, []))
            studies += [study] if study is not None else []
        used = {study.images[0].path for study in studies}
        listed = {place for name in grouped for place in ends.get(name, [])}
        name_unlisted(self, images, listed | used, self._table)
        check_patients_apart(self, studies, "Correct the column split, or leave it out with options.split=none.")
        yield from sorted(studies, key=lambda study: study.study_id)

    def _study(self, name: str, rows: list[Row], places: list[str]) -> Study | None:
        where, study_id = f"{self._table}:{rows[0].line}", str(PurePosixPath(name).with_suffix(""))
        if self.options["histology"] == "only" and rows[0].cells.get("not_histology") in ("1", "1.0", "True"):
            self.counts["images left out, they are no histology"] += 1
            return None
        groups = {self._group(name, row) for row in rows}
        by_table = self.options["split"] == "table"
        splits = {row.cells["split"] if by_table else "" for row in rows}
        captions = self._captions(rows, study_id)
        mistake = ""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            mistake = "the path leaves the root"
        elif not places:
            mistake = f"row without image: {name}"
        elif len(places) > 1:
            mistake = f"{len(places)} images have this name: {', '.join(sorted(places)[:3])}"
        elif len(groups) > 1 or len(splits) > 1:
            mistake = "the rows of the image have different patients or splits"
        split = None
        if not mistake:
            try:
                split = split_of(min(splits))
            except ValueError as error:
                self.counts["images with an unknown split"] += 1
                mistake = str(error) if self.options["edition"] == "csv" else ""
        if mistake or not captions:
            if mistake:
                self.problem(where, mistake, "Correct the table, or add the image.", study_id)
            return None
        cells = rows[0].cells
        return Study(
            study_id=study_id,
            patient_id=min(groups),
            images=(ImageRef(study_id, places[0], self.card.modality),),
            report="\n".join(captions),
            attributes={key: cells[column] for column, key in ATTRIBUTES.items() if cells.get(column)},
            language=self.card.language,
            split=split,
        )

    def _captions(self, rows: list[Row], study_id: str) -> list[str]:
        """Return the captions of one image, each once."""
        captions: dict[str, None] = {}
        for row in rows:
            text = row.cells["caption"]
            if text and text not in captions:
                captions[text] = None
                continue
            reason = "the same caption occurs twice" if text else "the caption is empty"
            self.problem(f"{self._table}:{row.line}", reason, "Nothing to do: the row is left out.", study_id)
        return list(captions)

    def _group(self, name: str, row: Row) -> str:
        """Return whom a tile is of: the video in its name, or the table's patient."""
        if self.options["edition"] == "csv":
            return row.cells["patient"] or UNKNOWN_PATIENT
        video, mark, _ = PurePosixPath(name).name.partition("_image_")
        return video if mark and video else UNKNOWN_PATIENT


def _by_ending(images: Mapping[str, str]) -> dict[str, list[str]]:
    """Return every path's endings -> paths: the table may leave out the folders that an archive was unpacked into."""
    ends: dict[str, list[str]] = {}
    for path in images:
        parts = path.split("/")
        for start in range(len(parts)):
            ends.setdefault("/".join(parts[start:]), []).append(path)
    return ends
