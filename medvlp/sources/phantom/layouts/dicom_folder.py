"""The export of a hospital: DICOM files in folders without meaning, and two tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.findings import NAMES
from medvlp.sources.phantom.layouts._dicom import radiograph_file, uid_of
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Study

_VIEWS = {"PA": "PA", "AP": "AP", "LATERAL": "LL"}


class DicomFolderLayout(Layout):
    """Radiographs; labels by accession number with a semicolon, reports by examination."""

    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "labels": ("labels.csv",),
        "reports": ("reports.csv",),
        "modality": ("auto", "CR"),
    }

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the export; return its studies by their ids."""
        labels: list[list[object]] = []
        reports: list[list[object]] = []
        studies = []
        for example in examples:
            study, patient = uid_of("study", example.number), f"00{example.patient}-{example.patient * 7919 % 997:03d}"
            accession = f"0{example.number:05d}"
            name = f"Phantom^No{example.patient}"
            shared = {"PatientName": name, "PatientID": patient, "PatientSex": example.sex}
            shared |= {"PatientAge": f"{example.age:03d}Y", "StudyInstanceUID": study, "AccessionNumber": accession}
            shared |= {"StudyDate": f"202001{example.visit + 1:02d}", "Manufacturer": "Phantom"}
            images = []
            for place, image in enumerate(example.images):
                sop, path = (
                    uid_of("image", example.number, place),
                    f"{example.number % 3}/IM{example.number:04d}{place}",
                )
                series = uid_of("series", example.number, place)
                data = radiograph_file(
                    image.pixels, sop, SeriesInstanceUID=series, ViewPosition=_VIEWS[image.view], **shared
                )
                self.put_bytes(path, data)
                images.append(ImageRef(sop, path, "CR", image.view))
            found = {
                finding: float(finding in example.findings) if (example.number + place) % 5 else float("nan")
                for place, finding in enumerate(NAMES)
            }
            cells = ["" if value != value else int(value) for value in found.values()]
            labels.append([accession, patient, example.split, *cells])
            parts = [example.sections.get(name, "") for name in ("findings", "impression")]
            reports.append([study, *parts])
            lines = [f"{head}: {text}" for head, text in zip(("FINDINGS", "IMPRESSION"), parts, strict=True) if text]
            studies.append(
                Study(study, patient, tuple(sorted(images, key=lambda image: image.image_id)),
                      report="\n".join(lines) or None, labels=found, attributes={"manufacturer": "Phantom"},
                      age=float(example.age), sex=example.sex, date=shared["StudyDate"], split=example.split,
                      identifiers=(name, patient, accession) if lines else ())
            )  # fmt: skip
        self.put_text("read me.txt", "Exported on request.\n")
        self.put_csv("labels.csv", ("AccessionNumber", "PatientID", "split", *NAMES), labels, delimiter=";")
        self.put_csv("reports.csv", ("StudyInstanceUID", "Findings", "Impression"), reports)
        return sorted(studies, key=lambda study: study.study_id)
