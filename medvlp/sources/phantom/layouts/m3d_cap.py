"""The raw layout of M3D-Cap, both editions; see `data_cards/m3d_cap.md`."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._slices import Plane, grey_slices
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Study, VolumeFacts

_SERIES: tuple[tuple[str, Plane, str, str], ...] = (
    ("Axial_C__portal_venous_phase", "axial", "soft", "png"),
    ("Coronal_bone_window", "coronal", "bone", "jpeg"),
)
_WINDOWS = "unknown | bone"
_LISTS = {"train": "train", "val": "validation", "test": "test"}


class M3dCapLayout(Layout):
    """Every case has an axial series as PNG and a coronal one in a bone window as JPEG, or both as arrays."""

    needs = "volumes"
    editions: ClassVar = {"edition": ("raw", "prepared")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by collection and case."""
        listed: dict[str, list[dict[str, str]]] = {split: [] for split in _LISTS.values()}
        studies = []
        raw = self.options["edition"] == "raw"
        for example in examples:
            assert example.volume is not None
            collection, case = ("ct_quizze" if example.number % 3 == 2 else "ct_case"), f"{example.number + 8:06d}"
            name, folder = f"{collection}_{case}", f"{'M3D_Cap' if raw else 'M3D_Cap_npy'}/{collection}/{case}"
            text = example.sections.get("findings", "") or "Nothing is seen."
            self.put_text(f"{folder}/text.txt", _case_text(text, example) if raw else text)
            write = self._pictures if raw else self._array
            images = [
                write(name, f"{folder}/{series}", grey_slices(example.volume, plane, window), suffix)
                for series, plane, window, suffix in _SERIES
            ]
            listed[_LISTS[example.split]] += [{"image": image.path, "text": f"{folder}/text.txt"} for image in images]
            studies.append(
                Study(
                    study_id=name,
                    patient_id=UNKNOWN_PATIENT,
                    images=tuple(images),
                    report=text,
                    attributes={
                        "series": " | ".join(series for series, *_ in _SERIES),
                        "planes": " | ".join(plane for _, plane, *_ in _SERIES),
                        "windows": _WINDOWS,
                    },
                    language="en",
                    split=None if raw else example.split,
                )
            )
        if not raw:
            self.put_text("M3D_Cap_npy/M3D_Cap.json", json.dumps(listed))
        return sorted(studies, key=lambda study: study.study_id)

    def _pictures(self, case: str, folder: str, slices: np.ndarray, suffix: str) -> ImageRef:
        for place, pixels in enumerate(slices):
            self.put_image(f"{folder}/{place + 1}.{suffix}", pixels)
        return ImageRef(f"{case}/{folder.split('/')[-1]}", folder, "CT", facts=VolumeFacts(Intensity.STORED))

    def _array(self, case: str, path: str, slices: np.ndarray, suffix: str) -> ImageRef:
        """Write 0 to 1 of the series' own range, with an axis of one channel before the others."""
        low, high = int(slices.min()), int(slices.max())
        buffer = io.BytesIO()
        np.save(buffer, ((slices[None].astype(np.float32) - low) / max(high - low, 1)).astype(np.float32))
        self.put_bytes(f"{path}.npy", buffer.getvalue())
        facts = VolumeFacts(Intensity.STORED, slope=255.0, intercept=0.0)
        return ImageRef(f"{case}/{path.split('/')[-1]}", f"{path}.npy", "CT", facts=facts)


def _case_text(text: str, example: Example) -> str:
    """Return a text file: every second case has its findings as a discussion, which comes before the findings."""
    about = f"Title:Case {example.number}\n\n\npresentation:{example.sections.get('indication', '')}\n\n\n"
    about += f"patient:Age:{example.age} years\nGender:{'Female' if example.sex == 'F' else 'Male'}\n\n\n"
    discussion, findings = (text, "") if example.number % 2 else ("About the disease in general.", text)
    return f"{about}discussion:\n{discussion}\n\n\n\nstudy_findings:\n{findings}\n"
