"""BTCV ("Beyond the Cranial Vault"), abdomen: portal venous CT with 13 structures in one label map.

Guarantee: training cases are 0001 to 0010 and 0021 to 0040, test cases 0061 to 0080; a file of another number is a
`Problem`. Cases come in the order of their numbers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from medvlp.errors import UserError
from medvlp.sources._label_maps import label_map_masks, values_of
from medvlp.sources._volumes import nifti_files
from medvlp.sources.base import Source
from medvlp.types import ImageRef, Intensity, Study, VolumeFacts


class Btcv(Source):
    """The folder `RawData`, or the folder that holds it; see `data_cards/btcv.md`."""

    def studies(self) -> Iterator[Study]:
        """Yield one study per volume.

        Raises:
            UserError: There is no volume, or a full edition has other counts than the card.
        """
        self.problems, self.counts = [], Counter()
        inside = "RawData/" if (self.root / "RawData").is_dir() else ""
        parts = {part: nifti_files(self, [f"{inside}{part}/img/*"]) for part in ("Training", "Testing")}
        labels = nifti_files(self, [f"{inside}Training/label/*"])
        if not any(parts.values()):
            fix = "Give the unpacked folder RawData as the root."
            raise UserError("There is no volume in Training/img/ or Testing/img/.", self.root, fix)
        found = {f"{part} volumes": len(cases) for part, cases in parts.items()}
        self.check_counts({"volumes": sum(found.values()), **found}, "volumes")
        images = {_number(case) or case for case in parts["Training"]}
        for case in sorted(labels):
            if (_number(case) or case) not in images:
                self.problem(labels[case], "a label map without volume", "Download Training/img again.", case)
        maps = {_number(case): path for case, path in labels.items()}
        for part, cases in parts.items():
            for case, path in cases.items():
                number = _number(case)
                split = self._split(part, number)
                if number is None or split is None:
                    reason = f"the number is none of the {part.lower()} cases"
                    self.problem(path, reason, "Move other volumes out of this folder.", case)
                    continue
                if part == "Training" and number not in maps:
                    self.problem(path, "the volume has no label map", "Download Training/label again.", number)
                path_of_map = maps.get(number) if part == "Training" else None
                facts = VolumeFacts(Intensity.HU, label_values=values_of(self.card.structures))
                yield Study(
                    study_id=number,
                    patient_id=number,
                    images=(ImageRef(number, path, "CT", facts=facts),),
                    masks=() if path_of_map is None else label_map_masks(number, path_of_map, self.card.structures),
                    split=split,
                )

    def _split(self, part: str, number: str | None) -> str | None:
        """Return the split of a case; None where the part has no case of this number."""
        ranges = self.card.adapter["cases"]
        for split, spans in ranges[part].items():
            if number is not None and any(first <= int(number) <= last for first, last in spans):
                return "train" if split == "val" and self.options["val"] == "none" else str(split)
        return None


def _number(case: str) -> str | None:
    """Return 0001 of img0001 or label0001, None for another name."""
    match = re.fullmatch(r"(?:img|label)(\d{4})", case)
    return match[1] if match else None
