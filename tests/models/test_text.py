"""Text towers against transformers itself: pooling, freezing, folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from medvlp.config.towers import ProjectionConfig, TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.projection import Projection
from medvlp.models.text import TextTower
from medvlp.types import TextBatch

SMALL: dict[str, Any] = {"hidden": 16, "layers": 3, "heads": 2, "vocab_size": 64, "max_tokens": 12}


def tower(legacy: bool = False, **fields: Any) -> TextTower:
    return TextTower(TextTowerConfig.model_validate({**SMALL, **fields}), 64, 0, legacy).eval()


def texts() -> TextBatch:
    ids = torch.tensor([[2, 5, 6, 7, 3], [2, 8, 3, 0, 0]])
    return TextBatch(ids, ids != 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = BertConfig(vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    return tmp_path


@torch.inference_mode()
@pytest.mark.parametrize("pool", ["cls", "mean", "layers_1_2_12"])
def test_pools_are_those_of_transformers_states(folder: Path, pool: str) -> None:
    model, text = tower(folder=folder, pool=pool), texts()
    reference = BertModel.from_pretrained(folder).eval()
    states = reference(text.ids, text.mask.long(), output_hidden_states=True).hidden_states
    expected = []
    for row, length in enumerate((5, 3)):
        if pool == "cls":
            expected.append(states[-1][row, 0])
        elif pool == "mean":
            expected.append(states[-1][row, :length].mean(0))
        else:
            expected.append(sum(states[k][row, :length].mean(0) for k in (1, 2, 3)) / 3)
    features = model(text)
    torch.testing.assert_close(features.pooled, torch.stack(expected))
    torch.testing.assert_close(features.tokens, states[-1])
    assert model.dim == 16


@torch.inference_mode()
def test_pads_change_nothing_unless_legacy() -> None:
    torch.manual_seed(0)
    for legacy in (False, True):
        model, text = tower(legacy, pool="layers_1_2_12"), texts()
        alone = model(TextBatch(text.ids[1:, :3], text.mask[1:, :3])).pooled
        assert torch.allclose(model(text).pooled[1:], alone, atol=1e-6) != legacy


def test_frozen_layers_stay_fixed_and_without_dropout(folder: Path) -> None:
    model = tower(folder=folder, freeze_layers=2).train()
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert all(
        name.startswith(("model.embeddings", "model.encoder.layer.0", "model.encoder.layer.1")) for name in frozen
    )
    assert any(name.startswith("model.encoder.layer.1") for name in frozen)
    assert model.model.encoder.layer[2].training
    modules = [model.model.embeddings, *model.model.encoder.layer[:2]]
    assert not any(m.training for module in modules for m in module.modules())
    model(texts()).pooled.sum().backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {name for name, _ in model.named_parameters()} - frozen


def test_freezing_a_fresh_or_too_small_tower_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="fresh text tower"):
        tower(freeze_layers=1)
    with pytest.raises(UserError, match="4 layers cannot be frozen"):
        tower(folder=folder, freeze_layers=4)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    torch.manual_seed(0)
    model = tower(dropout=0.0).train()
    gradients = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        assert model.model.encoder.layer[0].gradient_checkpointing == enabled
        model.zero_grad()
        model(texts()).pooled.square().sum().backward()
        gradients.append(model.model.embeddings.word_embeddings.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_the_architecture_rebuilds_the_tower_without_its_folder(folder: Path) -> None:
    model = tower(folder=folder)
    again = tower(architecture=model.architecture)
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert str(folder) not in str(model.architecture)


def test_a_folder_with_missing_weights_is_refused(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    del state["encoder.layer.1.output.dense.weight"]
    state["surprise"] = torch.zeros(1)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"missing \(1\): encoder.layer.1.output.dense.weight; unexplained \(1\): surp"):
        tower(folder=folder)


def test_what_does_not_fit_is_a_user_error(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(UserError, match="65 tokens, the text tower only 64"):
        TextTower(TextTowerConfig.model_validate({**SMALL, "folder": folder}), 65, 0)
    with pytest.raises(UserError, match="positions for 512 tokens, max_tokens is 600"):
        tower(folder=folder, max_tokens=600)
    with pytest.raises(UserError, match=r"no config\.json"):
        tower(folder=tmp_path_factory.mktemp("empty"))
    with pytest.raises(UserError, match="needs two layers"):
        tower(layers=1, pool="layers_1_2_12")


def test_projections_are_unit_length_linear_or_one_hidden_layer() -> None:
    x = torch.randn(4, 8)
    linear = Projection(8, ProjectionConfig(dim=3, bias=False))
    expected = x @ linear.layers.weight.T
    torch.testing.assert_close(linear(x), expected / expected.norm(dim=1, keepdim=True))
    hidden = Projection(8, ProjectionConfig(dim=3, hidden=5))
    first, _, last = hidden.layers
    expected = (x @ first.weight.T + first.bias).clamp_min(0) @ last.weight.T + last.bias
    torch.testing.assert_close(hidden(x), expected / expected.norm(dim=1, keepdim=True))
    assert not hasattr(linear.layers, "bias") or linear.layers.bias is None
