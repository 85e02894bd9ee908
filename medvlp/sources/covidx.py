"""COVIDx CXR-4: three lists without a header, and images of many sources.

Guarantee: the first line of a list is data; a name means the one file that has exactly this name in the folder of its
split; patients are told apart by source, and none is in two splits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart, name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_text
from medvlp.sources._files import PICTURES, index_files, require_files
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, ImageRef, Study

SPLITS = ("train", "val", "test")
CLASSES = {"positive": PRESENT, "negative": ABSENT}
OLD_CLASSES = ("normal", "pneumonia", "COVID-19")


class Covidx(Source):
    """The data set below a root folder; see `data_cards/covidx.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per line of the lists, train, val, test, each in the order of the file names.

        Raises:
            UserError: A list or all images are missing, a list is of an older edition, patients are in two splits, or a
                full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        images = index_files(self, [f"{split}/*" for split in SPLITS], PICTURES, by="path")
        require_files(self, images, "train/, val/ and test/")
        lists = {split: self._list(split) for split in SPLITS}
        found = {f"{split} images": len(rows) for split, rows in lists.items()}
        self.check_counts({"images": sum(found.values()), **found}, "images")
        studies = [study for split, rows in lists.items() for study in self._split(split, rows, images)]
        name_unlisted(self, images, {path for rows in lists.values() for path in rows}, "the list of its folder")
        yield from self._apart(studies)

    def _list(self, split: str) -> dict[str, Row]:
        """Return folder and file name -> patient, class and source, of the lines that can be used."""
        path = self.root / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"The list {path.name} is missing.", self.root, "Put it beside the image folders.")
        rows = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            words = line.split()
            if len(words) >= 4:
                patient, *name, label, source = words
                path_cell = f"{split}/{' '.join(name)}"
                cells = {"patient": patient, "path": path_cell, "label": label, "source": source}
                rows.append(Row(number, cells))
            elif words:
                reason = f"the line has {len(words)} words; patient, file name, class and source are expected"
                self.problem(f"{path.name}:{number}", reason, "Correct the line.")
        old = sorted({row.cells["label"] for row in rows} & set(OLD_CLASSES))
        if old:
            what = f"{path.name} is of an older edition: it has the class {old[0]}."
            raise UserError(what, path, "Take the lists of COVIDx CXR-4 (positive and negative).")
        if not rows:
            raise UserError(f"{path.name} is empty: the split would be empty.", path, "Download it again.")
        return unique_rows(self, rows, lambda row: row.cells["path"], path.name)

    def _split(self, split: str, rows: Mapping[str, Row], images: Mapping[str, str]) -> Iterator[Study]:
        for path, row in sorted(rows.items()):
            label, where = row.cells["label"], f"{split}.txt:{row.line}"
            if label not in CLASSES:
                reason = f"unknown class '{label}'; {' and '.join(CLASSES)} are allowed"
                self.problem(where, reason, "Correct the line.", path)
            elif path not in images:
                self.problem(where, f"row without image: {path}", "Download the image, or remove the line.", path)
            else:
                source = row.cells["source"]
                self.counts[f"images of {source}"] += 1
                yield Study(
                    study_id=path,
                    patient_id=f"{source}/{row.cells['patient']}",
                    images=(ImageRef(path, path, self.card.modality),),
                    labels={"COVID-19": CLASSES[label]},
                    attributes={"source": source},
                    split=split,
                )

    def _apart(self, studies: list[Study]) -> list[Study]:
        """Return the studies with every patient in one split: test before val before train."""
        if self.options["shared_patients"] == "keep_test":
            order = {"test": 0, "val": 1, "train": 2}
            owner: dict[str, str] = {}
            for study in sorted(studies, key=lambda study: order[str(study.split)]):
                owner.setdefault(study.patient_id, str(study.split))
            kept = [study for study in studies if owner[study.patient_id] == study.split]
            self.counts["images left out, their patients are in a later split"] = len(studies) - len(kept)
            return kept
        fix = "Download the lists again, or set options.shared_patients=keep_test to leave them out of training."
        check_patients_apart(self, studies, fix)
        return studies
