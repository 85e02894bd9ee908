"""TBX11K: the COCO files of the full edition, or the one table of the simplified edition.

Guarantee: boxes are in pixels of the PNG; the class of an image is that of its folder or name, and whether disease is
active or latent is never guessed where no box says so.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvlp.errors import nearest
from medvlp.sources._checks import box_mistake, name_unlisted
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import expected_json, index_files, read_json, require_files, table_path
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, NOT_MENTIONED, PRESENT, UNCERTAIN, UNKNOWN_PATIENT, Box, ImageRef, Study

COCO = {"train": "annotations/json/TBX11K_train.json", "val": "annotations/json/TBX11K_val.json"}
TABLE = "data.csv"
COLUMNS = ("fname", "image_height", "image_width", "source", "bbox", "target", "tb_type")
HEALTHY, SICK, TB = "health", "sick", "tb"
GROUPS = {"h": HEALTHY, "s": SICK, "tb": TB}
ACTIVE, LATENT, ANY, OTHER = (
    *("Active tuberculosis", "Latent tuberculosis", "Tuberculosis"),
    "Sick but not tuberculosis",
)
EDGE = 1.0
"""Pixels by which a box may leave its image: the authors' boxes are scaled to fractions."""


@dataclass(slots=True)
class _Image:
    """What the tables say of one image."""

    name: str
    path: str
    split: str
    group: str
    width: float
    height: float
    where: str
    boxes: list[Box] = field(default_factory=list)
    incomplete: bool = False
    """Whether a box was left out."""


