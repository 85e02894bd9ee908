"""Fusion against transformers' BERT layers, step by step; pads, entities, and texts that have none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from medvlp.errors import UserError
from medvlp.models.fusion import IMAGE, TEXT, Entities, Fusion, FusionLayer, FusionSizes, TextFusion, places_of
from medvlp.types import Features

SIZES = FusionSizes(dim=16, layers=2, heads=4, ffn=24, dropout=0.0, norm_eps=1e-12)
ENTITY_SIZES = FusionSizes(dim=8, layers=2, heads=2, ffn=12, dropout=0.0, norm_eps=1e-12)


def fusion(entities: bool = False) -> Fusion:
    torch.manual_seed(0)
    made = Fusion(6, 5, SIZES, ENTITY_SIZES if entities else None).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def inputs(rows: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(rows, 7, 16, dtype=torch.float64, generator=generator)
    text = torch.randn(rows, 6, 16, dtype=torch.float64, generator=generator)
    mask = torch.ones(rows, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return image, text, mask


def places_and_entities() -> Entities:
    spans = torch.tensor([[[1, 3], [4, 5]], [[2, 3], [-1, -1]], [[-1, -1], [-1, -1]]])
    states = torch.randn(3, 2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return Entities(states, spans[..., 0] >= 0, places_of(spans, 6).double())


def bert_layer(layer: FusionLayer) -> BertLayer:
    """The same layer in transformers, as released checkpoints hold it."""
    config = BertConfig(
        hidden_size=16, num_attention_heads=4, intermediate_size=24, is_decoder=True, add_cross_attention=True
    )
    config._attn_implementation = "eager"
    bert = BertLayer(config, layer_idx=0).double().eval()
    state: dict[str, torch.Tensor] = {}
    for theirs, ours in (("attention", "self"), ("crossattention", "cross")):
        attention: Any = getattr(layer, f"{ours}_attention")
        for kind in ("weight", "bias"):
            fused = getattr(attention, f"in_proj_{kind}")
            for name, part in zip(("query", "key", "value"), fused.chunk(3), strict=True):
                state[f"{theirs}.self.{name}.{kind}"] = part
            state[f"{theirs}.output.dense.{kind}"] = getattr(attention.out_proj, kind)
            norm = getattr(layer, f"{ours}_residual").norm
            state[f"{theirs}.output.LayerNorm.{kind}"] = getattr(norm, kind)
    for kind in ("weight", "bias"):
        state[f"intermediate.dense.{kind}"] = getattr(layer.ffn.layers[0], kind)
        state[f"output.dense.{kind}"] = getattr(layer.ffn.layers[2], kind)
        state[f"output.LayerNorm.{kind}"] = getattr(layer.ffn.residual.norm, kind)
    bert.load_state_dict(state, strict=True)
    return bert


def unseen(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e30)[:, None, None]


def test_co_attention_is_berts_cross_layers_and_each_reads_the_other_before_the_step() -> None:
    model, (image, text, mask) = fusion(), inputs()
    fused = model(image, text, mask)
    everything = torch.ones(3, 7, dtype=torch.bool)
    for image_layer, text_layer in zip(model.image_layers, model.text_layers, strict=True):
        image, text = (
            bert_layer(image_layer)(image, unseen(everything), text, unseen(mask)),
            bert_layer(text_layer)(text, unseen(mask), image, unseen(everything)),
        )
    torch.testing.assert_close(fused.image, image)
    torch.testing.assert_close(fused.text[mask], text[mask])
    pooled = torch.cat([model.text_pooler(text[:, 0]).tanh(), model.image_pooler(image[:, 0]).tanh()], dim=1)
    torch.testing.assert_close(model.pool(fused), pooled)


def test_embeddings_are_projections_plus_the_type_class_token_first() -> None:
    model = fusion()
    pooled, tokens = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64)
    embedded = model.embed_image(Features(tokens, pooled, (2, 2)))
    torch.testing.assert_close(embedded[:, 0], model.image_projection(pooled) + model.types.weight[IMAGE])
    torch.testing.assert_close(embedded[:, 1:], model.image_projection(tokens) + model.types.weight[IMAGE])
    words = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(model.embed_text(words), model.text_projection(words) + model.types.weight[TEXT])


def test_layers_stop_where_they_are_told() -> None:
    model, (image, text, mask) = fusion(), inputs()
    first, _ = model.image_layers[0](image, None, text, mask)
    torch.testing.assert_close(model(image, text, mask, layers=1).image, first)
    assert torch.equal(model(image, text, mask, layers=0).image, image)


@pytest.mark.parametrize("entities", [False, True])
def test_a_text_is_fused_the_same_alone_and_beside_longer_ones(entities: bool) -> None:
    model, (image, text, mask) = fusion(entities), inputs()
    given = places_and_entities() if entities else None
    together = model(image, text, mask, given, weights=True)
    for row in range(3):
        real = int(mask[row].sum())
        alone = None
        if given is not None:
            number = max(1, int(given.mask[row].sum()))
            some = (slice(row, row + 1), slice(number))
            alone = Entities(given.states[some], given.mask[some], given.places[some][..., :real])
        one = model(image[[row]], text[[row], :real], mask[[row], :real], alone, weights=True)
        torch.testing.assert_close(one.text[0], together.text[row, :real])
        torch.testing.assert_close(one.image[0], together.image[row])
        torch.testing.assert_close(one.attention[0], together.attention[row, :real])
    torch.testing.assert_close(together.attention.sum(2), torch.ones(3, 6, dtype=torch.float64))


def test_no_entities_at_all_is_what_a_text_without_entities_is() -> None:
    model, (image, text, mask) = fusion(entities=True), inputs()
    torch.testing.assert_close(
        model(image, text, mask).text[2], model(image, text, mask, places_and_entities()).text[2]
    )


def test_the_entity_stream_is_arls_step_by_step() -> None:
    """Self-attention, attention to the image at the entities' width, then into the text before its feed-forward."""
    model, (image, text, mask), given = fusion(entities=True), inputs(), places_and_entities()
    stream, seen, words = given.states[:1], image[:1], text[:1]
    for number in range(2):
        image_layer, layer = model.image_layers[number], model.text_layers[number]
        entity = model.entity_layers[number]
        own, _ = entity.self_attention(stream, stream, stream)
        stream = entity.self_residual.norm(stream + own)
        at_width = entity.from_image(seen)
        change, _ = entity.cross_attention(stream, at_width, at_width)
        stream = entity.cross_residual.norm(stream + change)
        told, _ = layer.attend(words, mask[:1], seen, None)
        scattered = torch.zeros_like(told)
        for place, (first, last) in enumerate(((1, 3), (4, 5))):
            scattered[:, first:last] += entity.to_text(stream[:, place])[:, None]
        told = entity.mix_residual.norm(told + entity.mix(told + scattered))
        seen, _ = image_layer(seen, None, words, mask[:1])
        words = layer.ffn(told)
        if entity.ffn is not None:
            stream = entity.ffn(stream)
    torch.testing.assert_close(model(image, text, mask, given).text[:1], words)
    assert model.entity_layers[1].ffn is None


