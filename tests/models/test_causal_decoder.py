"""A causal language model behind visual tokens: against the same model asked word by word, and bad folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from medvlp.errors import UserError
from medvlp.models.causal_decoder import CausalDecoder, folder_model, fresh_model
from medvlp.models.report_decoder import Visual
from medvlp.objectives.captioning import captioning
from medvlp.text.vocabulary import WordVocabulary

WORDS = WordVocabulary(["a", "b", "c", "d", "e", "f"])
IDS = torch.tensor([[0, 2, 3, 0, 0], [0, 4, 0, 0, 0], [0, 5, 6, 7, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]) > 0


def small() -> CausalDecoder:
    torch.manual_seed(0)
    decoder = CausalDecoder(6, fresh_model(WORDS.size, 16, 24, 2, 2, 32, 0.0), WORDS).eval()
    with torch.no_grad():
        decoder.model.get_input_embeddings().weight *= 20
    return decoder


def shown(mask: torch.Tensor | None = None) -> Visual:
    return Visual(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)), mask)


@torch.no_grad()
def test_greedy_search_takes_the_most_probable_word_given_all_before() -> None:
    mask = torch.tensor([[True] * 4, [True, True, False, False], [True] * 4])
    decoder, visual = small(), shown(mask)
    found = decoder.generate(visual, 6)
    assert found.shape == (3, 6)
    for row, words in enumerate(found.tolist()):
        alone = Visual(visual.tokens[row : row + 1, : int(mask[row].sum())])
        told = words[: words.index(0) + 1] if 0 in words else words
        for place, word in enumerate(told):
            assert word == int(decoder(alone, torch.tensor([[0, *told[:place]]]))[0, -1].argmax())
        assert not any(words[len(told) :])
    banned = int(found[0, 0])
    for beams in (1, 3):
        again = decoder.generate(visual, 6, beams=beams, banned=[banned])
        assert not (again == banned).any()
        assert torch.equal(again, decoder.generate(visual, 6, beams=beams, banned=[banned]))


def with_absolute_positions() -> CausalDecoder:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": WORDS.size}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for table in (model.transformer.wte, model.transformer.wpe):
            table.weight *= 20
    return CausalDecoder(6, model, WORDS).eval()


@pytest.mark.parametrize("make", [small, with_absolute_positions])
@torch.no_grad()
def test_missing_tokens_are_not_there_and_a_place_sees_nothing_that_follows(make: Callable[[], CausalDecoder]) -> None:
    decoder, visual = make(), shown(torch.tensor([[True, False, True, False]] * 3))
    logits = decoder(visual, IDS)
    assert logits.shape == (3, 5, WORDS.size)
    there = Visual(visual.tokens[:, ::2])
    torch.testing.assert_close(decoder(there, IDS), logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(decoder.generate(there, 6, beams=3), decoder.generate(visual, 6, beams=3))
    changed = IDS.clone()
    changed[0, 2] = 7
    other = decoder(visual, changed)
    torch.testing.assert_close(other[0, :2], logits[0, :2])
    assert not torch.allclose(other[0, 2], logits[0, 2])


def test_it_learns_to_tell_images_apart_and_saves_as_a_folder(tmp_path: Path) -> None:
    decoder, visual = small().train(), shown()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = captioning(decoder(visual, IDS), IDS, MASK)
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in decoder.parameters())
    wanted = [[2, 3, 0, 0], [4, 0, 0, 0], [5, 6, 7, 0]]
    assert decoder.eval().generate(visual, 4, beams=3).tolist() == wanted
    decoder.model.save_pretrained(tmp_path)
    again = CausalDecoder(6, folder_model(tmp_path), WORDS).eval()
    again.visual.load_state_dict(decoder.visual.state_dict())
    assert again.generate(visual, 4, beams=3).tolist() == wanted


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM, CLIPConfig

    with pytest.raises(UserError, match=r"no config\.json"):
        folder_model(tmp_path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=12, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(UserError, match="looks at words that follow"):
        folder_model(tmp_path / "bert")
    CLIPConfig().save_pretrained(tmp_path / "clip")
    with pytest.raises(UserError, match="no causal language model"):
        folder_model(tmp_path / "clip")
    fresh_model(12, 16, 16, 1, 2, 32, 0.0).save_pretrained(tmp_path / "cut")
    from safetensors.torch import load_file, save_file

    file = tmp_path / "cut" / "model.safetensors"
    state = load_file(file)
    state.pop("model.layers.0.mlp.up_proj.weight")
    save_file(state, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"missing \(1\): model.layers.0.mlp.up_proj.weight"):
        folder_model(tmp_path / "cut")


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="does not split"):
        fresh_model(12, 18, 16, 1, 4, 32, 0.0)