class Tbx11k(Source):
    """The data set below a root folder; see `data_cards/tbx11k.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of the file names.

        Raises:
            UserError: A table, a column or the images are missing, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        simplified = self.options["edition"] == "simplified"
        listed = self._simplified() if simplified else self._full()
        for image in sorted(listed, key=lambda image: image.name):
            if image.boxes and image.group != TB:
                reason = f"there is a box on an image of the class {image.group or 'test'}"
                self.problem(image.where, reason, "Download the tables again.", image.name)
                continue
            self.counts["boxes"] += len(image.boxes)
            yield Study(
                study_id=image.name,
                patient_id=UNKNOWN_PATIENT,
                images=(ImageRef(image.name, image.path, self.card.modality),),
                labels=_labels(image),
                boxes=tuple(image.boxes),
                split=image.split,
            )

    def _full(self) -> list[_Image]:
        files = index_files(
            self,
            [f"imgs/{folder}/*" for folder in (HEALTHY, SICK, TB)],
            (".png",),
            by=lambda path: path[len("imgs/") :],
        )
        require_files(self, files, "imgs/health/, imgs/sick/ and imgs/tb/")
        contents = {split: read_json(self.root / path) for split, path in COCO.items() if (self.root / path).is_file()}
        if not contents:
            table_path(self, *COCO.values())
        with expected_json(self.root / "annotations/json"):
            return self._join(contents, files)

    def _join(self, contents: Mapping[str, Mapping[str, Any]], files: Mapping[str, str]) -> list[_Image]:
        listed = {
            split: {str(image["file_name"]) for image in content["images"]} for split, content in contents.items()
        }
        both = set.intersection(*listed.values()) if len(listed) == 2 else set()
        for name in sorted(both):
            self.problem(COCO["val"], f"{name} is in both COCO files", "Download the files again.", Path(name).stem)
        self._count_full(contents)
        images = [image for split, content in contents.items() for image in self._coco(split, content, files)]
        name_unlisted(self, files, set().union(*listed.values()), "a COCO file")
        images = [image for image in images if image.path.removeprefix("imgs/") not in both]
        tests = index_files(self, ["imgs/test/*"], (".png",))
        if self.options["test_images"]:
            return images + [_Image(name, path, "test", "", 0, 0, path) for name, path in tests.items()]
        self.counts["images of imgs/test left out"] = len(tests)
        return images

    def _coco(self, split: str, content: Mapping[str, Any], files: Mapping[str, str]) -> Iterator[_Image]:
        table, categories = COCO[split], {entry["id"]: entry["name"] for entry in content["categories"]}
        images: dict[int, _Image] = {}
        for entry in content["images"]:
            name = str(entry["file_name"])
            where = f"{table}:image {entry['id']}"
            if name not in files:
                reason = f"row without image: imgs/{name} is missing"
                self.problem(where, reason, "Download the image, or remove its entry.", Path(name).stem)
                continue
            group = name.split("/")[0]
            images[entry["id"]] = _Image(
                Path(name).stem, files[name], split, group, entry["width"], entry["height"], where
            )
        known = {entry["id"] for entry in content["images"]}
        for entry in content["annotations"]:
            where = f"{table}:annotation {entry['id']}"
            if entry["image_id"] not in known:
                self.problem(where, f"box of the unknown image {entry['image_id']}", "Download the file again.")
            elif entry["image_id"] in images:
                image = images[entry["image_id"]]
                self._add_box(
                    image, str(categories.get(entry["category_id"])), [float(v) for v in entry["bbox"]], where
                )
        yield from images.values()

    def _add_box(self, image: _Image, category: str, values: list[float], where: str) -> None:
        label = self.card.label_aliases.get(category)
        if label is None:
            hint = nearest(category, list(self.card.label_aliases))
            reason: str | None = f"box of the unknown category '{category}'.{hint}"
        elif len(values) != 4:
            reason = f"box with {len(values)} numbers"
        else:
            x, y, width, height = values
            reason = box_mistake(x, y, width, height)
            box = Box(image.name, label, x, y, width, height)
            if box in image.boxes:
                reason = "the same box occurs twice"
            if reason is None and (x + width > image.width + EDGE or y + height > image.height + EDGE):
                reason = f"box outside the image of {image.width:g} x {image.height:g} pixels"
            if reason is None:
                image.boxes.append(box)
                return
        image.incomplete = True
        self.problem(where, reason or "", "Correct the box; the image is kept without it.", image.name)

    def _count_full(self, contents: Mapping[str, Mapping[str, Any]]) -> None:
        found = {f"{split} images": len(content["images"]) for split, content in contents.items()}
        names = [str(image["file_name"]) for content in contents.values() for image in content["images"]]
        boxes = [(split, entry["image_id"]) for split, content in contents.items() for entry in content["annotations"]]
        found |= {"images of tb": sum(name.startswith("tb/") for name in names)}
        found |= {"images of tb with boxes": len(set(boxes)), "boxes": len(boxes)}
        self.check_counts({"images": len(names), **found}, "images")

    def _simplified(self) -> list[_Image]:
        files = index_files(self, ["images/*"], (".png",))
        require_files(self, files, "images/")
        by_name: dict[str, list[Row]] = {}
        for row in read_csv(table_path(self, TABLE), COLUMNS):
            by_name.setdefault(row.cells["fname"].removesuffix(".png"), []).append(row)
        groups = Counter(_group(name) for name in by_name)
        found = {"simplified healthy": groups[HEALTHY], "simplified sick": groups[SICK], "simplified tb": groups[TB]}
        self.check_counts({"simplified images": len(by_name), **found}, "simplified images")
        images = [self._table_image(name, rows, files) for name, rows in by_name.items()]
        hidden = {name for name in files if name not in by_name and not _group(name)}
        self.counts["images whose name tells no class, without a row, left out"] = len(hidden)
        name_unlisted(self, files, hidden | set(by_name), TABLE)
        return [image for image in images if image is not None]

    def _table_image(self, name: str, rows: list[Row], files: Mapping[str, str]) -> _Image | None:
        where = f"{TABLE}:{rows[0].line}"
        facts = {tuple(row.cells[column] for column in COLUMNS if column not in ("bbox", "tb_type")) for row in rows}
        cells, group = rows[0].cells, _group(name)
        mistake = ""
        if len(facts) > 1:
            mistake = f"the rows of {name} contradict each other"
        elif name not in files:
            mistake = f"row without image: {name}.png is not in images/"
        elif not group:
            mistake = f"the file name {name}.png tells no class: h, s or tb and a number are expected"
        elif cells["target"] not in ("tb", "no_tb") or (cells["target"] == "tb") != (group == TB):
            mistake = f"target '{cells['target']}' contradicts the file name {name}.png"
        elif cells["source"] not in ("train", "val"):
            mistake = f"source is '{cells['source']}'; train or val is allowed"
        if mistake:
            self.problem(where, mistake, "Correct the rows, or download table and images again.", name)
            return None
        size = number(cells["image_width"]), number(cells["image_height"])
        image = _Image(name, files[name], cells["source"], group, *size, where)
        for row in rows:
            if row.cells["bbox"] != "none":
                self._add_box(image, row.cells["tb_type"], _corner_box(row.cells["bbox"]), f"{TABLE}:{row.line}")
        return image


def _group(name: str) -> str:
    """Return the class that the letters of a file name of the simplified edition mean; empty where they mean none."""
    return GROUPS.get(name.rstrip("0123456789"), "")


def _corner_box(text: str) -> list[float]:
    """Return x, y, width, height of `{'xmin': ..., 'ymin': ..., 'width': ..., 'height': ...}`, NaN where missing."""
    try:
        values = ast.literal_eval(text)
        return [float(values.get(key, math.nan)) for key in ("xmin", "ymin", "width", "height")]
    except (ValueError, SyntaxError, AttributeError, TypeError, RecursionError, MemoryError):
        return [math.nan] * 4


def _labels(image: _Image) -> dict[str, float]:
    """Return the labels of an image; none where its class is hidden."""
    if not image.group:
        return {}
    tb = image.group == TB
    found = {box.label for box in image.boxes}
    unsaid = NOT_MENTIONED if not found or image.incomplete else UNCERTAIN if found == {ANY} else ABSENT
    kinds = {label: PRESENT if label in found else unsaid if tb else ABSENT for label in (ACTIVE, LATENT)}
    return {
        ANY: PRESENT if tb else ABSENT,
        **kinds,
        OTHER: PRESENT if image.group == SICK else ABSENT,
        "Healthy": PRESENT if image.group == HEALTHY else ABSENT,
    }
