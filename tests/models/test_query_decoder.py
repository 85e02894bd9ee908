"""Query decoder, streams and gate against official values, torch's own decoder, and each image alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from medvlp.errors import UserError
from medvlp.models.query_decoder import QueryDecoder, evidence
from medvlp.models.streams import QueryStream, StreamGate, start_linear
from medvlp.objectives.triplets import (
    anatomy_labels,
    existence_ce,
    finding_labels,
    intersection_bce,
    prototype_contrast,
)
from tests.objectives.official import cases, check, load
from tests.zoo.released_files import tensor_of


def official_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the parameters made by the weights rule of the reference values; tied ones are alike."""
    described = json.loads((folder / "keys.json").read_text())
    return {
        name: tensor_of(described["tied"].get(name, name), shape, dtype, {})
        for name, (shape, dtype) in described["keys"].items()
    }


def official_stream(weights: dict[str, torch.Tensor], stream: str, layers: int) -> QueryStream:
    """Return a stream with official weights; the references hold projected tokens, so that part is left out."""
    model = QueryStream(256, 768, {"width": 256, "layers": layers, "heads": 4, "ffn": 1024, "dropout": 0.1})
    model.tokens = nn.Identity()
    names = {f"decoder_{stream}": "decoder", f"classifier_{stream}": "classifier", f"cl_fc_{stream}": "project"}
    state = {}
    for key, tensor in weights.items():
        part, rest = key.split(".", 1)
        number = int(rest.split(".")[1]) if rest.startswith("layers.") else 0
        if part in names and number < layers:
            state[f"{names[part]}.{rest}"] = tensor
    model.double().load_state_dict(state, strict=True)
    return model.eval()


@pytest.mark.parametrize("file", cases("medslip/total_with_decoder"))
def test_the_streams_are_the_official_medslip(file: Path) -> None:
    case, weights = load(file), official_weights(file.parent)
    inputs = {key: case[key].requires_grad_() for key in case if f"grad_{key}" in case}
    query = nn.Linear(768, 256).double()
    query.load_state_dict({k.split(".")[1]: v for k, v in weights.items() if k.startswith("pathology_embedding_layer")})
    layers = len(case["attention_pathology"])
    outputs = {}
    for stream in ("pathology", "anatomy"):
        model = official_stream(weights, stream, layers)
        outputs[stream] = model(case[f"x_{stream}"], query(case[f"{stream}_book"]), attention=True)
        for name, made in (("logits", outputs[stream].logits), ("attention", outputs[stream].attention)):
            torch.testing.assert_close(made, case[f"{name}_{stream}"], rtol=1e-6, atol=1e-12)
        silent = model(case[f"x_{stream}"], query(case[f"{stream}_book"]))
        assert silent.heads == ()
        torch.testing.assert_close(silent.features, outputs[stream].features, rtol=1e-9, atol=1e-12)
    finding, anatomy, matrix = outputs["pathology"], outputs["anatomy"], case["matrix"]
    at_place = matrix == 1
    total = (
        existence_ce(finding.logits, finding_labels(matrix))[0]
        + existence_ce(anatomy.logits, anatomy_labels(matrix))[0]
        + prototype_contrast(
            finding.projected, case["anatomy_book"], at_place.transpose(1, 2), case["index_pathology"][..., 1:]
        )[0]
        + prototype_contrast(anatomy.projected, case["pathology_book"], at_place, case["index_anatomy"][..., 1:])[0]
        + intersection_bce(anatomy.features, finding.features, matrix)[0]
    )
    check(total, case, inputs, absolute=1e-12)


def test_the_decoder_is_the_one_of_torch() -> None:
    torch.manual_seed(0)
    ours = QueryDecoder(16, layers=2, heads=4, ffn=24, dropout=0.0).eval()
    layer = nn.TransformerDecoderLayer(16, 4, 24, dropout=0.0, batch_first=True, norm_first=True)
    theirs = nn.TransformerDecoder(layer, 2, norm=nn.LayerNorm(16)).eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    queries, tokens = torch.randn(3, 5, 16), torch.randn(3, 7, 16)
    decoded = ours(queries, tokens, attention=True)
    torch.testing.assert_close(decoded.features, theirs(queries, tokens))
    assert decoded.attention.shape == (2, 3, 5, 7)
    torch.testing.assert_close(decoded.attention.sum(3), torch.ones(2, 3, 5))
    alone = ours(queries[1:2], tokens[1:2], attention=True)
    torch.testing.assert_close(alone.attention, decoded.attention[:, 1:2])


