"""RSNA Pneumonia Detection Challenge, stage 2: boxes per image, classes, and patients by the mapping to NIH.

Guarantee: each table is reduced to one entry per image before anything is joined; an image whose rows contradict each
other is left out and named; patients are those of NIH ChestX-ray14 or unknown, never the image's own id.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import box_mistake
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import expected_json, index_files, read_json, require_files, table_path
from medvlp.sources._values import number
from medvlp.sources.base import Source
from medvlp.types import ABSENT, PRESENT, UNKNOWN_PATIENT, Box, ImageRef, Study

LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
TRAIN, TEST = "stage_2_train_images", "stage_2_test_images"
MAPPING = "pneumonia-challenge-dataset-mappings_2018.json"
ADJUDICATED = "pneumonia-challenge-annotations-adjudicated-kaggle_2018.json"
BOX = ("x", "y", "width", "height")
OPACITY, NORMAL = "Lung Opacity", "Normal"
CLASS_NAMES = (NORMAL, "No Lung Opacity / Not Normal", OPACITY)


@dataclass(frozen=True, slots=True)
class _Finding:
    """What is known of one image: its class (None: not given), whether it is positive, and its boxes."""

    class_name: str | None
    positive: bool
    boxes: tuple[Box, ...] = ()


class RsnaPneumonia(Source):
    """The data set below a root folder; see `data_cards/rsna_pneumonia.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per image, in the order of `patientId`.

        Raises:
            UserError: A table, a column or the images are missing, the adjudicated labels lack their files, or a full
                edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        self._refused: set[str] = set()
        images = index_files(self, [f"{TRAIN}/*"], (".dcm",))
        tests = index_files(self, [f"{TEST}/*"], (".dcm",))
        require_files(self, images, f"{TRAIN}/")
        mapping = self._mapping()
        adjudicated = self.options["labels"] == "adjudicated"
        table, found = (ADJUDICATED, self._adjudicated(mapping)) if adjudicated else (LABELS, self._kaggle())
        for name in sorted(set(found) - set(images) - (set(tests) if adjudicated else set())):
            reason = f"row without image: {name}.dcm is not in {TRAIN}"
            self.problem(table, reason, "Download the image, or remove its rows.", name)
        for name in sorted(set(images) - set(found) - self._refused):
            self.problem(images[name], "the image has no label", "Add its row, or remove the image.", name)
        wanted = {name: path for name, path in images.items() if name in found}
        if self.options["test_images"]:
            wanted |= tests
        else:
            self.counts[f"images of {TEST} left out"] = len(tests)
        for name, path in sorted(wanted.items()):
            yield self._study(name, path, found.get(name), mapping)

    def _study(self, name: str, path: str, finding: _Finding | None, mapping: Mapping[str, Mapping[str, Any]]) -> Study:
        labels: dict[str, float] = {}
        attributes = {}
        if finding is not None:
            labels["Pneumonia"] = PRESENT if finding.positive else ABSENT
            if finding.class_name is not None:
                labels[NORMAL] = PRESENT if finding.class_name == NORMAL else ABSENT
                attributes["class"] = finding.class_name
        patient = UNKNOWN_PATIENT
        if name in mapping:
            attributes["nih_image"] = mapping[name]["img_id"]
            patient = str(int(attributes["nih_image"][:8]))
        elif mapping:
            self.counts["images that the mapping file lacks"] += 1
        self.counts["images of unknown patients"] += patient == UNKNOWN_PATIENT
        self.counts["boxes"] += len(finding.boxes) if finding else 0
        return Study(
            study_id=name,
            patient_id=patient,
            images=(ImageRef(name, path, self.card.modality),),
            labels=labels,
            boxes=finding.boxes if finding else (),
            attributes=attributes,
        )

    def _kaggle(self) -> dict[str, _Finding]:
        rows = read_csv(table_path(self, LABELS), ("patientId", *BOX, "Target"))
        class_rows = read_csv(table_path(self, CLASSES), ("patientId", "class"))
        by_name: dict[str, list[Row]] = {}
        for row in rows:
            by_name.setdefault(row.cells["patientId"], []).append(row)
        classes: dict[str, set[str]] = {}
        for row in class_rows:
            classes.setdefault(row.cells["patientId"], set()).add(row.cells["class"])
        self._count(rows, by_name, classes)
        findings = {name: self._finding(name, own, classes.get(name, set())) for name, own in by_name.items()}
        kept = {name: finding for name, finding in findings.items() if finding is not None}
        self._refused = set(by_name) - set(kept)
        for name in sorted(set(classes) - set(by_name)):
            self.problem(CLASSES, f"{name} has a class but no row in {LABELS}", "Download both tables again.", name)
        return kept

    def _finding(self, name: str, rows: list[Row], classes: set[str]) -> _Finding | None:
        """Return what the rows of one image say together; None, and a problem, where they contradict each other."""
        targets = sorted({row.cells["Target"] for row in rows})
        boxed = [row for row in rows if any(row.cells[column] for column in BOX)]
        mistake = ""
        if targets not in (["0"], ["1"]):
            mistake = f"Target is {' and '.join(targets) or 'blank'}; it must be 0 or 1, the same in all rows"
        elif len(classes) > 1 or not classes <= set(CLASS_NAMES):
            mistake = (
                f"the class is {' and '.join(sorted(classes))}; exactly one of {', '.join(CLASS_NAMES)} is allowed"
            )
        elif classes and (classes == {OPACITY}) != (targets == ["1"]):
            mistake = f"Target {targets[0]} contradicts the class {min(classes)}"
        elif targets == ["0"] and boxed:
            mistake = "Target is 0, but there is a box"
        if mistake:
            self.problem(f"{LABELS}:{rows[0].line}", mistake, "Download both tables again.", name)
            return None
        if not classes:
            self.counts["images without a class"] += 1
        boxes: dict[tuple[float, ...], Box] = {}
        for row in rows if targets == ["1"] else []:
            self._add_box(boxes, name, tuple(number(row.cells[column]) for column in BOX), f"{LABELS}:{row.line}")
        return _Finding(min(classes, default=None), targets == ["1"], tuple(boxes.values()))

    def _add_box(self, boxes: dict[tuple[float, ...], Box], name: str, values: tuple[float, ...], where: str) -> None:
        x, y, width, height = values
        reason = box_mistake(x, y, width, height) or ("the same box occurs twice" if values in boxes else None)
        if reason is None:
            boxes[values] = Box(name, "Pneumonia", x, y, width, height)
        else:
            self.problem(where, reason, "Correct the row of the box; the image is kept without it.", name)

    def _count(self, rows: list[Row], by_name: Mapping[str, list[Row]], classes: Mapping[str, set[str]]) -> None:
        positive = [row.cells["patientId"] for row in rows if row.cells["Target"] == "1"]
        named = Counter(name for own in classes.values() for name in own)
        found = {"images": len(by_name), "rows": len(rows), "positive rows": len(positive)}
        found |= {"positive images": len(set(positive))}
        self.check_counts(found | {f"class {name}": named[name] for name in CLASS_NAMES}, "images")

    def _mapping(self) -> dict[str, dict[str, Any]]:
        """Return patientId -> its entry of the mapping file; empty where there is no such file."""
        path = self.root / MAPPING
        if not path.is_file():
            return {}
        mapping: dict[str, dict[str, Any]] = {}
        twice = set()
        with expected_json(path):
            entries = [(str(entry["subset_img_id"]), str(entry["img_id"]), dict(entry)) for entry in read_json(path)]
        for name, image, entry in entries:
            if not name or not re.fullmatch(r"\d{8}_\d{3}\.png", image):
                fix = f"Download {MAPPING} again."
                raise UserError(f"The entry of '{name}' names no NIH image: '{image}'.", path, fix)
            if name in mapping and mapping[name]["img_id"] != image:
                twice.add(name)
            mapping[name] = entry
        for name in sorted(twice):
            del mapping[name]
            reason = "the mapping file ties the id to two NIH images; its patient is unknown"
            self.problem(MAPPING, reason, f"Download {MAPPING} again.", name)
        return mapping

    def _adjudicated(self, mapping: Mapping[str, Mapping[str, Any]]) -> dict[str, _Finding]:
        if not mapping:
            raise UserError(
                f"{MAPPING} is missing: the adjudicated labels name studies by their UID, which it ties to images.",
                self.root,
                "Put the file into the root folder, or use options.labels=kaggle.",
            )
        content = read_json(table_path(self, ADJUDICATED))
        with expected_json(self.root / ADJUDICATED):
            return self._groups(content, mapping)

    def _groups(self, content: Mapping[str, Any], mapping: Mapping[str, Mapping[str, Any]]) -> dict[str, _Finding]:
        groups = [group for group in content["labelGroups"] if group["name"] == "Calculated"]
        names = {label["id"]: label["name"] for group in groups for label in group["labels"]}
        if not set(names.values()) >= set(CLASS_NAMES):
            found = ", ".join(sorted(names.values())) or "none"
            raise UserError(
                f"The label group 'Calculated' lacks a class; it has: {found}.",
                self.root / ADJUDICATED,
                "Download the file again.",
            )
        uids = {name: str(entry.get("StudyInstanceUID") or "") for name, entry in mapping.items()}
        times = Counter(uids.values())
        images = {uid: name for name, uid in uids.items() if uid and times[uid] == 1}
        self.counts["images whose study is not theirs alone, without adjudicated labels"] = len(uids) - len(images)
        others = {label["id"] for group in content["labelGroups"] for label in group["labels"]} - set(names)
        return self._calculated(content["datasets"][0]["annotations"], names, others, images)

    def _calculated(
        self, annotations: list[dict[str, Any]], names: Mapping[str, str], others: set[str], images: Mapping[str, str]
    ) -> dict[str, _Finding]:
        """Join the annotations of the calculated group to images; those of single readers (`others`) are counted."""
        classes: dict[str, set[str]] = {}
        boxes: dict[str, dict[tuple[float, ...], Box]] = {}
        for place, annotation in enumerate(annotations):
            where, study = f"{ADJUDICATED}:annotation {place}", images.get(str(annotation.get("StudyInstanceUID")))
            label = names.get(annotation["labelId"])
            if annotation["labelId"] in others:
                self.counts["annotations of single readers, left out"] += 1
            elif label not in CLASS_NAMES or study is None:
                what = "study" if study is None else f"label {annotation['labelId']}"
                self.problem(where, f"annotation of an unknown {what}", "Download the file again.")
            else:
                classes.setdefault(study, set()).add(label)
                data = annotation.get("data")
                if label == OPACITY and data:
                    values = tuple(float(data.get(key, math.nan)) for key in BOX)
                    self._add_box(boxes.setdefault(study, {}), study, values, where)
        findings = {}
        for name, own in sorted(classes.items()):
            if len(own) > 1:
                self._refused.add(name)
                reason = f"the adjudicated classes contradict each other: {' and '.join(sorted(own))}"
                self.problem(ADJUDICATED, reason, "Download the file again.", name)
                continue
            findings[name] = _Finding(min(own), own == {OPACITY}, tuple(boxes.get(name, {}).values()))
        return findings
