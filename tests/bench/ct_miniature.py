"""The suite of CT in miniature: its data sets in their raw layouts, their stores, and an encoder of volumes with texts.

Everything lies in one folder: `raw`, `stores`, `run`.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch

from medvlp.bench.suite import load_suite, resolve_tasks
from medvlp.config.load import load_config
from medvlp.config.methods import MethodConfig
from medvlp.config.prepare import CollectionConfig
from medvlp.config.preprocessing import StoredVolumeConfig, VolumePreprocessing
from medvlp.methods import METHODS
from medvlp.methods._artifact import save_model
from medvlp.methods.context import MethodContext
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.collection import prepare_collection
from medvlp.text.tokenizer import Tokenizer

COLLECTION, SUITE = "configs/data/ct.yaml", "benchmarks/suites/ct.yaml"
SIDE = 32
SEED = 5
STUDIES = {"ct_rate": 48, "rad_chestct": 24, "btcv": 12, "amos22": 12, "totalsegmentator": 12, "luna16": 80}
TEXTS = ["a lung nodule is present", "no pleural effusion", "the heart is enlarged", "emphysema of both lungs"]


def make_stores(folder: Path, only: Collection[str] = (), studies: int | None = None) -> None:
    """Write raw data and stores of the shipped collection, or of some of its data sets with so many studies."""
    given = {"root": str(folder / "raw"), "out": str(folder / "stores")}
    tree = load_config(COLLECTION, (), CollectionConfig, given).resolved()
    tree["stores"] = {name: entry for name, entry in tree["stores"].items() if not only or name in only}
    for name, entry in tree["stores"].items():
        root, count = folder / "raw" / entry["root"], studies or STUDIES[name]
        root.parent.mkdir(parents=True, exist_ok=True)
        write_layout(entry["source"], root, count, SEED, size=SIDE, options=entry["options"] or None)
        entry["num_workers"] = 1
    prepare_collection(CollectionConfig.model_validate(tree))


def make_run(folder: Path) -> Path:
    """Save an untrained CLIP of volumes."""
    tokenizer = Tokenizer.train(TEXTS * 4, 256)
    taken = {"size": (16, 16, 16), "spacing_mm": (20.0, 20.0, 20.0)}
    tower = {"kind": "volume", "name": "vit_tiny_patch16_224", "patch": (4, 4, 4), "args": {"depth": 2}}
    config = MethodConfig.model_validate(
        {
            "name": "clip",
            "image": {**tower, "input": taken},
            "text": {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 32, "vocab_size": 256},
            "projection": {"dim": 8},
        }
    )
    torch.manual_seed(7)  # not the seed of the untrained tower
    method = METHODS.get("clip")(config, MethodContext.of(tokenizer, []))
    preprocessing = VolumePreprocessing(stored=StoredVolumeConfig(), input=config.image.input)  # type: ignore[arg-type]
    save_model(folder / "model", method, preprocessing=preprocessing, tokenizer=tokenizer, record={})
    return folder


def changes() -> list[str]:
    """Return the overrides that make the suite small: one fraction, one seed, two steps, small heads."""
    found = ["entries.*.seeds=[0]", "bootstrap_resamples=50", "permutations=100"]
    found += [f"entries.*.set.fine_tune.{text}" for text in ("steps=2", "warmup_steps=1", "batch_size=2")]
    for name, task in resolve_tasks(load_suite(SUITE)).items():
        head = f"entries.{name}"
        if task.type == "volume_segmentation":
            found += [f"{head}.set.{text}" for text in ("fine_tune.validate_every=2", "volume_segmentation.channels=4")]
            found.append(f"{head}.set.volume_segmentation.spacing_mm=[20.0,20.0,20.0]")
        if task.retrieval.pool is not None:
            found.append(f"{head}.set.retrieval.pool={ {100: 3, 500: 4, 1000: 5}[task.retrieval.pool] }")
    small = [f"decoder.{text}" for text in ("width=32", "hidden=32", "layers=1", "heads=2", "memory_heads=2")]
    small += ["max_tokens=12", "min_count=1", "beams=1"]
    return [*found, *(f"entries.ct_rate_reports.set.reports.{text}" for text in small)]
