"""SimCroP as a whole: what it sees, its terms, empty reports, answers and heat maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medvlp.errors import UserError
from medvlp.methods.simcrop import SimCroP
from medvlp.models.sentences import sentence_keys, sentence_means
from tests.methods.volumes import TEXT, TEXTS, batch_of, method_of


def simcrop(**changes: Any) -> SimCroP:
    config: dict[str, Any] = {
        "name": "simcrop",
        "image": {
            "kind": "volume",
            "family": "vit",
            "name": "vit_tiny_patch16_224",
            "patch": [8, 16, 16],
            "args": {"depth": 1, "embed_dim": 48, "num_heads": 2, "global_pool": "avg", "fc_norm": False},
            "input": {"size": [16, 32, 32]},
        },
        "text": {**TEXT, "pool": "mean"},
        "projection": {"dim": 16},
        "options": {
            "fusion": {"layers": 1, "heads": 2, "ffn": 32, "dropout": 0.0},
            "decoder": {"dim": 24, "layers": 1, "heads": 2},
        },
    }
    made = method_of(config | changes)
    assert isinstance(made, SimCroP)
    return made


@pytest.fixture(scope="module")
def model() -> SimCroP:
    return simcrop().eval()


def test_every_term_works_and_trains_every_parameter() -> None:
    model = simcrop()
    terms = model.losses(batch_of(model))
    assert set(terms) == {"mim", "mlm", "align"}
    assert all(value > 0 and count > 0 for value, count in terms.values())
    assert terms["mim"][1] == 4 * 6  # six of eight patches
    sum(value for value, _ in terms.values()).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_hidden_patches_do_not_reach_the_words(model: SimCroP) -> None:
    batch = batch_of(model)
    torch.manual_seed(3)
    before = model.losses(batch)
    torch.manual_seed(3)
    patches = torch.rand(4, 8).argsort(1)[:, 2:]  # as draw_kept hides them
    for row in range(4):
        for number in patches[row].tolist():
            d, h, w = number // 4, number // 2 % 2, number % 2
            batch.pixels[row, 0, 8 * d : 8 * d + 8, 16 * h : 16 * h + 16, 16 * w : 16 * w + 16] = 0
    torch.manual_seed(3)
    after = model.losses(batch)
    torch.testing.assert_close(after["mlm"][0], before["mlm"][0])
    torch.testing.assert_close(after["align"][0], before["align"][0])
    assert not torch.allclose(after["mim"][0], before["mim"][0])


def test_a_batch_of_empty_reports_trains_by_its_patches(model: SimCroP) -> None:
    batch = batch_of(model)
    batch.text = model.context.tokenise([""] * 4, 48, sentences=True)
    batch.text.hidden = torch.zeros_like(batch.text.mask)
    terms = model.losses(batch)
    assert [float(count) for _, count in (terms["mlm"], terms["align"])] == [0.0, 0.0]
    assert all(value.isfinite() for value, _ in terms.values())


def test_sentences_are_means_of_their_tokens_and_equal_ones_have_one_key(model: SimCroP) -> None:
    text = model.context.tokenise([*TEXTS, "effusion. No"], 48, sentences=True)
    assert text.sentence_ids is not None
    tokens = torch.randn(*text.ids.shape, 3)
    found = sentence_means(tokens, text.sentence_ids)
    torch.testing.assert_close(found.tokens[2, 1], tokens[2][text.sentence_ids[2] == 1].mean(0))
    assert found.mask.sum(1).tolist() == [2, 2, 3, 1, 2]
    keys = sentence_keys(text.ids, text.sentence_ids)
    same = keys[1, 0]  # "No effusion."
    assert (keys == same).nonzero().tolist() == [[1, 0], [2, 2], [3, 0]]
    real = keys[found.mask]
    assert len(set(real.tolist())) == len(real) - 2


def test_answers_and_heat_maps(model: SimCroP) -> None:
    def encode(texts: Any) -> Any:
        return model.encode_text(model.context.tokenise(list(texts), 48))

    batch = batch_of(model, rows=2)
    with torch.no_grad():
        features = model.encode_stored(batch.pixels)
        answers = model.zero_shot(features, [["effusion"], ["nodule"]], [["no effusion"], ["no"]], encode)
        maps = model.heat_map(model.normalised(batch.pixels), ["effusion", "large heart"], encode)
    assert answers.shape == (2, 2)
    assert ((answers > 0) & (answers < 1)).all()
    assert maps.shape == (2, 2, 2, 2, 2)
    assert maps.std() > 0


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="picked is 0"):
        simcrop(objectives={"align": {"picked": 0.0}})
    with pytest.raises(UserError, match="kind 'image'"):
        simcrop(image={"name": "vit_tiny_patch16_224", "input": {"size": 32}})
