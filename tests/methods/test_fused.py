"""M3AE, ARL, PTUnifier and MRM as wholes: their terms against plain steps, empty cases, refusals, answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from medvlp.config.methods import MethodConfig
from medvlp.errors import UserError
from medvlp.knowledge.table import ConceptTable
from medvlp.methods import METHODS
from medvlp.methods.base import Method
from medvlp.methods.context import MethodContext
from medvlp.models.vit import vit_states
from medvlp.objectives.masked import patches_of
from medvlp.text.tokenizer import Tokenizer
from medvlp.types import Batch, TextFeatures

TEXTS = ["left pleural effusion", "no pleural effusion", "the heart is large", "no pleural effusion"]
NAMES = ("m3ae", "arl", "ptunifier", "mrm")
FUSION = {"dim": 16, "layers": 2, "heads": 2, "ffn": 32, "dropout": 0.0}
DECODER = {"dim": 16, "layers": 1, "heads": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "m3ae": {"fusion": FUSION, "decoder": DECODER},
    "arl": {
        "fusion": FUSION,
        "decoder": DECODER,
        "entities": {"dim": 8, "heads": 2, "ffn": 16},
        "graph": {"heads": 2, "head_dim": 4, "dropout": 0.0},
    },
    "ptunifier": {"fusion": FUSION, "pools": {"images": 10, "of_image": 3, "texts": 9, "of_text": 4}},
    "mrm": {"decoder": DECODER},
}
CONCEPTS = ConceptTable(("effusion", "heart", "pleura", "lung"), np.array([[0], [2]]))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 80)


def method(name: str, tokenizer: Tokenizer, concepts: ConceptTable | None = CONCEPTS, **fields: Any) -> Method:
    torch.manual_seed(0)
    config: dict[str, Any] = {
        "name": name,
        "image": {
            "name": "vit_tiny_patch16_224",
            "args": {"depth": 2, "embed_dim": 16, "num_heads": 2},
            "input": {"size": 64, "channels": 1, "mean": [0.4], "std": [0.2]},
        },
        "text": {"hidden": 16, "layers": 1, "heads": 2, "vocab_size": 80, "max_tokens": 24, "dropout": 0.0},
        "projection": {"dim": 8, "bias": False},
        "options": OPTIONS[name] | fields.pop("options", {}),
        **fields,
    }
    return METHODS.get(name)(MethodConfig.model_validate(config), MethodContext.of(tokenizer, (), concepts))


def batch(name: str, tokenizer: Tokenizer, hidden: bool = True, rows: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    text = MethodContext.of(tokenizer).tokenise(TEXTS[:rows], 16)
    text.hidden = torch.zeros_like(text.mask)
    if hidden:
        text.hidden[0, 2] = True
        text.hidden[2:3, 1:3] = True
    text.spans = torch.tensor([[[2, 4], [3, 4]], [[2, 3], [-1, -1]], [[-1, -1], [-1, -1]], [[3, 4], [1, 2]]])[:rows]
    text.concepts = torch.tensor([[2, 0], [2, -1], [-1, -1], [0, 1]])[:rows]
    side = 128 if name == "mrm" else 64
    pixels = torch.randint(0, 256, (rows, 1, side, side), dtype=torch.uint8, generator=generator)
    return Batch(torch.arange(rows), pixels, text=text)


@pytest.mark.parametrize("name", NAMES)
def test_every_trainable_parameter_learns_and_no_pad_counts(name: str, tokenizer: Tokenizer) -> None:
    model, data = method(name, tokenizer).train(), batch(name, tokenizer)
    terms = model(data)
    assert set(terms) == {term for term in model.config.objectives if model.is_on(term)}
    sum(value for value, _ in terms.values()).backward()
    for key, parameter in model.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.isfinite().all()), key
    text = batch(name, tokenizer).text
    for field, fill in (("ids", tokenizer.pad_id), ("mask", False), ("hidden", False), ("word_ids", -1)):
        setattr(text, field, functional.pad(getattr(text, field), (0, 3), value=fill))
    first = model.eval().encode_text(data.text).tokens
    second = model.encode_text(text).tokens[:, : first.shape[1]]
    real = data.text.mask
    torch.testing.assert_close(first[real], second[real], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_hidden_is_a_term_of_zero_with_count_zero(name: str, tokenizer: Tokenizer) -> None:
    terms = method(name, tokenizer).train()(batch(name, tokenizer, hidden=False))
    value, count = terms["mlm"]
    value.backward()
    assert (value.item(), count.item()) == (0.0, 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_works(name: str, tokenizer: Tokenizer) -> None:
    terms = method(name, tokenizer).train()(batch(name, tokenizer, rows=1))
    assert all(value.isfinite() for value, _ in terms.values())


@pytest.mark.parametrize("name", NAMES)
def test_terms_without_weight_are_not_computed(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer, objectives={"mlm": {"weight": 0.0}})
    assert "mlm" not in model(batch(name, tokenizer, hidden=False))


@pytest.mark.parametrize("name", NAMES)
def test_unknown_hidden_tokens_and_other_backbones_are_refused(name: str, tokenizer: Tokenizer) -> None:
    data = batch(name, tokenizer)
    data.text.hidden = None
    with pytest.raises(UserError, match="which tokens are hidden"):
        method(name, tokenizer)(data)
    with pytest.raises(UserError, match="vision transformer"):
        method(name, tokenizer, image={"name": "resnet10t", "input": {"size": 64}})


def test_mlm_asks_for_the_hidden_tokens_beside_the_whole_image(tokenizer: Tokenizer) -> None:
    model, data = method("m3ae", tokenizer).eval(), batch("m3ae", tokenizer)
    torch.manual_seed(3)
    seen = model.masked_text(data.text)
    torch.manual_seed(3)
    image = model.encode_stored(data.pixels)
    value, count = model.mlm_term(model.fusion.embed_image(image), data.text)
    fused = model.fusion(
        model.fusion.embed_image(image), model.fusion.embed_text(model.text_encoder(seen).tokens), data.text.mask
    )
    hidden = data.text.hidden
    logits = model.language_head(fused.text)
    expected = [functional.cross_entropy(logits[r, c], data.text.ids[r, c]) for r, c in hidden.nonzero().tolist()]
    torch.testing.assert_close(value, torch.stack(expected).mean())
    assert count == 3
    assert torch.equal(seen.ids[~hidden], data.text.ids[~hidden])


def test_mim_decodes_what_has_passed_the_configured_layers(tokenizer: Tokenizer) -> None:
    model, data = method("m3ae", tokenizer, objectives={"mim": {"layer": 1}}).eval(), batch("m3ae", tokenizer)
    pixels, states = model.normalised(data.pixels), model.encode_tokens(data.text)
    torch.manual_seed(3)
    value, count = model.mim_term(model.decoder, pixels, states, data.text)
    torch.manual_seed(3)
    keep = torch.rand(4, 16).argsort(1)[:, :4]
    visible, _ = vit_states(model.image_encoder.backbone, pixels, keep=keep)
    image = model.fusion.image_projection(visible) + model.fusion.types.weight[1]
    image, _ = model.fusion.image_layers[0](image, None, states, data.text.mask)
    target = patches_of(pixels, 16)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    errors = (model.decoder(image, keep) - target).square().mean(2)
    hidden = torch.ones(4, 16).scatter(1, keep, 0.0).bool()
    torch.testing.assert_close(value, errors[hidden].mean())
    assert count == 48


def test_itm_shows_other_images_but_never_one_with_the_same_text(tokenizer: Tokenizer) -> None:
    model, data = method("m3ae", tokenizer).eval(), batch("m3ae", tokenizer)
    shown: list[torch.Tensor] = []
    forward = model.fusion.forward
    model.fusion.forward = lambda image, *rest, **kept: shown.append(image) or forward(image, *rest, **kept)
    image, states = model.fusion.embed_image(model.encode_stored(data.pixels)), model.encode_tokens(data.text)
    for seed in range(20):
        torch.manual_seed(seed)
        model.itm_term(image, states, data.text)
        whose = [next(i for i in range(4) if torch.equal(one, image[i])) for one in shown.pop()]
        assert sum(i != row for row, i in enumerate(whose)) == 2
        assert {(1, 3), (3, 1)}.isdisjoint(enumerate(whose))


def test_entities_that_are_hidden_do_not_reach_the_pass_that_predicts_them(tokenizer: Tokenizer) -> None:
    model, data = method("arl", tokenizer).eval(), batch("arl", tokenizer)
    nodes = model.graph()
    whole, shown = model._entities(nodes, data.text), model._entities(nodes, data.text, shown_only=True)
    assert whole.mask.tolist() == [[True, True], [True, False], [False, False], [True, True]]
    assert shown.mask.tolist() == [[False, True], [True, False], [False, False], [True, True]]
    assert not shown.places[0, 0].any()
    assert whole.places[0, 0].nonzero().flatten().tolist() == [2, 3]
    torch.testing.assert_close(whole.states[0], nodes[[2, 0]])


def test_only_what_shows_no_hidden_token_moves_the_loss_of_hidden_words(tokenizer: Tokenizer) -> None:
    """By gradients: the node of an entity that every text hides has none in MLM, and has one where the text is whole.

    Row 0 hides both of its entities (2 and 0), row 3 hides a word beside its entities (0 and 1).
    """
    model, data = method("arl", tokenizer).eval(), batch("arl", tokenizer, hidden=False)
    data.text.concepts = torch.tensor([[2, 0], [-1, -1], [-1, -1], [0, 1]])
    data.text.hidden[0, 2:4] = data.text.hidden[3, 2] = True
    assert data.text.mask[3, 2]
    nodes = model.graph().detach().requires_grad_()
    model.graph.forward = lambda: nodes
    terms = model(data)
    reached = {name: torch.autograd.grad(terms[name][0], nodes, retain_graph=True)[0].any(1).tolist() for name in terms}
    assert reached["mlm"] == [True, True, False, False]
    assert reached["itm"] == [True, True, True, False]
    assert reached["align"] == [True] * 4
    assert terms["mlm"][1] == 3


def test_texts_without_any_entity_train_arl(tokenizer: Tokenizer) -> None:
    data = batch("arl", tokenizer)
    data.text.spans, data.text.concepts = torch.zeros(4, 0, 2, dtype=torch.long), torch.zeros(4, 0, dtype=torch.long)
    terms = method("arl", tokenizer).train()(data)
    sum(value for value, _ in terms.values()).backward()
    assert terms["align"][1] == 2 * 4 * 4


def test_alignment_asks_both_towers_for_the_entities_of_the_text(tokenizer: Tokenizer) -> None:
    model, data = method("arl", tokenizer, objectives={"align": {"weight": 0.5}}).eval(), batch("arl", tokenizer)
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 0, 0]]).float()
    image = model.fusion.embed_image(model.encode_stored(data.pixels))[:, 0]
    text = model.fusion.embed_text(model.text_encoder(data.text).tokens)[:, 0]
    expected = sum(
        functional.binary_cross_entropy_with_logits(head(first) @ model.graph().T, labels)
        for head, first in ((model.image_align, image), (model.text_align, text))
    )
    torch.testing.assert_close(model(data)["align"][0], 0.5 * expected)


def test_arl_without_knowledge_has_no_entities_and_asks_for_none(tokenizer: Tokenizer) -> None:
    off: dict[str, Any] = {"options": {"knowledge": False}, "objectives": {"align": {"weight": 0.0}}}
    model = method("arl", tokenizer, concepts=None, **off)
    assert model.fusion.entity_layers is None
    assert model.demands(model.config).names == ("reports",)
    assert set(model(batch("m3ae", tokenizer))) == {"mlm", "mim", "itm"}
    with pytest.raises(UserError, match="no entities to align with"):
        method("arl", tokenizer, concepts=None, options={"knowledge": False})
    with pytest.raises(UserError, match="needs the concepts"):
        method("arl", tokenizer, concepts=None)
    data = batch("arl", tokenizer)
    data.text.spans = None
    with pytest.raises(UserError, match="concepts of every text"):
        method("arl", tokenizer)(data)


def test_prompts_stand_for_what_is_missing_in_ptunifier(tokenizer: Tokenizer) -> None:
    """Image alone and text alone, by hand: embeddings, nearest rows, both towers, fusion, head."""
    model, data = method("ptunifier", tokenizer).eval(), batch("ptunifier", tokenizer)
    tower, text_tower, fusion = model.image_encoder, model.text_encoder, model.fusion
    vit, bert = tower.backbone, text_tower.model
    features = model.encode_stored(data.pixels)
    states = tower.embed(model.normalised(data.pixels))
    torch.testing.assert_close(features.embedding, states[:, 1:].mean(1))
    nearest = (states[:, 1:].mean(1) @ model.text_pool.rows.T).topk(4).indices
    first, last = (
        bert.embeddings(input_ids=torch.tensor([[tokenizer._backend.token_to_id(t)]])) for t in ("[CLS]", "[SEP]")
    )
    prompts = torch.cat([first.expand(4, -1, -1), model.text_pool.rows[nearest], last.expand(4, -1, -1)], dim=1)
    encoded = bert.encoder(prompts).last_hidden_state
    fused = fusion(fusion.embed_image(features), fusion.embed_text(encoded), torch.ones(4, 6, dtype=torch.bool))
    torch.testing.assert_close(model.project_image(features), model.image_projection(fusion.pool(fused)))

    row = 2
    length = int(data.text.mask[row].sum())
    embedded = bert.embeddings(input_ids=data.text.ids[[row], :length])
    nearest = (embedded[:, 1:].mean(1) @ model.image_pool.rows.T).topk(3).indices
    class_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(1, -1, -1)
    image = vit.norm(vit.blocks(vit.norm_pre(torch.cat([class_token, model.image_pool.rows[nearest]], dim=1))))
    image = fusion.image_projection(image) + fusion.types.weight[1]
    words = fusion.embed_text(bert.encoder(embedded).last_hidden_state)
    fused = fusion(image, words, torch.ones(1, length, dtype=torch.bool))
    expected = model.text_projection(fusion.pool(fused))[0]
    torch.testing.assert_close(model.project_text(model.encode_text(data.text))[row], expected)


def test_pools_and_contrast_rest_as_released_where_asked(tokenizer: Tokenizer) -> None:
    data = batch("ptunifier", tokenizer)
    frozen = method("ptunifier", tokenizer, options={"legacy_frozen_pools": True})
    assert [key for key, p in frozen.named_parameters() if not p.requires_grad] == ["image_pool.rows", "text_pool.rows"]
    assert "itc" in frozen(data)
    released = method("ptunifier", tokenizer, options={"legacy_no_itc": True}).train()
    terms = released(data)
    assert set(terms) == {"mlm", "itm"}
    sum(value for value, _ in terms.values()).backward()
    assert all(not p.requires_grad or p.grad is not None for p in released.parameters())
    with pytest.raises(UserError, match="without contrast"):
        released.project_image(released.encode_stored(data.pixels))
    with pytest.raises(UserError, match="one width"):
        method("ptunifier", tokenizer, text={"hidden": 32, "layers": 1, "heads": 2, "vocab_size": 80})


def test_mrm_shows_the_text_the_mean_of_the_visible_patches_alone(tokenizer: Tokenizer) -> None:
    model, data = method("mrm", tokenizer).eval(), batch("mrm", tokenizer)
    torch.manual_seed(3)
    terms = model(data)
    torch.manual_seed(3)
    keep = torch.rand(4, 16).argsort(1)[:, :4]
    large = model.normalised(data.pixels)
    small = large.unflatten(2, (64, 2)).unflatten(4, (64, 2)).mean((3, 5))
    states, _ = vit_states(model.image_encoder.backbone, small, keep=keep)
    hidden = data.text.hidden
    ids = torch.where(hidden, tokenizer.mask_id, data.text.ids)
    bert = model.text_encoder.model
    embedded = bert.embeddings(input_ids=ids) + model.to_words(states[:, 1:].mean(1))[:, None]
    unseen = torch.zeros(hidden.shape).masked_fill(~data.text.mask, -1e30)[:, None, None]
    logits = model.language_head(bert.encoder(embedded, attention_mask=unseen).last_hidden_state)
    torch.testing.assert_close(terms["mlm"][0], functional.cross_entropy(logits[hidden], data.text.ids[hidden]))
    target = patches_of(large, 32)
    target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    errors = (model.decoder(states, keep) - target).square().mean(2)
    mask = torch.ones(4, 16).scatter(1, keep, 0.0).bool()
    torch.testing.assert_close(terms["mim"][0], errors[mask].mean())
    legacy = method("mrm", tokenizer, options={"legacy_all_tokens": True}).eval()
    torch.manual_seed(3)
    value, count = legacy(data)["mlm"]
    torch.testing.assert_close(value, functional.cross_entropy(logits.flatten(0, 1), data.text.ids.flatten()))
    assert count == data.text.ids.numel()


def test_mrm_probes_the_mean_patch_scores_no_text_and_needs_the_large_image(tokenizer: Tokenizer) -> None:
    args = {"depth": 2, "embed_dim": 16, "num_heads": 2, "global_pool": "avg", "fc_norm": False}
    model = method("mrm", tokenizer, image={"name": "vit_tiny_patch16_224", "args": args, "input": {"size": 64}}).eval()
    features = model.encode_stored(torch.randint(0, 256, (2, 1, 64, 64), dtype=torch.uint8))
    torch.testing.assert_close(features.pooled, features.tokens.mean(1))
    assert (model.scores_text, model.shared_space, model.heat_map_kind) == (False, False, None)
    assert not model.image_encoder.backbone.pos_embed.requires_grad
    with pytest.raises(UserError, match="128 x 128 pixels, not 64 x 64"):
        model(batch("m3ae", tokenizer))


@pytest.mark.parametrize("name", ["m3ae", "arl"])
def test_answers_are_the_softmax_of_matching_scores_one_by_one(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer).eval()
    torch.nn.init.normal_(model.matching_head.weight)

    def encode(prompts: Any) -> TextFeatures:
        return model.encode_text(model.context.tokenise(list(prompts), 16))

    positives, negatives = [["left pleural effusion", "effusion"], ["the heart is large"]], [["no effusion"], ["heart"]]
    with torch.no_grad():
        image = model.encode_stored(batch(name, tokenizer).pixels)
        answers = model.zero_shot(image, positives, negatives, encode)

        def score(row: int, prompt: str) -> torch.Tensor:
            text = model.text_encoder(model.context.tokenise([prompt], 16))
            one = replace(image, tokens=image.tokens[[row]], pooled=image.pooled[[row]])
            odds = model.matching_head(model.fusion.pool(model.fuse(one, text)))[0].softmax(0)
            return (odds[1] / odds[0]).log()

        for row in range(4):
            for k in range(2):
                sides = [torch.stack([score(row, p) for p in group[k]]).mean() for group in (positives, negatives)]
                torch.testing.assert_close(answers[row, k], torch.stack(sides).softmax(0)[0])
        assert model.zero_shot(image, positives, negatives, encode, "max").shape == (4, 2)
        assert answers.std() > 0
    with pytest.raises(UserError, match="without matching"):
        method(name, tokenizer, objectives={"itm": {"weight": 0.0}}).zero_shot(image, positives, negatives, encode)


@pytest.mark.parametrize("name", ["m3ae", "arl", "ptunifier"])
def test_heat_maps_are_the_attention_of_the_words_to_the_patches(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer).eval()
    pixels = model.normalised(batch(name, tokenizer).pixels)
    texts = ["left pleural effusion", "heart"]
    maps = model.heat_map(pixels, texts, lambda some: model.encode_text(model.context.tokenise(list(some), 16)))
    assert maps.shape == (4, 2, 4, 4)
    assert not maps.requires_grad
    alone = model.heat_map(pixels, texts[1:], lambda some: model.encode_text(model.context.tokenise(list(some), 16)))
    torch.testing.assert_close(maps[:, 1:], alone)
    text = model.text_encoder(model.context.tokenise(["heart"], 16))
    repeated = TextFeatures(text.tokens.expand(4, -1, -1), text.pooled, text.mask.expand(4, -1))
    attention = model.fuse(model.encode_image(pixels), repeated, weights=True).attention
    torch.testing.assert_close(alone[:, 0].flatten(1), attention[:, 1:-1, 1:].mean(1))


@pytest.mark.parametrize("name", NAMES)
def test_fusion_and_heads_learn_faster_than_towers(name: str, tokenizer: Tokenizer) -> None:
    model = method(name, tokenizer)
    factors = model.learning_rate_factors()
    if name == "mrm":
        assert factors == {}
        return
    assert set(factors.values()) == {5.0}
    names = [key for key, _ in model.named_parameters()]
    assert all(any(key.startswith(part) for key in names) for part in factors)
    slow = {key.partition(".")[0] for key in names if not key.startswith(tuple(factors))}
    assert slow <= {"image_encoder", "text_encoder", "image_pool", "text_pool"}
