"""The raw layout of CT-RATE, both versions; see `data_cards/ct_rate.md`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from medvlp.sources._volumes import Affine
from medvlp.sources.phantom.examples import Example, ExampleVolume
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts

_HEADER = (
    *("VolumeName", "Manufacturer", "SeriesDescription", "ManufacturerModelName", "PatientSex", "PatientAge"),
    *("ReconstructionDiameter", "DistanceSourceToDetector", "DistanceSourceToPatient", "GantryDetectorTilt"),
    *("TableHeight", "RotationDirection", "ExposureTime", "XRayTubeCurrent", "Exposure", "FilterType"),
    *("GeneratorPower", "FocalSpots", "ConvolutionKernel", "PatientPosition", "RevolutionTime"),
    *("SingleCollimationWidth", "TotalCollimationWidth", "TableSpeed", "TableFeedPerRotation", "SpiralPitchFactor"),
    *("DataCollectionCenterPatient", "ReconstructionTargetCenterPatient", "ExposureModulationType", "CTDIvol"),
    *("ImagePositionPatient", "ImageOrientationPatient", "SliceLocation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "Rows", "Columns", "XYSpacing", "RescaleIntercept", "RescaleSlope", "RescaleType"),
    *("NumberofSlices", "ZSpacing", "StudyDate"),
)
_REPORT_HEADER = ("VolumeName", "ClinicalInformation_EN", "Technique_EN", "Findings_EN", "Impressions_EN")
_INTERCEPTS = (-1024, -8192)
_KERNELS = ("YA", "['Bl57d', '3']")
_LONG = {"train": "train", "valid": "validation"}


class CtRateLayout(Layout):
    """One scan per example, every second one in two reconstructions; one volume of a head on a no_chest list."""

    needs = "volumes"
    label_values = (1.0, 0.0)
    editions: ClassVar = {"version": ("v1", "v2"), "reconstructions": ("all", "first")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by split, patient and scan."""
        tables: dict[str, dict[str, list[list[Any]]]] = {split: defaultdict(list) for split in _LONG}
        studies: dict[str, list[Study]] = {split: [] for split in _LONG}
        for example in examples:
            split = "valid" if example.split == "test" else "train"
            studies[split].append(self._scan(example, split, tables[split]))
        for split, name in _LONG.items():
            self.put_csv(f"dataset/metadata/{name}_metadata.csv", _HEADER, tables[split]["metadata"])
            self.put_csv(f"dataset/radiology_text_reports/{name}_reports.csv", _REPORT_HEADER, tables[split]["reports"])
            self.put_csv(
                f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv",
                ("VolumeName", *self.card.labels),
                tables[split]["labels"],
            )
            listed = [f"{split}/{row[0]}" for row in tables[split]["metadata"][:1] if row[2] == "Head"]
            self.put_text(f"dataset/metadata/no_chest_{split}.txt", "".join(f"{line}\n" for line in listed))
        return [study for split in _LONG for study in studies[split] if study.images]

    def _scan(self, example: Example, split: str, tables: dict[str, list[list[Any]]]) -> Study:
        assert example.volume is not None
        patient = f"{split}_{example.patient + 1}"
        scan = f"{patient}_{'abcdefgh'[example.visit]}"
        labels = self.labels(example)
        sections = [example.sections.get("indication", ""), "Not given.", example.sections.get("findings", "")]
        sections.append(example.sections.get("impression", ""))
        kernels = _KERNELS if example.number % 2 else _KERNELS[:1]
        images = []
        if not tables["metadata"]:
            name = f"{scan}_{len(kernels) + 1}"  # a head, before all others in its table and on the no_chest list
            self._volume(name, "Head", "H31s", example, split, tables)
            tables["reports"].append([f"{name}.nii.gz", *sections])
            tables["labels"].append([f"{name}.nii.gz", *(int(labels[label]) for label in self.card.labels)])
        for number, kernel in enumerate(kernels):
            name = f"{scan}_{number + 1}"
            images.append(self._volume(name, "HRCT", kernel, example, split, tables))
            tables["reports"].append([f"{name}.nii.gz", *sections])
            tables["labels"].append([f"{name}.nii.gz", *(int(labels[label]) for label in self.card.labels)])
        if self.options["reconstructions"] == "first":
            images, kernels = images[:1], kernels[:1]
        headings = ("CLINICAL INFORMATION", None, "FINDINGS", "IMPRESSION")
        lines = [f"{heading}: {text}" for heading, text in zip(headings, sections, strict=True) if heading and text]
        return Study(
            study_id=scan,
            patient_id=patient,
            images=tuple(images),
            report="\n".join(lines) or None,
            labels={label: labels[label] for label in self.card.labels},
            attributes={
                "manufacturer": "Philips",
                "scanner_model": "iCT 256",
                "convolution_kernel": " | ".join(kernels),
            },
            language="en" if lines else None,
            age=float(example.age),
            sex=example.sex,
            date=f"2020{example.visit + 1:02d}15",
            split="test" if split == "valid" else "train",
        )

    def _volume(
        self, name: str, series: str, kernel: str, example: Example, split: str, tables: dict[str, list[list[Any]]]
    ) -> ImageRef:
        """Write one volume with columns towards left and rows towards posterior, and its row of metadata."""
        assert example.volume is not None
        v1 = self.options["version"] == "v1"
        intercept = _INTERCEPTS[example.patient % 2]
        own, affine = _as_scanned(example.volume)
        folder = split if v1 else f"{split}_fixed"
        patient, scan = name.rsplit("_", 2)[0], name.rsplit("_", 1)[0]
        path = f"dataset/{folder}/{patient}/{scan}/{name}.nii.gz"
        header = np.diag([1.0, 1.0, 1.0, 1.0])[:, [2, 1, 0, 3]] if v1 else affine[:, [2, 1, 0, 3]]
        self.put_nifti(path, (own - intercept).astype(np.int16) if v1 else own, header)
        pixel, step = float(-affine[0, 0]), float(affine[2, 2])
        position = [float(-affine[0, 3]), float(-affine[1, 3]), float(affine[2, 3])]
        row = dict.fromkeys(_HEADER, "")
        row |= {
            "VolumeName": f"{name}.nii.gz",
            "Manufacturer": "Philips",
            "SeriesDescription": series,
            "ManufacturerModelName": "iCT 256",
            "PatientSex": example.sex,
            "PatientAge": f"{example.age:03d}Y",
            "GantryDetectorTilt": "0",
            "ConvolutionKernel": kernel,
            "PatientPosition": "HFS",
            "ImagePositionPatient": str(position),
            "ImageOrientationPatient": "[1, 0, 0, 0, 1, 0]",
            "Rows": str(own.shape[1]),
            "Columns": str(own.shape[2]),
            "XYSpacing": str([pixel, pixel]),
            "RescaleIntercept": str(intercept),
            "RescaleSlope": "1",
            "NumberofSlices": str(own.shape[0]),
            "ZSpacing": str(step),
            "StudyDate": f"2020{example.visit + 1:02d}15",
        }
        tables["metadata"].append([row[column] for column in _HEADER])
        facts = VolumeFacts(Intensity.HU)
        if v1:
            size = (own.shape[2], own.shape[1], own.shape[0])
            facts = VolumeFacts(Intensity.HU, 1.0, float(intercept), _rows(affine), size)
        return ImageRef(name, path, "CT", facts=facts)


def _as_scanned(volume: ExampleVolume) -> tuple[np.ndarray, np.ndarray]:
    """Return the slices `[d h w]` as a scanner stores them, and the affine from (column, row, slice) to RAS.

    Pixels are square in this data set; their side is that of the volume along w.
    """
    depth, _, across = (float(value) for value in np.linalg.norm(volume.affine[:3, :3], axis=0))
    affine = np.diag([-across, -across, depth, 1.0])
    affine[:3, 3] = (volume.affine @ [0, volume.array.shape[1] - 1, volume.array.shape[2] - 1, 1])[:3]
    return np.ascontiguousarray(volume.array[:, ::-1, ::-1]), affine


def _rows(affine: np.ndarray) -> Affine:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in affine)
