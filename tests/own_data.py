"""A tiny export of a hospital, its store, and the smallest fine-tuning on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medvlp.config.finetune import FinetuneConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.sources.phantom.layouts._dicom import radiograph_file
from medvlp.store.prepare import prepare

SECRET = "Doe^Jane"
NAMES = ("Blob", "Bar", "Rare")


def picture(blob: bool, bar: bool, seed: int, side: int = 40) -> np.ndarray:
    """Return a noisy square, with a bright blob and a dark bar where they are there."""
    image = np.random.default_rng(seed).normal(120, 12, (side, side - 4))
    if blob:
        image[8:16, 10:20] += 70
    if bar:
        image[26:30, 4:-4] -= 60
    return np.clip(image, 0, 255).astype(np.uint8)


def write_file(path: Path, number: int, blob: bool = False, bar: bool = False, **tags: Any) -> Path:
    """Write one radiograph of a patient with a name."""
    patient = f"MRN{4711 + number}"
    ids = {"PatientName": SECRET, "PatientID": patient, "AccessionNumber": f"ACC{number:04d}"}
    ids |= {"StudyInstanceUID": f"1.2.9.{number}", "SeriesInstanceUID": f"1.2.9.{number}.1", "StudyDate": "20240105"}
    about = {"PatientSex": "FM"[number % 2], "PatientAge": f"{20 + number % 60:03d}Y", "Modality": "DX"}
    about |= {"ViewPosition": ("PA", "AP")[number % 3 == 0], "BodyPartExamined": "CHEST"}
    given = {**ids, **about, **tags}
    pixels = given.pop("pixels", None)
    if pixels is None:
        pixels = picture(blob, bar, number)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(radiograph_file(pixels, f"1.2.9.{number}.1.1", **given))
    return path


def write_export(root: Path, patients: int = 96, splits: bool = False) -> Path:
    """Write `root`: one radiograph a patient, and labels by accession number, some of them unknown."""
    rows = ["AccessionNumber;split;" + ";".join(NAMES)]
    for number in range(patients):
        blob, bar = number % 2 == 0, number % 3 == 0
        write_file(root / f"{number % 4}" / f"im{number:03d}.dcm", number, blob, bar)
        split = ("train", "train", "val", "test")[number // 2 % 4] if splits else ""
        labels = [int(blob), "" if number % 7 == 0 else int(bar), 0]
        rows.append(";".join(map(str, [f"ACC{number:04d}", split, *labels])))
    (root / "labels.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def make_store(folder: Path, patients: int = 96, splits: bool = False, **options: Any) -> Path:
    """Write `folder`/export and `folder`/store; the salt lies in `folder`/private."""
    root = write_export(folder / "export", patients, splits)
    given: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, **options}
    given["identifiers"] = {"salt": folder / "private" / "salt"} | given.get("identifiers", {})
    source = {"source": "dicom_folder", "root": root, "out": folder / "store", "options": {"labels": "labels.csv"}}
    prepare(PrepareConfig.model_validate(source | given))
    return folder / "store"


def config(store: Path, run: Path, **changes: Any) -> FinetuneConfig:
    """Return a configuration of seconds; `changes` are sections laid over it key by key."""
    tree: dict[str, Any] = {
        "run": {"dir": str(run), "seed": 1},
        "encoder": "random:test_vit@32",
        "data": {"store": str(store), "num_workers": 1, "val_fraction": 0.25, "test_fraction": 0.25},
        "train": {"epochs": 4, "batch_size": 8, "lr": 0.003, "warmup_steps": 2},
        "device": "cpu",
        "checkpoint_every": 3,
        "log_every": 2,
        "bootstrap_resamples": 100,
        "track": {"mlflow": False},
    }
    for name, value in changes.items():
        tree[name] = {**tree.get(name, {}), **value} if isinstance(value, dict) else value
    return FinetuneConfig.model_validate(tree)
