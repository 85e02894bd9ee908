"""SIIM-ACR Pneumothorax: DICOM files with run lengths, or the PNG edition with mask files.

Guarantee: all rows of an image make one mask, and an image is negative only where a row says -1, however it is spelt;
an image whose rows contradict each other or cannot be decoded is left out whole, because half a mask is a wrong one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from medvlp.errors import UserError
from medvlp.sources._checks import name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import index_files, require_files, table_path
from medvlp.sources._runs import decode_gaps, runs_of
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, ImageRef, Mask, Study

RLE_TABLES = ("stage_2_train.csv", "train-rle.csv")
"""The second stage labels the images of both folders, the first those of the training folder alone."""
FOLDERS = {"train": "dicom-images-train", "test": "dicom-images-test"}
PNG_TABLES = {"train": "stage_1_train_images.csv", "test": "stage_1_test_images.csv"}
LABEL, STRUCTURE, NONE = "Pneumothorax", "pneumothorax", "-1"


class SiimAcr(Source):
    """The data set below a root folder; see `data_cards/siim_acr.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of their ids.

        Raises:
            UserError: A table, a column or the images are missing, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        yield from self._png() if self.options["edition"] == "png" else self._dicom()

    def _dicom(self) -> Iterator[Study]:
        table = table_path(self, *RLE_TABLES)
        self.counts[f"tables left out for {table.name}"] = sum((self.root / name).is_file() for name in RLE_TABLES) - 1
        rows = read_csv(table, ("ImageId", "EncodedPixels"))
        by_name: dict[str, list[Row]] = {}
        for row in rows:
            by_name.setdefault(row.cells["ImageId"], []).append(row)
        images = {split: index_files(self, [f"{folder}/**/*"], (".dcm",)) for split, folder in FOLDERS.items()}
        require_files(self, images["train"], f"{FOLDERS['train']}/")
        self._count_rows(rows, by_name)
        splits = {name: split for split, own in images.items() for name in own}
        for name, own in sorted(by_name.items()):
            where = f"{table.name}:{own[0].line}"
            if name not in splits:
                reason = f"row without image: {name}.dcm is in no image folder"
                self.problem(where, reason, "Download the image, or remove its rows.", name)
                continue
            try:
                mask = self._mask(name, own, table.name)
            except ValueError as error:
                fix = f"Download {table.name} again; the image is left out whole."
                self.problem(where, f"the mask cannot be read: {error}", fix, name)
                continue
            split = splits[name]
            yield self._study(name, images[split][name], split, mask)
        name_unlisted(self, images["train"], by_name, table.name)
        self.counts["images of the test folder without a row"] = len(set(images["test"]) - set(by_name))

    def _mask(self, name: str, rows: list[Row], table: str) -> Mask | None:
        """Return the union of all rows; None where the one row says -1."""
        cells: dict[str, None] = {}
        for row in rows:
            if row.cells["EncodedPixels"] in cells:
                self.problem(f"{table}:{row.line}", "the same row occurs twice", "Keep the row once.", name)
            cells[row.cells["EncodedPixels"]] = None
        if NONE in cells:
            if len(cells) > 1:
                raise ValueError("one row says -1 (no pneumothorax), another has run lengths")
            return None
        height, width = self.card.adapter["mask_size"]
        union = np.any([decode_gaps(text, (height, width)) for text in cells], axis=0)
        self.counts["masks"] += 1
        return Mask(name, STRUCTURE, size=(height, width), runs=runs_of(union))

    def _study(self, name: str, path: str, split: str, mask: Mask | None) -> Study:
        return Study(
            study_id=name,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(name, path, self.card.modality),),
            labels={LABEL: ABSENT if mask is None else PRESENT},
            masks=() if mask is None else (mask,),
            split=split,
        )

    def _count_rows(self, rows: list[Row], by_name: dict[str, list[Row]]) -> None:
        encoded = [row.cells["ImageId"] for row in rows if row.cells["EncodedPixels"] != NONE]
        positive = Counter(encoded)
        found = {
            "images": len(by_name),
            "rows": len(rows),
            "positive images": len(positive),
            "negative images": len(by_name) - len(positive),
            "run lengths": len(encoded),
            "images with several run lengths": sum(count > 1 for count in positive.values()),
        }
        self.check_counts(found, "images")

    def _png(self) -> Iterator[Study]:
        images = index_files(self, ["png_images/*"], (".png",), by="name")
        require_files(self, images, "png_images/")
        masks = index_files(self, ["png_masks/*"], (".png",), by="name")
        columns = ("new_filename", "has_pneumo")
        tables = {split: read_csv(table_path(self, name), columns) for split, name in PNG_TABLES.items()}
        rows = {
            split: unique_rows(self, own, lambda row: row.cells["new_filename"], PNG_TABLES[split])
            for split, own in tables.items()
        }
        both = sorted(set(rows["train"]) & set(rows["test"]))
        if both:
            what = f"{len(both)} images are in both tables (the first: {both[0]}): results would be too good."
            raise UserError(what, self.root, "Download the tables again.")
        everything = [(name, split, row) for split, own in rows.items() for name, row in own.items()]
        positive = sum(row.cells["has_pneumo"] == "1" for _, _, row in everything)
        found = {"images": len(everything), "positive images": positive, "negative images": len(everything) - positive}
        self.check_counts(found | {f"{split} images": len(own) for split, own in rows.items()}, "images")
        for name, split, row in sorted(everything, key=lambda entry: entry[0]):
            mistake = self._png_mistake(name, split, row.cells["has_pneumo"], images, masks)
            stem = name.removesuffix(".png")
            if mistake:
                self.problem(f"{PNG_TABLES[split]}:{row.line}", *mistake, stem)
                continue
            mask = Mask(stem, STRUCTURE, path=masks[name]) if row.cells["has_pneumo"] == "1" else None
            self.counts["masks"] += mask is not None
            yield self._study(stem, images[name], split, mask)
        name_unlisted(self, images, {name for name, _, _ in everything}, " or ".join(PNG_TABLES.values()))

    @staticmethod
    def _png_mistake(
        name: str, split: str, value: str, images: dict[str, str], masks: dict[str, str]
    ) -> tuple[str, str] | None:
        if value not in ("0", "1"):
            return f"has_pneumo is '{value}'; 0 or 1 is allowed", "Download the table again."
        said = re.fullmatch(r"\d+_(train|test)_([01])_\.png", name)
        if said is None or said.groups() != (split, value):
            reason = f"the file name {name} contradicts its row: {split}, has_pneumo {value}"
            return reason, "Download the table again."
        if name not in images:
            return f"row without image: {name} is not in png_images", "Download the image, or remove the row."
        if value == "1" and name not in masks:
            return f"the mask {name} is missing in png_masks", "Download the mask."
        return None
