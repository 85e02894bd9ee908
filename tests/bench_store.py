"""A tiny prepared store whose positives are brighter, a task and suite on it, and a saved run with a text side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import nih_layout as nih
import numpy as np
import torch
import yaml

from medvlp.config.methods import MethodConfig
from medvlp.config.prepare import PrepareConfig
from medvlp.config.preprocessing import Preprocessing, StoredImageConfig
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.methods import METHODS
from medvlp.methods._artifact import save_model
from medvlp.methods.context import MethodContext
from medvlp.store.prepare import prepare
from medvlp.text.tokenizer import Tokenizer

TASK: dict[str, Any] = {
    "kind": "task",
    "name": "tiny",
    "version": 1,
    "dataset": "nih_chestxray14",
    "labels": [
        {
            "name": "Pneumonia",
            "positive": "Pneumonia",
            "negative": "No Finding",
            "prompts": {"positive": ["pneumonia"], "negative": ["no pneumonia"]},
        }
    ],
    "linear_probe_c": [0.01, 1.0],
    "knn_k": [1, 5],
    "fine_tune": {"epochs": 2, "batch_size": 8, "lr": 0.003, "warmup_steps": 1},
}
RANDOM = "random:test_vit@32"


def make_store(folder: Path, patients: int = 60, test_patients: int = 20, images_each: int = 1) -> Path:
    """Write `folder`/store: every second patient has pneumonia and brighter images."""
    layout = nih.small(patients, test_patients, images_each)
    root = layout.write(folder / "raw")
    for line in layout.rows:
        name, labels = line.split(",")[:2]
        if labels != "No Finding":
            path = str(root / "images" / name)
            image = cv2.imread(path, cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(path, np.clip(image.astype(int) + 40, 1, 255).astype(np.uint8))
    options: dict[str, Any] = {"image": {"size": 32}, "num_workers": 1, "val_fraction": 0.3}
    prepare(PrepareConfig(source="nih_chestxray14", root=root, out=folder / "store", **options))
    return folder / "store"


def task(**changes: Any) -> TaskConfig:
    """Return the tiny task with fields replaced."""
    return TaskConfig.model_validate(TASK | changes)


def suite(folder: Path, entries: list[dict[str, Any]], name: str = "tiny", **changes: Any) -> SuiteConfig:
    """Write the tiny task as a file, return a suite on it; `changes` are fields of the task."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(TASK | {"name": name} | changes))
    given = [{"task": str(path), **entry} for entry in entries]
    return SuiteConfig.model_validate({"name": "tiny", "version": 1, "entries": given, "bootstrap_resamples": 50})


def make_run(folder: Path) -> Path:
    """Save a MedCLIP run with a tokenizer, untrained."""
    tokenizer = Tokenizer.train(["no pneumonia is seen", "left pleural effusion", "the heart is normal"] * 4, 128)
    config = MethodConfig.model_validate(
        {
            "name": "medclip",
            "image": {"name": "test_vit", "input": {"size": 32, "mean": [0.45], "std": [0.3]}},
            "text": {"hidden": 16, "layers": 1, "heads": 2, "max_tokens": 10},
            "projection": {"dim": 8},
        }
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        method = METHODS.get("medclip")(config, MethodContext.of(tokenizer, ["Pneumonia"]))
    preprocessing = Preprocessing(stored=StoredImageConfig(size=32), input=config.image.input)
    save_model(folder / "model", method, preprocessing=preprocessing, tokenizer=tokenizer, record={})
    return folder
