"""The raw layout of TotalSegmentator; see `data_cards/totalsegmentator.md`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._label_maps import label_map
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.sources.phantom.write import nifti
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Mask, Study, VolumeFacts

_HEADER = ("image_id", "age", "gender", "institute", "study_type", "split")
_HEADER_2 = ("manufacturer", "scanner_model", "kvp", "pathology", "pathology_location")


class TotalSegmentatorLayout(Layout):
    """A folder per scan with a file for every structure, empty ones too, and `meta.csv` with its byte order mark."""

    needs = "abdomen"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {"version": ("v1", "v2")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by name."""
        second = self.options["version"] == "v2"
        structures = self.card.structures if second else tuple(self.card.adapter["v1"])
        lines = [";".join((*_HEADER, *(_HEADER_2 if second else ())))]
        studies = []
        for example in examples:
            assert example.volume is not None
            name = f"s{example.number:04d}"
            self.put_nifti(f"{name}/ct.nii.gz", example.volume.array, example.volume.affine)
            values = label_map(example.volume, structures, self.card.phantom)
            empty = nifti(values * 0, example.volume.affine)
            masks = []
            for value, structure in enumerate(structures, 1):
                path, inside = f"{name}/segmentations/{structure}.nii.gz", values == value
                self.put_bytes(path, nifti(inside.astype("uint8"), example.volume.affine) if inside.any() else empty)
                masks.append(Mask(name, structure, path))
            cells = [name, str(example.age), example.sex.lower(), "A", "ct abdomen", example.split]
            attributes = {"study_type": "ct abdomen"}
            if second:
                cells += ["siemens", "", "120.0", "no_pathology", ""]
                attributes |= {"manufacturer": "siemens", "pathology": "no_pathology"}
            lines.append(";".join(cells))
            image = ImageRef(name, f"{name}/ct.nii.gz", "CT", facts=VolumeFacts(Intensity.HU, label_values=(1,)))
            studies.append(
                Study(name, UNKNOWN_PATIENT, (image,), masks=tuple(masks), values={"kvp": 120.0} if second else {},
                      attributes=attributes, age=float(example.age), sex=example.sex, site="A", split=example.split)
            )  # fmt: skip
        self.put_text("meta.csv", "\ufeff" + "\n".join(lines) + "\n")
        return studies
