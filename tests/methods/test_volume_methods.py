"""What holds for every method of CTs, and for 2D methods on volumes: recipes run, resume, and are saved exactly."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medvlp.config.load import load_config
from medvlp.config.prepare import PrepareConfig
from medvlp.config.train import PretrainConfig
from medvlp.data.pretraining import load_data
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model
from medvlp.methods.base import complete
from medvlp.methods.context import MethodContext
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


@pytest.mark.parametrize("name", ["clip", "convirt", "gloria", "siglip", "filip", "albef"])
def test_a_method_whose_parts_know_no_dimension_takes_volumes(name: str, ct_store: Path, tmp_path: Path) -> None:
    """By its configuration alone: losses are finite, and every parameter that trains gets a gradient."""
    vit = {"kind": "volume", "family": "vit", "name": "vit_tiny_patch16_224", "patch": [8, 8, 8], "args": SMALL_VIT}
    own = tiny(name, ct_store, tmp_path)
    method = {
        "name": name,
        "image": vit | {"input": {"size": [32, 32, 32]}},
        "text": own.method.text.model_dump() if own.method.text else None,
        "projection": own.method.projection.model_dump(),
        "objectives": own.method.objectives,
        "options": own.method.options,
    }
    settings = {"kind": "pretrain", "run": {"dir": tmp_path}, "data": {"store": ct_store, "augment": {}}}
    train = {"batch_size": 8, "steps": 1, "device": "cpu"}
    config = PretrainConfig.model_validate(settings | {"method": method, "train": train})
    kind = METHODS.get(name)
    data = load_data(config, demands=kind.demands(complete(config.method)), tokenizer_folder=tmp_path / "tokenizer")
    made = kind(config.method, MethodContext.of(data.table.tokenizer, data.label_names, data.concepts))
    loader = data.loader(config)
    terms = made(loader.load(0, 0, loader.rows[:8]))
    sum(value for value, _ in terms.values()).backward()
    assert all(value.isfinite() for value, _ in terms.values())
    assert [key for key, p in made.named_parameters() if p.requires_grad and p.grad is None] == []


def fvlm(store: Path, folder: Path, **changes: Any) -> tuple[Any, Any]:
    config = small("fvlm", store, folder, **changes)
    data = load_data(
        config, demands=METHODS.get("fvlm").demands(complete(config.method)), tokenizer_folder=folder / "tokenizer"
    )
    torch.manual_seed(0)
    loader = data.loader(config, validation=False)
    method = METHODS.get("fvlm")(config.method, MethodContext.of(data.table.tokenizer)).eval()
    return method, loader.load(0, 0, loader.rows[:8])


def test_fvlm_leaves_an_organ_out_that_the_crop_cuts(ct_store: Path, tmp_path: Path) -> None:
    method, batch = fvlm(ct_store, tmp_path)
    with torch.no_grad():
        value, count = method.losses(batch)["organs"]
    organs = method.organ_of_structure[batch.extra["organs"].long()]
    assert set(organs.unique().tolist()) == {0, 1, 2}
    cut = replace(batch, extra=dict(batch.extra))
    cut.extra["organs"] = batch.extra["organs"].clone()
    cut.extra["organs"][:, 0] = 1  # every lung now touches the lowest slice
    with torch.no_grad():
        of_heart, hearts = method.losses(cut)["organs"]
    assert 0 < hearts < count
    assert of_heart < value
    cut.extra["organs"][:] = 0
    nothing, none = method.losses(cut)["organs"]
    assert (float(nothing.detach()), float(none)) == (0.0, 0.0)
    nothing.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_fvlm_asks_the_organ_that_a_prompt_names(ct_store: Path, tmp_path: Path) -> None:
    """Changing the vectors of the heart moves the answer about the heart, and not that about the lungs."""
    method, batch = fvlm(ct_store, tmp_path)

    def answer() -> torch.Tensor:
        def encode(texts: Sequence[str]) -> TextFeatures:
            return method.encode_text(method.context.tokenise(texts, 64))

        asked = [["pleural effusion"], ["cardiomegaly"]], [["no pleural effusion"], ["no cardiomegaly"]]
        with torch.no_grad():
            return method.zero_shot(method.encode_stored(batch.pixels), *asked, encode)

    before = answer()
    with torch.no_grad():
        method.organ_pool.maps[1].weight.normal_()
    after = answer()
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1], after[:, 1])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("fvlm", {"method.options.organs": [{"lungs": ["heart"]}]}, "not sorted by 'lungs'"),
        ("fvlm", {"method.options.organs": [{"lung": ["a"]}, {"heart": ["a"]}]}, "belongs to two"),
        ("fvlm", {"method.options.organs": ["lung"]}, "no list of"),
        ("fvlm", {"method.options.levels": [2, 9]}, "levels are"),
        ("ct_clip", {"method.objectives.info_nce.epsilon": 1e-20}, "no effect"),
        ("ct_clip", {"method.objectives.info_nce.scale.rule": "raw"}, "rule is 'raw'"),
        ("ct_clip", {"method.options.sentences": 0}, "sentences is 0"),
        ("ct_clip", {"method.options.sentences": 4, "method.options.text_unit": "report"}, "single sentences"),
        ("radclip", {"method.options.freeze_text_projection": True}, "is frozen"),
        ("merlin", {"method.options.shared_texts": "both"}, "shared_texts is 'both'"),
    ],
)
def test_a_setting_that_does_not_fit_is_named(
    name: str, changes: dict[str, Any], message: str, ct_store: Path, tmp_path: Path
) -> None:
    config = small(name, ct_store, tmp_path, **changes).method
    kind = METHODS.get(name)
    with pytest.raises(UserError, match=message):
        kind.demands(complete(config)) and kind(config, MethodContext(100, 0, ("a",)))
