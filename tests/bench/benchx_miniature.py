"""BenchX in miniature: its data sets in their raw layouts, its lists, its encoders in their released formats.

Everything lies in one folder: `raw` with `benchx_splits`, `stores`, `checkpoints`, `tokenizer`, `imagenet`. What is
there is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from medvlp.config.load import load_config
from medvlp.config.prepare import CollectionConfig
from medvlp.sources import SOURCES
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.collection import prepare_collection
from medvlp.types import UNKNOWN_PATIENT, Study
from medvlp.zoo.release import read_release

sys.path.append(str(Path(__file__).parents[1] / "zoo"))
from released_files import weights_of, wrap

COLLECTION, FIXED = "configs/data/benchx.yaml", "configs/data/benchx_fixed.yaml"
SIDE = 64
SEEDS = {COLLECTION: {"object_cxr": 47}, FIXED: {"object_cxr": 47, "rsna_pneumonia": 8}}
"""Those of the other data sets follow from their order: every split must show what the tasks ask."""
ENCODERS = (
    *("convirt", "gloria", "medclip_r50", "medclip_vit", "medklip", "mflag", "mgca_r50", "mgca_vit", "mrm"),
    *("ptunifier", "refers"),
)
WITH_TEXTS = ("convirt", "medclip_r50", "medclip_vit", "mflag", "mgca_vit")
"""Whose texts are read beside the images of BenchX's view; those of two others need a view of their own."""
ANOTHER_VIEW = ("gloria", "mgca_r50")
FEWEST = 12
"""Images of the small lists, so that they hold both classes: a hundredth of a miniature is none."""


def make(
    folder: Path,
    oracles: Path,
    studies: int = 60,
    encoders: tuple[str, ...] = ENCODERS,
    collection: str = COLLECTION,
) -> list[str]:
    """Make the miniature and return the encoders as arguments of `medvlp bench run`."""
    make_stores(folder, studies, collection=collection)
    make_checkpoints(folder / "checkpoints", oracles, encoders)
    make_timm_folder(folder / "imagenet")
    return specs(folder, encoders)


def specs(folder: Path, encoders: tuple[str, ...] = ENCODERS) -> list[str]:
    """Return the specs of the encoders, those with texts first in BenchX's view."""
    words, found = f"tokenizer={folder / 'tokenizer'}", []
    for name in encoders:
        file = folder / "checkpoints" / f"{name}.pt"
        found.append(f"{name}:{file}" + (f"?{words}" if name in WITH_TEXTS else ""))
        if name in ANOTHER_VIEW:
            found.append(f"{name}:{file}?view=native&{words}")
    return [*found, f"timm:{folder / 'imagenet'}"]


def make_stores(folder: Path, studies: int, only: tuple[str, ...] = (), collection: str = COLLECTION) -> None:
    """Write raw data, lists and stores of a shipped collection, or of some of its data sets."""
    shipped = load_config(
        collection, (), CollectionConfig, {"root": str(folder / "raw"), "out": str(folder / "stores")}
    )
    tree = shipped.resolved()
    tree["stores"] = {name: entry for name, entry in tree["stores"].items() if not only or name in only}
    for number, entry in enumerate(tree["stores"].values()):
        root = folder / "raw" / entry["root"]
        if not root.exists():
            root.parent.mkdir(parents=True, exist_ok=True)
            write_layout(
                entry["source"],
                root,
                studies,
                SEEDS[collection].get(entry["source"], 5 + number),
                size=32,
                image_size=SIDE,
                options=entry["options"] or None,
            )
        if entry["split_lists"] is not None:
            write_lists(folder / "raw" / entry["split_lists"], entry["source"], root, entry["options"])
        entry["image"]["size"], entry["num_workers"] = SIDE, 1
    prepare_collection(CollectionConfig.model_validate(tree))


def write_lists(folder: Path, source: str, root: Path, options: dict[str, Any]) -> None:
    """Write lists like BenchX's: official splits, else by patients; those of NIH for few labels are not nested."""
    if folder.exists():
        return
    studies = list(SOURCES.get(source)(root, options).studies())
    splits: dict[str, list[Study]] = {"train": [], "val": [], "test": []}
    if {study.split for study in studies} == splits.keys():
        for study in studies:
            splits[str(study.split)].append(study)
    else:
        for number, group in enumerate(_by_patient(studies)):
            splits[("train", "train", "val", "train", "test")[number % 5]] += group
    train = splits["train"]
    tenth = train[:: max(1, len(train) // FEWEST)][:FEWEST]
    hundredth = (
        train[1 :: max(1, len(train) // FEWEST)][:FEWEST] if source == "nih_chestxray14" else tenth[: FEWEST // 2]
    )
    splits |= {"train_10": tenth, "train_1": hundredth}
    folder.mkdir(parents=True)
    for name, own in splits.items():
        # Names of COVIDx are unique only with their folder.
        lines = [image.path if source == "covidx" else Path(image.path).name for s in own for image in s.images]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


def _by_patient(studies: list[Study]) -> Iterator[list[Study]]:
    groups: dict[str, list[Study]] = {}
    for study in studies:
        owner = study.study_id if study.patient_id == UNKNOWN_PATIENT else f"patient {study.patient_id}"
        groups.setdefault(owner, []).append(study)
    yield from groups.values()


def make_checkpoints(folder: Path, oracles: Path, names: tuple[str, ...]) -> None:
    """Rebuild released checkpoints by the weights rule, and a tokenizer that all their text towers take."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        file = folder / f"{name}.pt"
        if not file.exists():
            torch.save(wrap(weights_of(oracles, name), read_release(name).container), file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
    make_tokenizer(folder.parent / "tokenizer")


def make_tokenizer(folder: Path) -> None:
    """Save a small tokenizer of the phantom's words in the format of transformers."""
    from medvlp.text.tokenizer import Tokenizer

    if not folder.exists():
        texts = ["there is a left pleural effusion", "the heart is enlarged", "no pneumothorax", "pulmonary edema"]
        Tokenizer.train(texts * 4, 256).save(folder)


def make_timm_folder(folder: Path, name: str = "resnet18") -> None:
    """Save a timm model as the Hub holds those pre-trained on ImageNet; its weights are drawn."""
    import timm
    from timm.models import save_for_hf

    if not folder.exists():
        with torch.random.fork_rng():
            torch.manual_seed(1)
            save_for_hf(timm.create_model(name), folder)
