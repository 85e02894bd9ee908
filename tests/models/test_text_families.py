"""Text sides of CLIP and SigLIP against transformers itself: folders of whole models, pooling, pads, saved towers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.text import TextTower
from medvlp.types import TextBatch

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 10,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
}
VISION = {**{key: SIZES[key] for key in list(SIZES)[1:5]}, "image_size": 32, "patch_size": 16}


def tower(**fields: Any) -> TextTower:
    sizes = {"hidden": 16, "layers": 2, "heads": 2, "vocab_size": 64, "max_tokens": 10}
    return TextTower(TextTowerConfig.model_validate({**sizes, **fields}), 64, 0).eval()


def texts() -> TextBatch:
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    return TextBatch(ids, ids != 0)


def folder_of(family: str, path: Path) -> tuple[Path, Any]:
    """Return a folder with a whole model of images and texts, and its text side as transformers runs it."""
    torch.manual_seed(0)
    text = {**SIZES, "projection_size": 16} if family == "siglip" else SIZES
    if family == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    model.save_pretrained(path)
    return path, model.eval().text_model


@torch.inference_mode()
def test_the_text_side_of_a_clip_folder_pools_at_the_end_of_each_text(tmp_path: Path) -> None:
    folder, reference = folder_of("clip", tmp_path)
    model, text = tower(folder=folder, pool="eos"), texts()
    expected = reference(input_ids=text.ids, attention_mask=text.mask.long())
    features = model(text)
    torch.testing.assert_close(features.pooled, expected.pooler_output)
    torch.testing.assert_close(features.tokens, expected.last_hidden_state)
    assert (model.family, model.dim) == ("clip", 16)


@torch.inference_mode()
def test_clip_tokens_see_no_later_ones_and_no_pads() -> None:
    torch.manual_seed(0)
    model, text = tower(family="clip", pool="eos"), texts()
    changed = TextBatch(text.ids.clone(), text.mask)
    changed.ids[0, 3] = 40
    tokens, others = model(text).tokens[0], model(changed).tokens[0]
    torch.testing.assert_close(tokens[:3], others[:3])
    assert not torch.allclose(tokens[3:], others[3:], atol=1e-3)
    alone = model(TextBatch(text.ids[1:, :3], text.mask[1:, :3]))
    torch.testing.assert_close(model(text).pooled[1:], alone.pooled)


@torch.inference_mode()
def test_a_siglip_folder_is_run_on_its_full_length_without_mask(tmp_path: Path) -> None:
    folder, reference = folder_of("siglip", tmp_path)
    model, text = tower(folder=folder, pool="pooler"), texts()
    padded = torch.nn.functional.pad(text.ids, (0, 5))
    expected = reference(input_ids=padded)
    features = model(text)
    torch.testing.assert_close(features.pooled, expected.pooler_output)
    torch.testing.assert_close(features.tokens, expected.last_hidden_state[:, :5])
    alone = model(TextBatch(text.ids[1:, :3], text.mask[1:, :3]))
    torch.testing.assert_close(features.pooled[1:], alone.pooled)


@pytest.mark.parametrize(
    ("family", "pool"), [("clip", "eos"), ("clip", "mean"), ("siglip", "pooler"), ("siglip", "mean")]
)
def test_every_parameter_learns_and_a_saved_tower_is_the_same(family: str, pool: str) -> None:
    torch.manual_seed(0)
    model, text = tower(family=family, pool=pool, dropout=0.0), texts()
    model.train()(text).pooled.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    again = tower(architecture=model.architecture, pool=pool)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(text).pooled, model.eval()(text).pooled)


@torch.inference_mode()
def test_layers_can_be_frozen_and_averaged(tmp_path: Path) -> None:
    folder, reference = folder_of("clip", tmp_path)
    model, text = tower(folder=folder, pool="layers_1_2_12", freeze_layers=1), texts()
    states = reference(input_ids=text.ids, attention_mask=text.mask.long(), output_hidden_states=True).hidden_states
    mean = (states[1] + states[2] + states[-1])[1, :3].mean(0) / 3
    torch.testing.assert_close(model(text).pooled[1], mean)
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"embeddings", "encoder"}
    assert model.model.encoder.layers[1].mlp.fc1.weight.requires_grad


def test_recomputed_activations_change_nothing() -> None:
    torch.manual_seed(0)
    model, text = tower(family="clip", pool="eos", dropout=0.0).train(), texts()
    model(text).pooled.sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_gradient_checkpointing(True)
    model(text).pooled.sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_what_a_family_cannot_do_is_said(tmp_path: Path) -> None:
    for fields, word in (
        ({"family": "clip", "pool": "cls"}, "see no word"),
        ({"family": "clip", "pool": "pooler"}, "see no word"),
        ({"family": "siglip", "attention": True}, "BERT-family"),
        (
            {
                "family": "clip",
                "pool": "eos",
                "max_tokens": 10,
                "architecture": {"model_type": "clip_text_model", **SIZES, "max_position_embeddings": 8},
            },
            "positions for 8",
        ),
    ):
        with pytest.raises(UserError, match=word):
            tower(**fields)
    with pytest.raises(UserError, match="enter a BERT-family"):
        tower(family="clip", pool="eos").embed(texts().ids)
    folder, _ = folder_of("clip", tmp_path)
    state = load_file(folder / "model.safetensors")
    state.pop(next(key for key in state if key.endswith("text_model.final_layer_norm.weight")))
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="missing"):
        tower(folder=folder, pool="eos")
