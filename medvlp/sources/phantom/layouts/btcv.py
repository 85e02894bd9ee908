"""The raw layout of BTCV; see `data_cards/btcv.md`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from medvlp.errors import UserError
from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts._label_maps import label_map
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import ImageRef, Intensity, Mask, Study, VolumeFacts

_NUMBERS = {"train": [*range(1, 11), *range(21, 35)], "val": list(range(35, 41)), "test": list(range(61, 81))}


class BtcvLayout(Layout):
    """Training volumes with label maps, test volumes without; a full split hands on to the training cases."""

    needs = "abdomen"
    editions: ClassVar[dict[str, tuple[object, ...]]] = {"val": ("common", "none")}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies by number.

        Raises:
            UserError: There are more examples than the data set has numbers.
        """
        free = {split: list(numbers) for split, numbers in _NUMBERS.items()}
        studies = []
        for example in examples:
            assert example.volume is not None
            part = next((split for split in (example.split, "train", "test", "val") if free[split]), None)
            if part is None:
                raise UserError("BTCV has 50 numbers, and there are more studies.", fix="Write 50 studies or fewer.")
            number = f"{free[part].pop(0):04d}"
            folder = "RawData/Testing" if part == "test" else "RawData/Training"
            path, labels = f"{folder}/img/img{number}.nii.gz", f"{folder}/label/label{number}.nii.gz"
            self.put_nifti(path, example.volume.array, example.volume.affine)
            split = "train" if part == "val" and self.options["val"] == "none" else part
            image = ImageRef(number, path, "CT", facts=VolumeFacts(Intensity.HU, label_values=tuple(range(1, 14))))
            study = Study(number, number, (image,), split=split)
            if part != "test":
                values = label_map(example.volume, self.card.structures, self.card.phantom)
                self.put_nifti(labels, values, example.volume.affine)
                masks = [Mask(number, name, labels, (value,)) for value, name in enumerate(self.card.structures, 1)]
                study = replace(study, masks=tuple(masks))
            studies.append(study)
        return sorted(studies, key=lambda study: study.study_id)
