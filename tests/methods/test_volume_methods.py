"""What holds for every method of CTs, and for 2D methods on volumes: recipes run, resume, and are saved exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.train import PretrainConfig
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model
from medvlp.methods.base import complete
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.prepare import prepare
from medvlp.track.jsonl import read_lines
from medvlp.train import loop, pretrain
from medvlp.types import TextFeatures
from tests.methods.test_all_methods import QUIET, overrides

OF_VOLUMES = ("ct_clip", "m3d_clip", "merlin", "fvlm", "radclip", "velvet_med", "voco", "simcrop")
IN_3D = ("mgca-ct", "medslip-ct", "m3ae-ct", "conceptclip-ct")
QUESTIONS = ["pleural effusion", "cardiomegaly"]
SMALL = {
    "ct_clip": {"method.image.args": {"dim": 48, "spatial_depth": 1, "temporal_depth": 1, "heads": 2, "head_dim": 16,
                                      "codes": 32}},
    "radclip": {"method.image.input.size": [8, 32, 32]},
    "velvet_med": {"method.image.input.size": [32, 32, 64], "train.batch_size": 4},
    "voco": {"method.options.grid": [1, 2], "method.options.crops": 2, "train.batch_size": 4},
}  # fmt: skip
SMALL_VIT = {"depth": 3, "embed_dim": 48, "num_heads": 2}
"""Settings that make a recipe small beside a size of 32 voxels."""


@pytest.fixture(scope="module")
def ct_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Store of 32 phantom CTs of 32 voxels a side, with organs, labels and reports."""
    folder = tmp_path_factory.mktemp("ct")
    write_layout("phantom_ct", folder / "raw", 32, 3, size=32, image_size=64, options={})
    prepare(
        PrepareConfig.model_validate(
            {
                "source": "phantom_ct",
                "root": folder / "raw",
                "out": folder / "store",
                "num_workers": 1,
                "options": {"masks": "organs"},
            }
        )
    )
    return folder / "store"


def tiny(name: str, store: Path, folder: Path, **changes: Any) -> PretrainConfig:
    settings = QUIET | {"data.store": str(store), "run.dir": str(folder)} | changes
    return load_config(f"configs/pretrain/{name}-tiny.yaml", overrides(settings), PretrainConfig)


def small(name: str, store: Path, folder: Path, **changes: Any) -> PretrainConfig:
    settings: dict[str, Any] = {"method.image.input.size": [32, 32, 32], "train.batch_size": 8} | SMALL.get(name, {})
    family = load_config(
        f"configs/pretrain/{name}-tiny.yaml", overrides({"data.store": "x", "run.dir": "x"}), PretrainConfig
    ).method.image.family  # type: ignore[union-attr]
    settings |= {"method.image.args": SMALL_VIT} if family == "vit" else {}
    return tiny(name, store, folder, **settings, **changes)


def answers(method: Any, batch: Any) -> dict[str, torch.Tensor]:
    """What a user gets of a method: features, texts, answers, heat maps."""

    def encode(texts: Sequence[str]) -> TextFeatures:
        return method.encode_text(method.context.tokenise(texts, method.config.text.max_tokens))

    with torch.inference_mode():
        features = method.encode_stored(batch.pixels)
        asked = [[text] for text in QUESTIONS], [[f"no {text}"] for text in QUESTIONS]
        made = {"tokens": features.tokens, "pooled": features.pooled}
        if method.scores_text:
            made["answers"] = method.zero_shot(features, *asked, encode)
    if method.heat_map_kind is None:
        return made
    with torch.no_grad():
        made["maps"] = method.heat_map(method.normalised(batch.pixels), QUESTIONS, encode)
    grid = made["maps"].shape[2:] if method.config.name == "velvet_med" else features.grid  # of an earlier stage
    assert made["maps"].shape == (len(batch.pixels), len(QUESTIONS), *grid)
    return made


@pytest.mark.parametrize("name", [*OF_VOLUMES, *IN_3D])
def test_a_recipe_trains_every_parameter_resumes_exactly_and_is_saved(
    name: str, ct_store: Path, tmp_path: Path
) -> None:
    settings = {"train.steps": 3, "train.checkpoint_every": 2, "train.ema": 0.9, "train.optimizer.warmup_steps": 1}
    training = loop._Training(
        small(name, ct_store, tmp_path / "whole", **settings), loop.Processes(0, 1, torch.device("cpu"))
    )
    training.run()
    method = training.method
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    rows = [row for row in read_lines(tmp_path / "whole" / "metrics.jsonl") if "train/loss" in row]
    for term in (term for term in method.config.objectives if method.is_on(term)):
        assert all(row[f"train/{term}_count"] > 0 for row in rows), term
        assert all(np.isfinite(row[f"train/{term}"]) for row in rows), term
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000000003")
    pretrain(small(name, ct_store, tmp_path / "resumed", **settings))
    first, second = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "resumed"))
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    loaded = load_model(tmp_path / "whole" / "model").method
    loader = training.data.loader(training.config, validation=True)
    batch = loader.load(0, 0, loader.rows[:2])
    made = answers(loaded, batch)
    assert "answers" not in made or ((made["answers"] >= 0) & (made["answers"] <= 1)).all()
    again = answers(load_model(tmp_path / "resumed" / "model").method, batch)
    for what, values in made.items():
        assert values.isfinite().all(), what
        assert torch.equal(values, again[what]), what


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*OF_VOLUMES, *IN_3D])
def test_100_steps_of_the_tiny_recipe_lower_the_loss(name: str, tmp_path: Path) -> None:
    """By more than its noise, from the first quarter to the last; every term that is on counts and is never zero."""
    write_layout("phantom_ct", tmp_path / "raw", 64, 5, size=64, image_size=64, options={})
    options = {"source": "phantom_ct", "root": tmp_path / "raw", "out": tmp_path / "store"}
    prepare(PrepareConfig.model_validate(options | {"options": {"masks": "organs"}, "num_workers": 1}))
    settings = {"train.steps": 100, "train.log_every": 5, "train.batch_size": 16, "train.optimizer.warmup_steps": 10}
    config = tiny(name, tmp_path / "store", tmp_path / "run", **settings)
    pretrain(config)
    rows = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert len(rows) == 20
    start, end = (np.array([row["train/loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert start.mean() - end.mean() > np.sqrt((start.var(ddof=1) + end.var(ddof=1)) / 5)
    method = load_model(tmp_path / "run" / "model").method
    for term in (term for term in config.method.objectives if method.is_on(term)):
        values = np.array([row[f"train/{term}"] for row in rows])
        assert np.isfinite(values).all(), term
        assert (values != 0).all(), term
        assert len(set(values)) > 1, term
        assert min(row[f"train/{term}_count"] for row in rows) > 0, term


@pytest.mark.parametrize("name", ["villa", "rad_dino", "tcl", "mrm", "refers"])
def test_a_method_of_flat_images_says_so(name: str) -> None:
    image = {"kind": "volume", "family": "vit", "name": "vit_tiny_patch16_224", "patch": [8, 8, 8]}
    config = load_config(
        f"configs/pretrain/{name}-tiny.yaml",
        overrides({"data.store": "x", "run.dir": "x"}),
        PretrainConfig,
    ).method
    volume = type(config).model_validate({**config.model_dump(), "image": {**image, "input": {"size": [32, 32, 32]}}})
    with pytest.raises(UserError, match="does not work with an image tower of kind 'volume'"):
        METHODS.get(name).demands(complete(volume))
