"""The raw layout of the decathlon; see `data_cards/msd.md`. The abdomen stands in for brain, heart and prostate."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._label_maps import dataset_json, label_map
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.sources.phantom.write import nifti
from medvlp.types import ImageRef, Intensity, Mask, Study, VolumeFacts

_DEFAULT = "Task03_Liver"


class MsdLayout(Layout):
    """One task with its list, training volumes with label maps, test volumes without, and files of macOS."""

    needs = "abdomen"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {
        "task": (None, "Task01_BrainTumour", "Task05_Prostate", "Task10_Colon")
    }

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the task; return its studies by split and number."""
        task = str(self.options["task"] or _DEFAULT)
        facts = self.card.adapter["tasks"][task]
        channels, stem = list(facts["channels"]), task.split("_")[1].lower()
        channel = channels.index(self.options["channel"] or channels[0]) if len(channels) > 1 else None
        intensity = Intensity.HU if facts["modality"] == "CT" else Intensity.STORED
        means = VolumeFacts(intensity, channel=channel, label_values=tuple(range(1, len(facts["structures"]) + 1)))
        studies = []
        lists: dict[str, list[object]] = {"training": [], "test": []}
        for example in examples:
            assert example.volume is not None
            case, test = f"{stem}_{example.number}", example.split == "test"
            image, labels = f"images{'Ts' if test else 'Tr'}/{case}.nii.gz", f"labelsTr/{case}.nii.gz"
            self._volume(f"{task}/{image}", example, len(channels))
            self.put_bytes(f"{task}/{image.replace('/', '/._')}", b"Mac OS X")
            masks: tuple[Mask, ...] = ()
            if test:
                lists["test"].append(f"./{image}")
            else:
                lists["training"].append({"image": f"./{image}", "label": f"./{labels}"})
                values = label_map(example.volume, facts["structures"], self.card.phantom)
                self.put_nifti(f"{task}/{labels}", values, example.volume.affine)
                names = enumerate(facts["structures"], 1)
                masks = tuple(Mask(case, name, f"{task}/{labels}", (value,)) for value, name in names)
            ref = ImageRef(case, f"{task}/{image}", facts["modality"], facts=means)
            studies.append(
                Study(case, case, (ref,), masks=masks, split="test" if test else "train",
                      attributes={} if channel is None else {"channel": channels[channel]})
            )  # fmt: skip
        numbers = {"numTraining": len(lists["training"]), "numTest": len(lists["test"]), "relase": "1.0 01/01/2020"}
        content = dataset_json(stem.upper(), channels, facts["structures"], **numbers, **lists)
        self.put_text(f"{task}/dataset.json", json.dumps(content, indent=1))
        return sorted(studies, key=lambda study: study.split == "test")

    def _volume(self, path: str, example: Example, channels: int) -> None:
        """Write a volume; further channels are the first, 100 higher each."""
        assert example.volume is not None
        array = example.volume.array
        self.put_bytes(path, nifti_channels([array + 100 * place for place in range(channels)], example.volume.affine))


def nifti_channels(channels: list[np.ndarray], affine: np.ndarray) -> bytes:
    """Return a gzipped NIfTI of volumes `[d h w]` on one grid: with four dimensions where they are several."""
    import gzip
    import struct

    if len(channels) == 1:
        return nifti(channels[0], affine)
    data = bytearray(gzip.decompress(nifti(channels[0], affine)))
    depth, height, width = channels[0].shape
    struct.pack_into("<8h", data, 40, 4, width, height, depth, len(channels), 1, 1, 1)
    rest = b"".join(np.ascontiguousarray(channel).tobytes() for channel in channels[1:])
    return gzip.compress(bytes(data) + rest, compresslevel=1, mtime=0)
