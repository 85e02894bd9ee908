"""The raw layouts of IU X-Ray: Open-i, R2Gen and Kaggle; see `data_cards/iu_xray.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._openi import SECTIONS, joined_sections, openi_xml
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Study


class IuXrayLayout(Layout):
    """One edition, as the option says; every examination has a report number, and so a patient, of its own."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {"edition": ("openi", "r2gen", "kaggle")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by report number."""
        write = {"openi": self._openi, "r2gen": self._r2gen, "kaggle": self._kaggle}[str(self.options["edition"])]
        return write(list(examples))

    def _openi(self, examples: list[Example]) -> list[Study]:
        studies = []
        for example in examples:
            study_id = f"CXR{example.number + 1}"
            names = [f"{study_id}_IM-{example.number:04d}-{place + 1}001" for place in range(len(example.images))]
            for name, image in zip(names, example.images, strict=True):
                self.put_image(f"NLMCXR_png/{name}.png", image.pixels)
            mesh = sorted(example.findings) or ["normal"]
            self.put_text(f"ecgen-radiology/{example.number + 1}.xml", openi_xml(study_id, example, names))
            images = [ImageRef(name, f"NLMCXR_png/{name}.png", "CR") for name in names]
            studies.append(_study(study_id, study_id, images, joined_sections(example), {"mesh": "|".join(mesh)}))
        return studies

    def _r2gen(self, examples: list[Example]) -> list[Study]:
        lists: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
        studies = []
        for example in examples:
            patient = f"CXR{example.number + 1}"
            study_id = f"{patient}_IM-{example.number:04d}"
            paths = [f"{study_id}/{place}.png" for place in range(len(example.images))]
            for path, image in zip(paths, example.images, strict=True):
                self.put_image(f"images/{path}", image.pixels)
            text = example.sections["findings"]
            lists[example.split].append({"id": study_id, "report": text, "image_path": paths, "split": example.split})
            images = [ImageRef(f"{study_id}_{place}", f"images/{path}", "CR") for place, path in enumerate(paths)]
            studies.append(_study(study_id, patient, images, f"FINDINGS: {text}", {}, example.split))
        self.put_text("annotation.json", json.dumps(lists))
        return studies

    def _kaggle(self, examples: list[Example]) -> list[Study]:
        reports: list[list[Any]] = []
        projections: list[list[Any]] = []
        studies = []
        for example in examples:
            uid, mesh = example.number + 1, ";".join(sorted(example.findings)) or "normal"
            images = []
            for place, image in enumerate(example.images):
                name, lateral = f"{uid}_IM-{uid:04d}-{place + 1}001.dcm", image.view == "LATERAL"
                path = f"images/images_normalized/{name}.png"
                self.put_image(path, image.pixels)
                projections.append([uid, f"{name}.png", "Lateral" if lateral else "Frontal"])
                images.append(ImageRef(name, path, "CR", "LATERAL" if lateral else None))
            texts = [example.sections.get(name) for name in SECTIONS]
            reports.append([uid, mesh, mesh, "Xray Chest PA and Lateral", *texts])
            attributes = {"mesh": mesh, "problems": mesh}
            studies.append(_study(f"CXR{uid}", f"CXR{uid}", images, joined_sections(example), attributes))
        self.put_csv("indiana_reports.csv", ("uid", "MeSH", "Problems", "image", *SECTIONS), reports)
        self.put_csv("indiana_projections.csv", ("uid", "filename", "projection"), projections)
        return studies


def _study(
    study_id: str, patient: str, images: list[ImageRef], text: str, attributes: dict[str, str], split: str | None = None
) -> Study:
    return Study(
        study_id=study_id,
        patient_id=patient,
        images=tuple(images),
        report=text,
        language="en",
        attributes=attributes,
        split=split,
    )
