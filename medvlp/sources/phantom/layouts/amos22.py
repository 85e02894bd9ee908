"""The raw layout of AMOS 2022; see `data_cards/amos22.md`."""

from __future__ import annotations

import json
from collections.abc import Iterable

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._label_maps import dataset_json, label_map
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Intensity, Mask, Study, VolumeFacts

_ENDS = {"train": "Tr", "val": "Va", "test": "Ts"}
_HEADER = (
    *("amos_id", "Patient's Birth Date", "Patient's Sex", "Patient's Age", "Manufacturer's Model Name"),
    *("Manufacturer", "Acquisition Date", "Site"),
)


class Amos22Layout(Layout):
    """Three parts, the test part without label maps; every third volume bears a number of the MR scans."""

    needs = "abdomen"

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by part and number."""
        rows: list[list[object]] = []
        studies = []
        lists: dict[str, list[object]] = {"training": [], "validation": [], "test": []}
        for example in examples:
            assert example.volume is not None
            mr = example.number % 3 == 2
            number = (501 if mr else 1) + example.number // 3 * (1 if mr else 2) + (0 if mr else example.number % 3)
            case, end = f"amos_{number:04d}", _ENDS[example.split]
            image, labels = f"images{end}/{case}.nii.gz", f"labels{end}/{case}.nii.gz"
            self.put_nifti(f"amos22/{image}", example.volume.array, example.volume.affine)
            entry = {"image": f"./{image}", "label": f"./{labels}"}
            masks: tuple[Mask, ...] = ()
            if example.split == "test":
                lists["test"].append({"image": f"./{image}"})
            else:
                lists["training" if example.split == "train" else "validation"].append(entry)
                values = label_map(example.volume, self.card.structures, self.card.phantom)
                self.put_nifti(f"amos22/{labels}", values, example.volume.affine)
                masks = tuple(
                    Mask(case, name, f"amos22/{labels}", (value,)) for value, name in enumerate(self.card.structures, 1)
                )
            rows.append([number, "", example.sex, f"{example.age:03d}Y", "Ingenia", "Philips", "20200131", "A"])
            facts = VolumeFacts(Intensity.STORED if mr else Intensity.HU, label_values=tuple(range(1, 16)))
            studies.append(
                Study(case, UNKNOWN_PATIENT, (ImageRef(case, f"amos22/{image}", "MR" if mr else "CT", facts=facts),),
                      masks=masks, attributes={"manufacturer": "Philips", "model": "Ingenia"}, age=float(example.age),
                      sex=example.sex, site="A", date="20200131", split=example.split)
            )  # fmt: skip
        names = ["arota" if name == "aorta" else name for name in self.card.structures]
        content = dataset_json("AMOS", ["CT"], names, **lists)
        self.put_text("amos22/dataset.json", json.dumps(content, indent=1))
        self.put_csv("labeled_data_meta_0000_0599.csv", _HEADER, rows)
        order = list(_ENDS)
        return sorted(studies, key=lambda study: (order.index(str(study.split)), study.study_id))
