"""What holds for every method: it is described truly, its recipe runs, resumes and is saved exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from medvlp.config.load import load_config
from medvlp.config.methods import MethodConfig
from medvlp.config.train import PretrainConfig
from medvlp.config.tree import read_yaml
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model
from medvlp.methods.base import Method, complete
from medvlp.track.jsonl import read_lines
from medvlp.train import loop, pretrain
from medvlp.train.checkpoint import list_checkpoints, read_checkpoint
from medvlp.types import TextFeatures
from medvlp.zoo import load_encoder

ROOT = Path(__file__).parents[2]
ALL = sorted(file.stem for file in (ROOT / "configs/methods").glob("*.yaml"))
NAMES = [name for name in ALL if "kind" not in read_yaml(ROOT / f"configs/methods/{name}.yaml")["image"]]
"""Methods of images; those of volumes and clips have tests of their own."""
PUBLISHED = [
    *("medslip", "medklip", "devide", "keep", "arl", "m3ae", "ptunifier", "mgca", "gloria", "conceptclip", "villa"),
    *("rad_dino", "llm2clip", "convirt", "refers", "medclip", "m_flag", "mrm", "clip", "siglip", "albef", "tcl"),
    *("filip", "fdt"),
]
QUIET = {
    "run.seed": 5,
    "data.num_workers": 0,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.accumulate": 1,
    "train.gradient_checkpointing": False,
    "train.compile": False,
    "train.log_every": 1,
    "train.validate_every": 100,
    "track.mlflow": False,
}
QUESTIONS = ["pleural effusion", "cardiomegaly"]
SMALL_TEXT = {"hidden": 48, "layers": 4, "heads": 2, "vocab_size": 600}


def overrides(changes: dict[str, Any]) -> list[str]:
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...').strip()}"
        for key, value in changes.items()
    ]


def tiny(name: str, store: Path, folder: Path, **changes: Any) -> PretrainConfig:
    settings = QUIET | {"data.store": str(store), "run.dir": str(folder)} | changes
    return load_config(f"configs/pretrain/{name}-tiny.yaml", overrides(settings), PretrainConfig)


def recipe(name: str, store: Path, folder: Path) -> PretrainConfig:
    """Return the paper's recipe with the smallest towers of its kind, for one step of a small batch."""
    small = load_config(
        f"configs/pretrain/{name}-tiny.yaml", overrides({"data.store": "x", "run.dir": "x"}), PretrainConfig
    ).method
    image = read_yaml(ROOT / f"configs/methods/{name}.yaml")["image"]
    changes: dict[str, Any] = {
        "data.store": str(store),
        "run.dir": str(folder),
        "method.options": dict(small.options),
        "method.projection": small.projection.model_dump(mode="json"),
        "train.batch_size": 8,
        "train.steps": 1,
        "train.optimizer.warmup_steps": 0,
    }
    if image["name"].startswith("resnet"):
        changes["method.image.name"] = "resnet10t"
    else:
        changes["method.image.args"] = {**image.get("args", {}), "embed_dim": 48, "depth": 2, "num_heads": 2}
    if small.text is not None:
        changes |= {f"method.text.{key}": value for key, value in SMALL_TEXT.items()}
    return load_config(f"configs/pretrain/{name}.yaml", overrides(QUIET | changes), PretrainConfig)


