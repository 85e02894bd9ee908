"""The raw layouts of SIIM-ACR Pneumothorax; see `data_cards/siim_acr.md`."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from medvlp.sources.phantom.examples import Example, ExampleImage
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, ImageRef, Mask, Study

if TYPE_CHECKING:
    from jaxtyping import Bool

SIDE = 1024


class SiimLayout(Layout):
    """Frontal images scaled to 1024² with one row per pneumothorax, or PNG files with one mask file each."""

    editions = {"edition": ("dicom", "png")}  # noqa: RUF012

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their ids."""
        studies = []
        rows: dict[str, list[list[object]]] = {"train": [], "test": []}
        for example in examples:
            front = next(image for image in example.images if image.view != "LATERAL")
            masks = [mask for name, mask in front.masks if name == "pneumothorax"]
            split = "test" if example.split == "test" else "train"
            make = self._png if self.options["edition"] == "png" else self._dicom
            study, own = make(example.number, split, front, masks)
            studies.append(study)
            rows[split] += own
        if self.options["edition"] == "png":
            for split, own in rows.items():
                self.put_csv(f"stage_1_{split}_images.csv", ["new_filename", "ImageId", "has_pneumo"], own)
        else:
            lines = [f"{name}, {pixels}\n" for name, pixels in rows["train"] + rows["test"]]
            self.put_text("train-rle.csv", "".join(["ImageId, EncodedPixels\n", *lines]))
        return sorted(studies, key=lambda study: study.study_id)

    def _dicom(
        self, number: int, split: str, image: ExampleImage, masks: list[Bool[np.ndarray, "h w"]]
    ) -> tuple[Study, list[list[object]]]:
        study_uid, series_uid, image_id = (uid_of("siim", number, level) for level in ("study", "series", "image"))
        path = f"dicom-images-{split}/{study_uid}/{series_uid}/{image_id}.dcm"
        self.put_bytes(path, radiograph_file(_scaled(image.pixels), image_id, ViewPosition=image.view))
        large = [_scaled(mask.astype(np.uint8)).astype(bool) for mask in masks]
        rows: list[list[object]] = [[image_id, _gaps(mask)] for mask in large] or [[image_id, "-1"]]
        runs = _row_runs(np.any(large, axis=0)) if large else ()
        own = (Mask(image_id, "pneumothorax", size=(SIDE, SIDE), runs=runs),) if large else ()
        return self._study(image_id, path, split, own), rows

    def _png(
        self, number: int, split: str, image: ExampleImage, masks: list[Bool[np.ndarray, "h w"]]
    ) -> tuple[Study, list[list[object]]]:
        name = f"{number}_{split}_{int(bool(masks))}_"
        drawn = np.any([np.zeros(image.pixels.shape, bool), *masks], axis=0)
        self.put_image(f"png_images/{name}.png", image.pixels)
        self.put_image(f"png_masks/{name}.png", drawn.astype(np.uint8) * 255)
        own = (Mask(name, "pneumothorax", path=f"png_masks/{name}.png"),) if masks else ()
        row = [f"{name}.png", uid_of("siim", number, "image"), int(bool(masks))]
        return self._study(name, f"png_images/{name}.png", split, own), [row]

    def _study(self, name: str, path: str, split: str, masks: tuple[Mask, ...]) -> Study:
        labels = {"Pneumothorax": PRESENT if masks else ABSENT}
        return Study(name, UNKNOWN_PATIENT, (ImageRef(name, path, "CR"),), labels=labels, masks=masks, split=split)


def _scaled(pixels: np.ndarray) -> np.ndarray:
    import cv2

    return np.asarray(cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST))


def _runs(flat: list[bool]) -> list[tuple[int, int]]:
    """Return (start, length) of every run of True."""
    runs, place = [], 0
    for inside, group in groupby(flat):
        length = len(list(group))
        if inside:
            runs.append((place, length))
        place += length
    return runs


def _gaps(mask: np.ndarray) -> str:
    """Return gap, length, ... down the columns, each gap from the end of the run before."""
    words, end = [], 0
    for start, length in _runs(mask.T.ravel().tolist()):
        words += [str(start - end), str(length)]
        end = start + length
    return " ".join(words)


def _row_runs(mask: np.ndarray) -> tuple[int, ...]:
    return tuple(value for run in _runs(mask.ravel().tolist()) for value in run)
