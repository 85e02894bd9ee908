"""Writes tiny data sets in the exact raw layout of NIH ChestX-ray14, with made-up images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@dataclass
class Layout:
    """What to write; change a field, then call `write`."""

    rows: list[str] = field(default_factory=list)
    lists: dict[str, list[str] | None] = field(default_factory=dict)
    boxes: list[str] = field(default_factory=list)
    header: str = HEADER
    box_header: str = BOX_HEADER
    table: str = "Data_Entry_2017_v2020.csv"
    numbered_folders: bool = False
    images: list[str] = field(default_factory=list)
    side: int = 24

    def write(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        (root / self.table).write_text("\n".join([self.header, *self.rows]) + "\n")
        for name, lines in self.lists.items():
            if lines is not None:
                (root / name).write_text("\n".join(lines) + "\n" if lines else "")
        if self.boxes:
            (root / "BBox_List_2017.csv").write_text("\n".join([self.box_header, *self.boxes]) + "\n")
        for place, name in enumerate(self.images):
            folder = root / (f"images_{place % 12 + 1:03d}/images" if self.numbered_folders else "images")
            folder.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(folder / name), picture(place, self.side))
        return root


def picture(seed: int, side: int) -> np.ndarray:
    """A noisy picture that differs from seed to seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6)).astype(np.float32)
    smooth = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth + rng.normal(0, 4, (side, side)), 1, 255).astype(np.uint8)


def row(
    patient: int, follow_up: int = 0, labels: str = "No Finding", age: str = "58", sex: str = "M", view: str = "PA"
) -> str:
    return f"{name(patient, follow_up)},{labels},{follow_up},{patient},{age},{sex},{view},2894,2729,0.143,0.143"


def name(patient: int, follow_up: int = 0) -> str:
    return f"{patient:08d}_{follow_up:03d}.png"


def small(patients: int = 12, test_patients: int = 4, images_each: int = 1) -> Layout:
    """`patients` patients with the last `test_patients` in the test list; every second one has Pneumonia."""
    keys = [(patient, follow_up) for patient in range(1, patients + 1) for follow_up in range(images_each)]
    first_test = patients - test_patients + 1
    return Layout(
        rows=[row(p, f, "Pneumonia|Edema" if p % 2 else "No Finding", view="AP" if p % 3 else "PA") for p, f in keys],
        lists={
            "train_val_list.txt": [name(*key) for key in keys if key[0] < first_test],
            "test_list.txt": [name(*key) for key in keys if key[0] >= first_test],
        },
        images=[name(*key) for key in keys],
    )