def test_text_fusion_attends_to_a_fixed_image() -> None:
    torch.manual_seed(0)
    model, (image, text, mask) = TextFusion(SIZES).double().eval(), inputs()
    fused, attention = model(text, mask, image, weights_of=0)
    everything = torch.ones(3, 7, dtype=torch.bool)
    for layer in model.layers:
        text = bert_layer(layer)(text, unseen(mask), image, unseen(everything))
    torch.testing.assert_close(fused[mask], text[mask])
    assert attention.shape == (3, 6, 7)


def test_every_parameter_gets_a_finite_gradient_also_in_bf16() -> None:
    model, mask, given = fusion(entities=True).float().train(), inputs()[2], places_and_entities()
    half = Entities(given.states.float(), given.mask, given.places.float())
    features = Features(torch.randn(3, 6, 6), torch.randn(3, 6), (2, 3))
    with torch.autocast("cpu", torch.bfloat16):
        fused = model(model.embed_image(features), model.embed_text(torch.randn(3, 6, 5)), mask, half)
        functional.mse_loss(model.pool(fused).float(), torch.randn(3, 32)).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("change", [{"dim": 15}, {"heads": 0}, {"layers": 0}])
def test_sizes_that_make_no_attention_are_refused(change: dict[str, int]) -> None:
    options = {"dim": 16, "layers": 2, "heads": 4, "ffn": 24, "dropout": 0.0, "norm_eps": 1e-12} | change
    with pytest.raises(UserError, match="makes no attention"):
        FusionSizes.of(options, "fusion")