def replayed(model: QueryDecoder, queries: torch.Tensor, tokens: torch.Tensor, heads: dict[int, torch.Tensor]) -> Any:
    """Run torch's layers step by step, with the attention of some of them given."""
    for number, layer in enumerate(model.layers):
        own = layer.norm1(queries)
        queries = queries + layer.self_attn(own, own, own)[0]
        attend, width = layer.multihead_attn, queries.shape[2]
        made = attend(layer.norm2(queries), tokens, tokens, average_attn_weights=False)[1]
        weight, bias = attend.in_proj_weight[2 * width :], attend.in_proj_bias[2 * width :]
        values = (tokens @ weight.T + bias).unflatten(2, (attend.num_heads, -1))
        seen = torch.einsum("bhqp,bphd->bqhd", heads.get(number, made), values)
        queries = queries + attend.out_proj(seen.flatten(2))
        queries = queries + layer.linear2(layer.linear1(layer.norm3(queries)).relu())
    return model.norm(queries)


def test_evidence_is_attention_times_its_gradient_where_positive() -> None:
    torch.manual_seed(0)
    model = QueryDecoder(16, layers=2, heads=4, ffn=24, dropout=0.0).eval()
    queries, tokens, read = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(16)
    decoded = model(queries, tokens, attention=True)
    found = evidence((decoded.features[:, 1] @ read).sum(), decoded.heads)
    expected = torch.zeros(2, 7)
    for number, heads in enumerate(decoded.heads):
        given = heads.detach().requires_grad_()
        (replayed(model, queries, tokens, {number: given})[:, 1] @ read).sum().backward()
        expected += (given.grad * given).clamp_min(0).sum((1, 2)).detach()
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad
    alone = model(queries[:1], tokens[:1], attention=True)
    torch.testing.assert_close(evidence((alone.features[:, 1] @ read).sum(), alone.heads), found[:1])


def test_positions_tell_a_stream_left_from_right() -> None:
    torch.manual_seed(0)
    tokens, queries = torch.randn(1, 6, 8), torch.randn(2, 16)
    mirrored = tokens.unflatten(1, (2, 3)).flip(2).flatten(1, 2)
    for positions in (False, True):
        decoder = {"width": 16, "layers": 1, "heads": 2, "ffn": 16}
        stream = QueryStream(8, 4, decoder, norm=True, positions=positions).eval()
        first, second = (stream(each, queries, grid=(2, 3)).features for each in (tokens, mirrored))
        assert torch.allclose(first, second, atol=1e-5) != positions


def test_a_width_that_does_not_split_into_heads_is_refused() -> None:
    with pytest.raises(UserError, match="does not split into 3 heads"):
        QueryDecoder(16, heads=3)


@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_the_gate_shares_out_its_tokens(activation: str) -> None:
    torch.manual_seed(0)
    gate, tokens = StreamGate(6, activation), torch.randn(2, 5, 6)
    finding, anatomy = gate(tokens)
    torch.testing.assert_close(finding + anatomy, tokens)
    mask = tokens @ gate.linear.weight.T + gate.linear.bias
    torch.testing.assert_close(finding, (mask.sigmoid() if activation == "sigmoid" else mask) * tokens)


def test_linear_maps_start_with_the_deviation_that_is_asked_for() -> None:
    torch.manual_seed(0)
    stream = QueryStream(64, 64, {"width": 64, "layers": 1, "heads": 4, "ffn": 64})
    before = stream.project.weight.detach().clone()
    start_linear(stream, 0.0)
    assert torch.equal(stream.project.weight, before)
    start_linear(stream, 0.02)
    assert not stream.classifier.bias.any()
    for linear in (stream.project, stream.tokens[0], stream.decoder.layers[0].linear1):
        assert float(linear.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
