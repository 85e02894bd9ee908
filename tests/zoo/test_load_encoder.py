"""Every form of spec against the library it comes from; hashes; what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.zoo import load_encoder


def test_runs_and_their_model_folders_are_the_same_encoder(run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(run))
    assert encoder.name == "trial"
    assert encoder.has_text
    moved = shutil.copytree(run / "model", tmp_path / "elsewhere")
    assert load_encoder(str(moved)).hash == load_encoder(str(run / "model")).hash == encoder.hash


@pytest.mark.parametrize("part", ["weights", "preprocessing", "architecture", "tokenizer"])
def test_the_hash_sees_every_part(run: Path, tmp_path: Path, part: str) -> None:
    model = shutil.copytree(run / "model", tmp_path / "model")
    if part == "weights":
        state = load_file(model / "model.safetensors")
        state["image_encoder.backbone.conv1.weight"][0, 0, 0, 0] += 1e-3
        save_file(state, model / "model.safetensors")
    else:
        file = {"tokenizer": "tokenizer/tokenizer.json", "architecture": "config.json"}.get(part, "preprocessing.json")
        before, after = {
            "preprocessing": ('"pad"', '"squash"'),
            "architecture": ('"pool": "mean"', '"pool": "cls"'),
            "tokenizer": ("effusion", "effusioN"),
        }[part]
        text = (model / file).read_text()
        assert before in text
        (model / file).write_text(text.replace(before, after))
    assert load_encoder(str(model)).hash != load_encoder(str(run)).hash


def test_random_encoders_depend_on_their_seed_alone() -> None:
    before = torch.random.get_rng_state()
    encoders = [load_encoder("random:resnet18@32", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert encoders[0].hash == encoders[1].hash != encoders[2].hash
    assert [e.name for e in encoders] == ["random:resnet18@32", "random:resnet18@32", "random:resnet18@32#1"]
    assert encoders[0].preprocessing.input.size == 32
    assert load_encoder("random:resnet18").preprocessing.input.size == 224
    squares = np.random.default_rng(0).integers(0, 256, (2, 40, 40)).astype(np.uint8)
    first, again, other = (e.encode_stored(squares).pooled for e in encoders)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_store_decides_how_files_become_squares_where_the_encoder_does_not(run: Path) -> None:
    stored = StoredImageConfig(size=40, aspect="squash")
    assert load_encoder("random:resnet18@32", stored=stored).preprocessing.stored == stored
    assert load_encoder(str(run), stored=stored).preprocessing.stored.size == 64


@torch.inference_mode()
def test_a_timm_folder_gives_timm_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.25), "input_size": (3, 64, 64), "interpolation": "bilinear"}
    source = timm.create_model("convnext_atto", num_classes=7, pretrained_cfg_overlay=cfg).eval()
    save_for_hf(source, tmp_path / "atto", safe_serialization=True)
    encoder = load_encoder(f"timm:{tmp_path / 'atto'}")
    assert encoder.name == "timm:atto"
    assert encoder.preprocessing.input.size == 64
    assert encoder.preprocessing.stored.interpolation == "bilinear"
    squares = np.random.default_rng(0).integers(0, 256, (2, 64, 64)).astype(np.uint8)
    rgb = torch.from_numpy(squares).float()[:, None].expand(-1, 3, -1, -1) / 255
    rgb = (rgb - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)
    expected = source.forward_head(source.forward_features(rgb), pre_logits=True)
    torch.testing.assert_close(encoder.encode_stored(squares).pooled, expected, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_a_timm_folder_keeps_pool_size_and_channels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    cfg = {"mean": (0.4,), "std": (0.2,), "input_size": (1, 32, 32)}
    source = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, in_chans=1, global_pool="avg", pretrained_cfg_overlay=cfg
    ).eval()
    arguments = {"img_size": 32, "in_chans": 1}
    save_for_hf(source, tmp_path / "vit", safe_serialization=True, model_args=arguments)
    pixels = torch.randn(2, 1, 32, 32)
    features = load_encoder(f"timm:{tmp_path / 'vit'}")(pixels)
    torch.testing.assert_close(features.pooled, source(pixels), rtol=1e-4, atol=1e-5)
    described = json.loads((tmp_path / "vit" / "config.json").read_text())
    described["pretrained_cfg"].update(mean=[0.5, 0.5])
    (tmp_path / "vit" / "config.json").write_text(json.dumps(described))
    with pytest.raises(UserError, match="preprocessing cannot be used"):
        load_encoder(f"timm:{tmp_path / 'vit'}")


def hub_folder(folder: Path, model: Any, **processor: Any) -> Path:
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["vit", "dinov2", "swin", "resnet", "clip"])
def test_a_transformers_folder_gives_its_features(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vit = {**size, "image_size": 32, "patch_size": 8}
    if kind == "vit":
        # Saved with a classifier on top: its head is left over, its pooler is missing.
        model = transformers.ViTForImageClassification(transformers.ViTConfig(**vit))
        trunk = model.vit
    elif kind == "dinov2":
        model = trunk = transformers.Dinov2Model(transformers.Dinov2Config(**vit))
    elif kind == "swin":
        config = transformers.SwinConfig(image_size=32, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        model = trunk = transformers.SwinModel(config)
    elif kind == "resnet":
        config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        model = trunk = transformers.ResNetModel(config)
    else:
        text = {**size, "vocab_size": 20}
        model = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vit))
        trunk = model.vision_model
    folder = hub_folder(
        tmp_path / kind,
        model.eval(),
        size={"shortest_edge": 36},
        do_center_crop=True,
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.2, 0.4],
        resample=3,
    )
    encoder = load_encoder(f"hf:{folder}")
    assert encoder.preprocessing.input.size == 32
    pixels = torch.randn(2, 3, 32, 32)
    states = trunk(pixel_values=pixels).last_hidden_state
    features = encoder(pixels)
    grid = (4, 4)
    assert features.grid == grid
    assert encoder.dim == features.tokens.shape[2] == features.pooled.shape[1]
    tokens = states.flatten(2).transpose(1, 2) if states.ndim == 4 else states[:, -grid[0] * grid[1] :]
    torch.testing.assert_close(features.tokens, tokens)
    expected = states[:, 0] if kind == "vit" else trunk(pixel_values=pixels).pooler_output.flatten(1)
    torch.testing.assert_close(features.pooled, expected)
    squares = np.full((1, 32, 32), 255, np.uint8)
    white = torch.tensor([0.5 / 0.2, 0.6 / 0.2, 0.7 / 0.4]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    torch.testing.assert_close(encoder.encode_stored(squares).pooled, encoder(white).pooled)


def test_transformers_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    folder = hub_folder(tmp_path / "vit", transformers.ViTModel(config), size=32)
    state = load_file(folder / "model.safetensors")
    state["surprise"] = state.pop("layernorm.weight")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing \(1\): layernorm.weight; unexplained \(1\): surprise"):
        load_encoder(f"hf:{folder}")
    text = tmp_path / "bert"
    bert = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=30
    )
    hub_folder(text, transformers.BertModel(bert))
    with pytest.raises(UserError, match="no vision model"):
        load_encoder(f"hf:{text}")


def test_specs_that_name_nothing_say_what_is_possible(tmp_path: Path) -> None:
    started = tmp_path / "started"
    (started / "checkpoints").mkdir(parents=True)
    for spec, message in [
        ("zzz:resnet18", "names no encoder"),
        ("random:", "names no encoder"),
        ("random:resnet81", "Did you mean"),
        ("random:resnet18@big", "no number"),
        ("random:resnet18@4", "between 16 and 2048"),
        (str(tmp_path / "nowhere"), "There is no encoder"),
        (f"timm:{tmp_path / 'nowhere'}", "does not exist"),
        (f"timm:{tmp_path}", "has no config.json"),
        (f"hf:{tmp_path}", "has no preprocessor_config.json"),
        (str(tmp_path), "neither a run nor a model"),
        (str(started), "no finished model"),
    ]:
        with pytest.raises(UserError, match=message) as caught:
            load_encoder(spec)
        assert caught.value.fix, spec
    with pytest.raises(UserError) as caught:
        load_encoder(str(started))
    assert "medvlp pretrain" in caught.value.fix
