"""A decoder as text tower: padding, instruction, both ways of attention, folders with adapters, and bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralModel

from medvlp.config.towers import TextTowerConfig
from medvlp.errors import UserError
from medvlp.models.language_model import LanguageModelTower, LatentPool
from medvlp.types import TextBatch

OPTIONS: dict[str, Any] = {
    "bidirectional": True,
    "pool": {"latents": 6, "heads": 2},
    "lora": {"rank": 2, "alpha": 4, "dropout": 0.0, "modules": ["q_proj", "v_proj"]},
}
INSTRUCTION, LEAD = [2, 11, 12, 13], 1
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 32}


def tower(options: dict[str, Any] | None = None, **fields: Any) -> LanguageModelTower:
    torch.manual_seed(0)
    given = {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 12, "dropout": 0.0, **fields}
    config = TextTowerConfig.model_validate(given)
    return LanguageModelTower(config, 64, 0, INSTRUCTION, LEAD, {**OPTIONS, **(options or {})})


def texts(*rows: list[int]) -> TextBatch:
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (length - len(row)) for row in rows])
    return TextBatch(ids, mask)


def folder_of(model: Any, folder: Path, extra: dict[str, torch.Tensor] | None = None) -> Path:
    model.save_pretrained(folder)
    if extra:
        file = folder / "model.safetensors"
        save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("bidirectional", [True, False])
def test_states_are_those_of_the_model_on_instruction_and_text_alone(bidirectional: bool) -> None:
    model = tower({"bidirectional": bidirectional}).eval()
    rows = [[2, 20, 21, 22, 23], [2, 30], [2, 40, 41, 42]]
    with torch.no_grad():
        out = model(texts(*rows))
        for number, row in enumerate(rows):
            whole = torch.tensor([INSTRUCTION + row[LEAD:]])
            size = whole.shape[1]
            seen = torch.ones(1, 1, size, size, dtype=torch.bool)
            states = model.model(input_ids=whole, attention_mask=seen if bidirectional else None).last_hidden_state
            told = states[:, len(INSTRUCTION) :]
            torch.testing.assert_close(out.tokens[number, LEAD : len(row)], told[0], rtol=1e-4, atol=1e-5)
            read = model.pool.multihead_attn(told, model.pool.latents[None], model.pool.latents[None])[0]
            torch.testing.assert_close(out.pooled[number], model.pool.mlp(read).mean(1)[0], rtol=1e-4, atol=1e-5)
    assert out.tokens.shape == (3, 5, 16)


def test_both_ways_the_first_word_sees_the_last_and_one_way_it_does_not() -> None:
    for bidirectional in (True, False):
        model = tower({"bidirectional": bidirectional}).eval()
        with torch.no_grad():
            first, second = (model(texts([2, 20, 21, last])).tokens[0, 1] for last in (22, 23))
        assert torch.allclose(first, second) == (not bidirectional)


def test_the_instruction_is_read_but_not_pooled() -> None:
    model = tower().eval()
    text = texts([2, 20, 21])
    with torch.no_grad():
        before = model(text)
        model.instruction[1] = 50
        assert not torch.allclose(model(text).pooled, before.pooled)
    assert LatentPool(4, 3, 2)(torch.randn(2, 3, 4), torch.zeros(2, 3, dtype=torch.bool)).abs().sum() == 0


def test_a_fresh_model_trains_as_a_whole_and_its_architecture_rebuilds_it() -> None:
    model = tower()
    model(texts([2, 20, 21], [2, 3])).pooled.square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    again = tower(architecture=model.architecture)
    again.load_state_dict(model.state_dict(), strict=True)
    text = texts([2, 20, 21])
    assert torch.equal(again.eval()(text).pooled, model.eval()(text).pooled)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_a_folder_stays_fixed_and_its_adapters_and_pool_train(tmp_path: Path, kind: str) -> None:
    source = LlamaForCausalLM(LlamaConfig(**SIZES)) if kind == "llama" else MistralModel(MistralConfig(**SIZES))
    model = tower(folder=folder_of(source, tmp_path / kind))
    base = source.model if kind == "llama" else source
    key = "layers.0.self_attn.q_proj"
    state = model.model.state_dict()
    assert torch.equal(state[f"{key}.base_layer.weight"], base.state_dict()[f"{key}.weight"])
    model(texts([2, 20, 21], [2, 3])).pooled.square().sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in name or name.startswith("pool.") for name in trained)
    assert f"model.{key}.lora_A.llm2clip.weight" in trained
    again = tower(architecture=model.architecture)
    again.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(again.eval()(texts([2, 20])).pooled, model.eval()(texts([2, 20])).pooled)


def test_a_folders_pool_is_loaded_and_stays_fixed_and_one_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(1)
    pool, source = LatentPool(16, 6, 2), LlamaForCausalLM(LlamaConfig(**SIZES))
    extra = {f"latent_attn.{key}": tensor for key, tensor in pool.state_dict().items()}
    model = tower(folder=folder_of(source, tmp_path / "whole", extra))
    assert torch.equal(model.pool.latents, pool.latents)
    assert not any(p.requires_grad for p in model.pool.parameters())
    extra.pop("latent_attn.latents")
    with pytest.raises(UserError, match="latents"):
        tower(folder=folder_of(source, tmp_path / "part", extra))


def test_rank_0_trains_the_whole_model_of_a_folder_and_freeze_none_of_it(tmp_path: Path) -> None:
    folder = folder_of(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "llama")
    model = tower({"lora": {**OPTIONS["lora"], "rank": 0}}, folder=folder)
    assert all(p.requires_grad for p in model.parameters())
    frozen = tower(folder=folder, freeze=True).train()
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"pool": "cls"}, {}, "pools by latents"),
        ({}, {"pool": {"latents": 6, "heads": 5}}, "heads"),
        ({"folder": "missing"}, {}, r"config\.json"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        tower(options, **fields)


def test_folders_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    folder = folder_of(LlamaForCausalLM(LlamaConfig(**SIZES)), tmp_path / "llama")
    with pytest.raises(UserError, match="positions"):
        tower(folder=folder, max_tokens=30)
    with pytest.raises(UserError, match="no modules nothing"):
        tower({"lora": {**OPTIONS["lora"], "modules": ["nothing"]}}, folder=folder)
    small = folder_of(LlamaForCausalLM(LlamaConfig(**{**SIZES, "vocab_size": 32})), tmp_path / "small")
    with pytest.raises(UserError, match="64 tokens"):
        tower(folder=small)