def outputs(method: Method, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a user gets of a method: features, texts, answers."""

    def encode(texts: Sequence[str]) -> TextFeatures:
        assert method.config.text is not None
        return method.encode_text(method.context.tokenise(texts, method.config.text.max_tokens))

    with torch.inference_mode():
        features = method.encode_stored(pixels)
        made = {"tokens": features.tokens, "pooled": features.pooled}
        if method.uses_text:
            made["text"] = encode(["left pleural effusion"]).pooled
        if method.scores_text:
            asked = [[text] for text in QUESTIONS], [[f"no {text}"] for text in QUESTIONS]
            made["answers"] = method.zero_shot(features, *asked, encode)
    return made


def test_all_published_methods_are_there() -> None:
    assert set(PUBLISHED) <= set(NAMES)
    assert {"ct_clip", "m3d_clip", "merlin", "fvlm", "radclip"} <= set(ALL) - set(NAMES)
    for name in PUBLISHED:
        for suffix in ("", "-tiny"):
            assert (ROOT / f"configs/pretrain/{name}{suffix}.yaml").is_file()


@pytest.mark.parametrize("name", ALL)
def test_the_description_is_true(name: str) -> None:
    tree = read_yaml(ROOT / f"configs/methods/{name}.yaml")
    about = tree.pop("about")
    kind = METHODS.get(name)
    config = complete(MethodConfig.model_validate(tree))
    assert tuple(about["needs"]) == kind.demands(config).names
    assert about["heat_map"] == kind.heat_map_kind
    assert {"title", "paper", "year", "parts", "needs", "faithful", "heat_map"} <= set(about)
    assert about["faithful"] is True or about["note"]
    assert (config.text is not None) == kind.uses_text


@pytest.mark.parametrize("name", NAMES)
def test_one_step_of_the_recipe_trains_every_parameter_and_is_saved_exactly(name, phantom_store, tmp_path) -> None:
    config = recipe(name, phantom_store, tmp_path / "run")
    training = loop._Training(config, loop.Processes(0, 1, torch.device("cpu")))
    training.run()
    method = training.method
    assert [key for key, p in method.named_parameters() if p.requires_grad and p.grad is None] == []
    metrics = read_lines(tmp_path / "run" / "metrics.jsonl")[0]
    terms = [term for term in config.method.objectives if method.is_on(term)]
    assert terms
    for term in terms:
        assert metrics[f"train/{term}_count"] > 0, term
    encoder = load_encoder(str(tmp_path / "run"))
    loaded = load_model(tmp_path / "run" / "model").method
    parts = read_checkpoint(list_checkpoints(tmp_path / "run" / "checkpoints")[-1]).tensors
    method.load_state_dict(parts["model"] | parts.get("lookahead", {}) | parts.get("average", {}))
    size = config.method.image.input.size
    pixels = torch.randint(0, 256, (2, 1, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made, saved = outputs(method.eval(), pixels), outputs(loaded, pixels)
    assert made.keys() == saved.keys()
    for what, values in made.items():
        assert torch.equal(values, saved[what]), what
        assert values.isfinite().all(), what
    if method.scores_text:
        assert made["answers"].shape == (2, 2)
        assert ((made["answers"] >= 0) & (made["answers"] <= 1)).all()
        answers = encoder.zero_shot_stored(pixels[:, 0].numpy(), QUESTIONS)
        torch.testing.assert_close(answers, made["answers"].float(), rtol=1e-4, atol=1e-6)
    if method.heat_map_kind is not None:
        maps = encoder.heat_maps_stored(pixels[:, 0].numpy(), ["left pleural effusion", "cardiomegaly"])
        assert maps.shape[:2] == (2, 2)
        assert torch.as_tensor(maps).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_ends_with_the_same_bits(name, phantom_store, tmp_path) -> None:
    settings = {"train.steps": 4, "train.batch_size": 8, "train.checkpoint_every": 2, "train.ema": 0.9}
    settings |= {"method.image.input.size": 64} if name != "rad_dino" else {}
    whole = pretrain(tiny(name, phantom_store, tmp_path / "whole", **settings))
    shutil.copytree(whole, tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "model")
    shutil.rmtree(tmp_path / "resumed" / "checkpoints" / "step_000000004")
    resumed = pretrain(tiny(name, phantom_store, tmp_path / "resumed", **settings))
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed))
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", NAMES)
def test_200_steps_of_the_tiny_recipe_lower_the_loss(name, phantom_store, tmp_path) -> None:
    """By more than its noise, from the first quarter to the last; every term that is on counts and is never zero."""
    settings = {"train.steps": 200, "train.log_every": 10, "train.batch_size": 16}
    config = tiny(name, phantom_store, tmp_path / "run", **settings)
    pretrain(config)
    rows = [row for row in read_lines(tmp_path / "run" / "metrics.jsonl") if "train/loss" in row]
    assert len(rows) == 20
    start, end = (np.array([row["train/loss"] for row in part]) for part in (rows[:5], rows[-5:]))
    assert start.mean() - end.mean() > np.sqrt((start.var(ddof=1) + end.var(ddof=1)) / 5)
    method = load_model(tmp_path / "run" / "model").method
    terms = [term for term in config.method.objectives if method.is_on(term)]
    assert terms
    for term in terms:
        values = np.array([row[f"train/{term}"] for row in rows])
        assert np.isfinite(values).all(), term
        assert (values != 0).all(), term
        assert len(set(values)) > 1, term
        assert min(row[f"train/{term}_count"] for row in rows) > 0, term
