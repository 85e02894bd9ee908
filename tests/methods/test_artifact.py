"""The saved model: whole, strict, portable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from medvlp.config.methods import MethodConfig
from medvlp.config.preprocessing import Preprocessing
from medvlp.errors import UserError
from medvlp.methods import METHODS
from medvlp.methods._artifact import load_model, save_model
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import TextBatch

LABELS = ["No Finding", "Pneumonia"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["no pneumonia is seen", "left pleural effusion"] * 4, 64)


def make(tokenizer: Tokenizer, **text: Any) -> Method:
    torch.manual_seed(0)
    config = MethodConfig.model_validate(
        {
            "name": "medclip",
            "image": {"name": "resnet18", "input": {"size": 32}},
            "text": {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 12, **text},
            "projection": {"dim": 8},
        }
    )
    return METHODS.get("medclip")(config, MethodContext.of(tokenizer, LABELS)).eval()


def save(folder: Path, method: Method, tokenizer: Tokenizer | None, **fields: Any) -> Path:
    preprocessing = Preprocessing(input=method.config.image.input)
    options = {"preprocessing": preprocessing, "record": {"step": 3}, **fields}
    save_model(folder, method, tokenizer=tokenizer, **options)
    return folder


def outputs(method: Method) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (2, 1, 32, 32), dtype=torch.uint8, generator=generator)
    ids = torch.randint(5, 12, (2, 6), generator=generator)
    with torch.inference_mode():
        image = method.project_image(method.encode_stored(pixels))
        text = method.project_text(method.encode_text(TextBatch(ids, torch.ones_like(ids, dtype=torch.bool))))
    return [image, text, method.logit_scale.detach()]


def test_a_saved_model_comes_back_bit_by_bit(tmp_path: Path, tokenizer: Tokenizer) -> None:
    method = make(tokenizer)
    before = torch.random.get_rng_state()
    loaded = load_model(save(tmp_path / "model", method, tokenizer))
    assert torch.equal(torch.random.get_rng_state(), before)
    for ours, original in zip(outputs(loaded.method), outputs(method), strict=True):
        assert torch.equal(ours, original)
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.hash == tokenizer.hash
    assert (loaded.label_names, loaded.record) == (("No Finding", "Pneumonia"), {"step": 3})
    assert loaded.preprocessing.input == method.config.image.input
    assert not loaded.method.training


def test_the_model_needs_no_folder_of_the_training_machine(tmp_path: Path, tokenizer: Tokenizer) -> None:
    hub = tmp_path / "bert"
    size = {"vocab_size": tokenizer.vocab_size, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(num_hidden_layers=3, **size)).save_pretrained(hub)
    method = make(tokenizer, folder=hub, freeze_layers=1)
    folder = save(tmp_path / "run" / "model", method, tokenizer)
    shutil.rmtree(hub)
    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    shutil.rmtree(folder)
    for ours, original in zip(outputs(load_model(moved).method), outputs(method), strict=True):
        assert torch.equal(ours, original)
    assert str(tmp_path) not in (moved / "config.json").read_text()


def test_other_weights_can_be_saved_and_replace_the_old(tmp_path: Path, tokenizer: Tokenizer) -> None:
    method = make(tokenizer)
    folder = save(tmp_path / "model", method, tokenizer)
    average = {key: value * 0.5 if value.is_floating_point() else value for key, value in method.state_dict().items()}
    save(folder, method, tokenizer, state=average)
    loaded = load_model(folder).method.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in average.items())
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_failed_save_leaves_the_old_model_and_no_rest(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = make(tokenizer)
    folder = save(tmp_path / "model", method, tokenizer)
    before = (folder / "model.safetensors").read_bytes()

    def full(self: Tokenizer, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tokenizer, "save", full)
    with torch.no_grad():
        method.log_scale.fill_(1.0)
    with pytest.raises(OSError, match="No space"):
        save(folder, method, tokenizer)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_preprocessing_other_than_the_methods_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="model input"):
        save(tmp_path / "model", make(tokenizer), tokenizer, preprocessing=Preprocessing())
    assert not (tmp_path / "model").exists()


def test_a_model_with_other_keys_or_format_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = save(tmp_path / "model", make(tokenizer), None)
    state = load_file(folder / "model.safetensors")
    state["extra.weight"] = state.pop("text_projection.layers.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"text_projection.layers.weight; unexplained \(1\): extra.weight"):
        load_model(folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**described, "format": 0}))
    with pytest.raises(UserError, match="format 0"):
        load_model(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(folder)
    with pytest.raises(UserError, match="no model folder"):
        load_model(tmp_path)
