"""The raw layouts of ROCO, ROCOv2 and MedICaT; see `data_cards/roco.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Study

_SPLITS = ("train", "val", "test")
_ROCO = {"train": "train", "val": "validation", "test": "test"}
_ROCOV2 = {"train": "train", "val": "valid", "test": "test"}


class RocoLayout(Layout):
    """The impression of an examination is the caption of its frontal image; every fourth figure is no radiology."""

    editions = {"edition": ("roco", "rocov2", "medicat"), "figures": ("radiology", "all")}  # noqa: RUF012

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by split, kind and id."""
        examples = list(examples)
        write = {"roco": self._roco, "rocov2": self._rocov2, "medicat": self._medicat}
        return write[str(self.options["edition"])](examples)

    def _roco(self, examples: list[Example]) -> list[Study]:
        studies = []
        texts: dict[str, str] = {}
        for example in examples:
            name, kind = f"ROCO_{example.number + 1:05d}", self._kind(example)
            base = f"{_ROCO[example.split]}/{kind}"
            article = f"PMC{example.patient + 1000}"
            link = f"{name}\thttp://example.org/pub/{article}.tar.gz\tfig1.jpg\n"
            for file, line in (("captions.txt", f"{name}\t{self._caption(example)}\n"), ("dlinks.txt", link)):
                texts[f"{base}/{file}"] = texts.get(f"{base}/{file}", "") + line
            study = self._study(example, name, f"{base}/images/{name}.jpg", {"kind": kind, "article": article})
            studies.append(study)
        for path, text in texts.items():
            self.put_text(path, text)
        wanted = [study for study in studies if self._wanted(study.attributes["kind"])]
        kinds = ("radiology", "non-radiology")
        return sorted(
            wanted,
            key=lambda study: (_SPLITS.index(str(study.split)), kinds.index(study.attributes["kind"]), study.study_id),
        )

    def _rocov2(self, examples: list[Example]) -> list[Study]:
        studies = []
        captions: dict[str, list[list[str]]] = {split: [] for split in _SPLITS}
        concepts: dict[str, list[list[str]]] = {split: [] for split in _SPLITS}
        for example in examples:
            prefix = _ROCOV2[example.split]
            name = f"ROCOv2_2023_{prefix}_{example.number + 1:06d}"
            codes = ";".join(f"C{7000000 + len(finding)}" for finding in sorted(example.findings))
            captions[example.split].append([name, self._caption(example)])
            concepts[example.split].append([name, codes])
            attributes = {"concepts": codes} if codes else {}
            studies.append(self._study(example, name, f"{prefix}_images/{prefix}/{name}.jpg", attributes))
        for split, prefix in _ROCOV2.items():
            self.put_csv(f"{prefix}_captions.csv", ["ID", "Caption"], captions[split])
            self.put_csv(f"{prefix}_concepts.csv", ["ID", "CUIs"], concepts[split])
        return sorted(studies, key=lambda study: (_SPLITS.index(str(study.split)), study.study_id))

    def _medicat(self, examples: list[Example]) -> list[Study]:
        studies, lines = [], []
        for example in examples:
            article, figure = f"{example.patient:040x}", f"{example.number}-Figure1-1.png"
            name, kind = f"{article}_{figure}", self._kind(example)
            entry = {
                "pdf_hash": article,
                "fig_uri": figure,
                "s2_caption": self._caption(example),
                "s2orc_references": None if example.number % 2 else ["as shown"],
                "radiology": kind == "radiology",
            }
            lines.append(json.dumps(entry))
            study = self._study(example, name, f"release/figures/{name}", {"kind": kind, "article": article})
            studies.append(replace(study, split=None))
        table = "release/s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
        self.put_text(table, "\n".join(lines) + "\n")
        wanted = [study for study in studies if self._wanted(study.attributes["kind"])]
        return sorted(wanted, key=lambda study: study.study_id)

    def _study(self, example: Example, name: str, path: str, attributes: dict[str, str]) -> Study:
        front = next(image for image in example.images if image.view != "LATERAL")
        self.put_image(path, front.pixels)
        return Study(
            study_id=name,
            patient_id=UNKNOWN_PATIENT,
            images=(ImageRef(name, path, "OT"),),
            report=self._caption(example),
            attributes=attributes,
            language="en",
            split=example.split,
        )

    def _wanted(self, kind: str) -> bool:
        return self.options["figures"] == "all" or kind == "radiology"

    @staticmethod
    def _kind(example: Example) -> str:
        return "non-radiology" if example.number % 4 == 3 else "radiology"

    @staticmethod
    def _caption(example: Example) -> str:
        """Return a caption with a comma, a quotation mark and a letter beyond ASCII."""
        return f'{" ".join(example.caption.split())} "Röntgen", {example.number}'
