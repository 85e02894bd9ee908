"""IU X-Ray, the Indiana University collection with its images, in three editions: Open-i, R2Gen and Kaggle.

Guarantee: a study belongs to one report, whose number stands for the patient; no view is guessed from a file's place in
a list, and no label is made of the indexing terms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from medvlp.errors import UserError
from medvlp.sources._checks import check_patients_apart, name_unlisted, unique_rows
from medvlp.sources._csv import Row, read_csv
from medvlp.sources._files import index_files, read_json, require_files, table_path
from medvlp.sources._openi import SECTIONS, OpeniSource
from medvlp.sources._report import join_sections
from medvlp.types import ImageRef, Study

ANNOTATION, REPORTS, PROJECTIONS = "annotation.json", "indiana_reports.csv", "indiana_projections.csv"
_R2GEN_ID = re.compile(r"(CXR\d+)(?:_\d+)?_IM-[\w-]+")
"""`CXR2384_IM-0942`, and the one whose images have a number more: `CXR1_1_IM-0001`."""
OTHER_EDITIONS = {"r2gen": ANNOTATION, "kaggle": REPORTS}


class IuXray(OpeniSource):
    """The data set below a root folder, in the edition that the option names; see `data_cards/iu_xray.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per report.

        A report that names no image is a study without images; one whose images are all missing is left out.

        Raises:
            UserError: Files of the edition are missing or cannot be read, patients are in several splits, or a full
                edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        edition = {"openi": self._openi, "r2gen": self._r2gen, "kaggle": self._kaggle}[self.options["edition"]]
        studies = edition()
        self.counts["reports that name no image"] += sum(not study.images for study in studies)
        check_patients_apart(self, studies, "Download the file of splits again.")
        yield from studies

    def _openi(self) -> list[Study]:
        if self.root.is_file():
            fix = "Give the folder that holds the reports and the images, or use iu_xray_reports for the text alone."
            raise UserError("The root is a file: there are no images.", self.root, fix)
        self._check_edition()
        reports = self.reports()
        found = {"reports": self.files_read, "images": sum(len(report.images) for report in reports)}
        self.check_counts(found, "reports")
        files = index_files(self, ("NLMCXR_png/*", "images/*", "*"), (".png",))
        require_files(self, files, "NLMCXR_png/*.png")
        name_unlisted(self, files, (name for report in reports for name in report.images), "any report")
        studies = []
        for report in reports:
            self.counts["reports without findings and impression"] += not {"FINDINGS", "IMPRESSION"} & set(
                report.sections
            )
            named = [(name, files.get(name), None) for name in report.images]
            attributes = {"mesh": "|".join(report.mesh)} if report.mesh else {}
            studies.append(self._study(report.study_id, report.study_id, report.path, report.text, named, attributes))
        return [study for study in studies if study is not None]

    def _check_edition(self) -> None:
        """Refuse the files of another edition with the option that reads them.

        Raises:
            UserError: There are such files, and none of this edition.
        """
        there = next((name for name, file in OTHER_EDITIONS.items() if (self.root / file).is_file()), None)
        if there is not None and not self.has_reports():
            what = f"These are the files of the edition {there}: there is {OTHER_EDITIONS[there]}, and no XML file."
            raise UserError(what, self.root, f"Set options.edition={there}.")

    def _study(
        self,
        study_id: str,
        patient: str,
        where: str,
        text: str | None,
        named: Sequence[tuple[str, str | None, str | None]],
        attributes: Mapping[str, str],
        split: str | None = None,
    ) -> Study | None:
        """Return a study with its images (id, path or None where missing, view); None where all of them are missing."""
        images = [ImageRef(name, path, self.card.modality, view) for name, path, view in named if path is not None]
        for name, path, _ in named:
            if path is None:
                fix = "Download the image; the study is kept with its other images, if it has any."
                self.problem(where, f"row without image: {name} is in no folder", fix, study_id)
        if named and not images:
            return None
        return Study(
            study_id=study_id,
            patient_id=patient,
            images=tuple(images),
            report=text,
            language=self.card.language if text else None,
            attributes=attributes,
            split=split,
        )

    def _r2gen(self) -> list[Study]:
        content = read_json(table_path(self, ANNOTATION))
        splits = list(self.card.adapter["r2gen_splits"])
        if not isinstance(content, dict) or not all(isinstance(content.get(split), list) for split in splits):
            fix = "Use the annotation.json that R2Gen made for IU X-Ray."
            raise UserError(f"{ANNOTATION} has no lists {', '.join(splits)}.", self.root / ANNOTATION, fix)
        found = {f"r2gen {split}": len(content[split]) for split in splits}
        self.check_counts(found | {"r2gen items": sum(found.values())}, "r2gen items")
        files = index_files(self, ("images/*/*",), (".png", ".jpg"), by="path")
        require_files(self, files, "images/CXR2384_IM-0942/*.png")
        items = [(split, place, item) for split in splits for place, item in enumerate(content[split])]
        ids = Counter(item.get("id") for _, _, item in items if isinstance(item, dict))
        listed: set[str] = set()
        studies = []
        for split, place, item in items:
            where = f"{ANNOTATION}:{split}[{place}]"
            mistake = _r2gen_mistake(item, split)
            paths = [] if mistake else [f"images/{path}" for path in item["image_path"]]
            if mistake is None and ids[item["id"]] > 1:
                mistake = f"duplicated id: {item['id']} stands {ids[item['id']]} times; none is kept"
            listed.update(paths)
            if mistake is not None:
                self.problem(where, mistake, f"Use the {ANNOTATION} that R2Gen made for IU X-Ray.")
                continue
            named = [
                (path.split("/", 1)[1].rsplit(".", 1)[0].replace("/", "_"), files.get(path), None) for path in paths
            ]
            patient = _R2GEN_ID.fullmatch(item["id"])[1]  # type: ignore[index]
            text = join_sections([("FINDINGS", item["report"])])
            studies.append(self._study(item["id"], patient, where, text, named, {}, split))
        name_unlisted(self, files, listed, ANNOTATION)
        return sorted((study for study in studies if study is not None), key=lambda study: _order(study.study_id))

    def _kaggle(self) -> list[Study]:
        columns = ("uid", "MeSH", "Problems", *(name.lower() for name in SECTIONS))
        reports = unique_rows(
            self, read_csv(table_path(self, REPORTS), columns), lambda row: row.cells["uid"], REPORTS, "report"
        )
        rows = read_csv(table_path(self, PROJECTIONS), ("uid", "filename", "projection"))
        self.check_counts({"kaggle reports": len(reports)}, "kaggle reports")
        files = index_files(
            self, ("images/images_normalized/*", "images/*", "images_normalized/*"), (".png",), by="name"
        )
        require_files(self, files, "images/images_normalized/*.png")
        name_unlisted(self, files, (row.cells["filename"] for row in rows), PROJECTIONS)
        named: dict[str, list[Row]] = {}
        for row in unique_rows(self, rows, lambda row: row.cells["filename"], PROJECTIONS).values():
            named.setdefault(row.cells["uid"], []).append(row)
        for uid in sorted(set(named) - set(reports)):
            for row in named[uid]:
                reason = f"the image belongs to report {uid}, which is not in {REPORTS}"
                self.problem(f"{PROJECTIONS}:{row.line}", reason, "Download both tables again.")
        studies = []
        for uid, row in reports.items():
            if not uid.isdecimal():
                self.problem(f"{REPORTS}:{row.line}", f"the uid '{uid}' is no number", "Download the table again.")
                continue
            text = join_sections((name, row.cells[name.lower()]) for name in SECTIONS)
            images = [self._kaggle_image(own, files) for own in sorted(named.get(uid, []), key=lambda own: own.line)]
            attributes = {"mesh": row.cells["MeSH"], "problems": row.cells["Problems"]}
            given = {name: value for name, value in attributes.items() if value}
            studies.append(self._study(f"CXR{uid}", f"CXR{uid}", f"{REPORTS}:{row.line}", text, images, given))
        return sorted((study for study in studies if study is not None), key=lambda study: _order(study.study_id))

    def _kaggle_image(self, row: Row, files: Mapping[str, str]) -> tuple[str, str | None, str | None]:
        name, projection = row.cells["filename"], row.cells["projection"].lower()
        if projection == "frontal":
            self.counts["frontal views (AP or PA is not told), read as unknown"] += 1
        return name.removesuffix(".png"), files.get(name), "LATERAL" if projection == "lateral" else None


def _r2gen_mistake(item: Any, split: str) -> str | None:
    """Return what is wrong with an item of `annotation.json`."""
    if not isinstance(item, dict) or not {"id", "report", "image_path", "split"} <= set(item):
        return "the item lacks id, report, image_path or split"
    if not isinstance(item["id"], str) or not _R2GEN_ID.fullmatch(item["id"]):
        return f"the id '{item['id']}' is no CXR<number>_IM-<number>"
    paths = item["image_path"]
    if not isinstance(item["report"], str) or not isinstance(paths, list) or not all(isinstance(p, str) for p in paths):
        return "its report is no text, or its image_path no list of texts"
    return None if item["split"] == split else f"the item says split {item['split']}, but is in the list {split}"


def _order(study_id: str) -> tuple[int, str]:
    return int(re.sub(r"\D.*", "", study_id.removeprefix("CXR"))), study_id
