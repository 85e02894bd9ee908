"""A tower that is described, built elsewhere and filled gives the same features, whatever it came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pytest
import torch
from torch import nn

from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.towers import ImageTowerConfig
from medvlp.errors import UserError
from medvlp.models.vision2d import ImageTower
from medvlp.zoo import load_encoder
from medvlp.zoo.rebuild import describe_tower, rebuild_tower


def assert_rebuilt(tower: Any, pixels: torch.Tensor) -> None:
    described = json.loads(json.dumps(describe_tower(tower)))
    state = torch.random.get_rng_state()
    again, dim = rebuild_tower(described)
    assert torch.equal(torch.random.get_rng_state(), state)
    again.load_state_dict(tower.state_dict(), strict=True)
    with torch.inference_mode():
        one, two = tower.eval()(pixels), again(pixels)
    assert dim == tower.dim
    assert one.grid == two.grid
    assert torch.equal(one.pooled, two.pooled)
    assert torch.equal(one.tokens, two.tokens)


@pytest.mark.parametrize("spec", ["random:resnet10t@32", "random:test_vit@48"])
def test_towers_of_timm(spec: str) -> None:
    tower = load_encoder(spec).image_tower
    assert_rebuilt(tower, torch.randn(2, 1, int(spec[-2:]), int(spec[-2:])))


def test_what_a_timm_folder_adds_to_the_constructor_is_kept() -> None:
    config = ImageTowerConfig(name="test_vit", input=ModelInputConfig(size=32), freeze=True)
    tower = ImageTower(config, {"depth": 2, "global_pool": "avg"})
    assert_rebuilt(tower, torch.randn(2, 1, 32, 32))
    again, _ = rebuild_tower(describe_tower(tower))
    assert isinstance(again, ImageTower)
    assert not again.config.freeze
    assert again.train().training


def test_the_tower_of_a_run(tmp_path: Path) -> None:
    encoder = load_encoder(str(bench_store.make_run(tmp_path / "run")))
    assert str(tmp_path) not in json.dumps(describe_tower(encoder.image_tower))
    assert_rebuilt(encoder.image_tower, torch.randn(2, 1, 32, 32))


@pytest.mark.parametrize("family", ["vit", "resnet", "clip"])
def test_towers_of_transformers(family: str, tmp_path: Path) -> None:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    models: dict[str, Any] = {
        "vit": lambda: transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=8, **small)),
        "resnet": lambda: transformers.ResNetModel(
            transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
        ),
        "clip": lambda: transformers.CLIPModel(
            transformers.CLIPConfig(
                text_config={**small, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
                vision_config={**small, "image_size": 32, "patch_size": 8},
            )
        ),
    }
    model = models[family]()
    model.save_pretrained(tmp_path)
    processor = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    tower = load_encoder(f"hf:{tmp_path}").image_tower
    assert str(tmp_path) not in json.dumps(describe_tower(tower))
    assert_rebuilt(tower, torch.randn(2, 3, 32, 32))


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_towers_of_released_checkpoints(family: str) -> None:
    from medvlp.zoo.release import ImageConfig
    from medvlp.zoo.released_towers import build_tower

    views = {"a": {"because": "x"}, "b": {"because": "y", "pool": "cls" if family == "vit" else "mean"}}
    name = {"resnet": "resnet10t", "vit": "test_vit"}[family]
    args = {} if family == "resnet" else {"img_size": 32}
    config = ImageConfig.model_validate({"family": family, "name": name, "args": args, "views": views})
    tower: Any = build_tower(config)
    tower.view = "b"
    assert_rebuilt(tower, torch.from_numpy(np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)))


def test_a_tower_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="class Linear cannot be saved"):
        describe_tower(nn.Linear(2, 2))
