"""The raw layout of RAD-ChestCT; see `data_cards/rad_chestct.md`."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from medvlp.sources.phantom.examples import Example
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import PRESENT, ImageRef, Intensity, Study, VolumeFacts

_SPLITS = {"train": ("train", "trn", "imgtrain_extra", "imgtrain"), "val": ("valid", "val", "imgvalid", "imgvalid_a")}
_SPLITS["test"] = ("test", "tst", "imgtest", "imgtest_b")
_LOCATIONS = ("right_upper", "left_lower", "heart", "other_location")


class RadChestCtLayout(Layout):
    """NPZ files whose axes run towards inferior, posterior and left; each present finding stands at one location."""

    needs = "volumes"
    label_values = (1.0, 0.0)
    editions: ClassVar = {"labels": (84, 16)}

    def write(self, examples: Iterable[Example]) -> list[Study]:
        """Write the data set; return its studies in the order of their names."""
        summary: list[list[Any]] = []
        metadata: list[list[Any]] = [["RHAA00001_5.npz", "trn99999", "mrn99999", "", "[0.8, 0.8, 0.8]"]]
        tables: dict[str, list[list[Any]]] = {names[0]: [] for names in _SPLITS.values()}
        studies = []
        for example in examples:
            assert example.volume is not None
            split, start, chosen_set, subset = _SPLITS[example.split]
            name, patient = f"{start}{example.number + 1:05d}", f"mrn{example.patient + 1:05d}"
            labels = self.labels(example)
            step = float(np.linalg.norm(example.volume.affine[:3, 0]))
            summary.append([patient, name, chosen_set, subset])
            metadata.append([f"{name}.npz", name, patient, "RAI", str([step] * 3)])
            tables[split].append([name, *self._cells(labels, example.number)])
            self._volume(name, example.volume.array)
            affine = ((-step, 0.0, 0.0, 0.0), (0.0, -step, 0.0, 0.0), (0.0, 0.0, -step, 0.0), (0.0, 0.0, 0.0, 1.0))
            image = ImageRef(name, f"{name}.npz", "CT", facts=VolumeFacts(Intensity.HU, affine=affine))
            studies.append(
                Study(name, patient, (image,), labels=self._read_back(labels), split=example.split,
                      subsets=tuple(dict.fromkeys((chosen_set, subset))))
            )  # fmt: skip
        self.put_csv("Summary_3630.csv", ("MRN_DEID", "NoteAcc_DEID", "Set_Assigned", "Subset_Assigned"), summary)
        header = ("VolumeAcc_DEID", "NoteAcc_DEID", "MRN_DEID", "orig_orientation", "final_spacing")
        self.put_csv("CT_Scan_Metadata_Complete_35747.csv", header, metadata)
        columns = [f"{finding}*{location}" for finding in self.card.labels for location in _LOCATIONS]
        for split, rows in tables.items():
            self.put_csv(f"img{split}_Abnormality_and_Location_Labels.csv", ("NoteAcc_DEID", *columns), rows)
        return sorted(studies, key=lambda study: study.study_id)

    def _cells(self, labels: dict[str, float], number: int) -> list[float]:
        return [
            float(labels[finding] == PRESENT and (place + number) % len(_LOCATIONS) == 0)
            for finding in self.card.labels
            for place in range(len(_LOCATIONS))
        ]

    def _read_back(self, labels: dict[str, float]) -> dict[str, float]:
        if self.options["labels"] == 84:
            return {finding: labels[finding] for finding in self.card.labels}
        made_of = self.card.adapter["findings_16"]
        return {finding: max(labels[part] for part in parts) for finding, parts in made_of.items()}

    def _volume(self, name: str, array: np.ndarray) -> None:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, ct=array[::-1, ::-1, ::-1])
        self.put_bytes(f"{name}.npz", buffer.getvalue())
