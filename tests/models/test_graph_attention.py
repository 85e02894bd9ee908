"""Graph attention against loops; links of any order and direction; concepts without links."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from medvlp.errors import UserError
from medvlp.knowledge.table import ConceptTable
from medvlp.models.graph_attention import ConceptGraph, GraphAttention, both_ways

LINKS = np.array([[0, 1, 3, 1], [1, 2, 1, 0]])


def table(links: np.ndarray = LINKS, vectors: np.ndarray | None = None, number: int = 5) -> ConceptTable:
    return ConceptTable(tuple(f"C{i}" for i in range(number)), links, vectors)


def graph(concepts: ConceptTable, dropout: float = 0.0) -> ConceptGraph:
    torch.manual_seed(0)
    return ConceptGraph(concepts, dim=6, heads=3, head_dim=4, dropout=dropout)


def by_loops(layer: GraphAttention, nodes: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
    """One node and one head at a time (GAT, equations 1 to 4)."""
    projected = layer.project(nodes).unflatten(1, (layer.heads, layer.dim))
    rows = []
    for i in range(len(nodes)):
        neighbours = [int(s) for s, t in links.T.tolist() if t == i]
        heads = []
        for head in range(layer.heads):
            own = projected[i, head] @ layer.target[head]
            scores = torch.stack([projected[j, head] @ layer.source[head] + own for j in neighbours])
            weights = torch.where(scores > 0, scores, 0.2 * scores).softmax(0)
            heads.append(sum(w * projected[j, head] for w, j in zip(weights, neighbours, strict=True)))
        rows.append(torch.cat(heads) if layer.join else torch.stack(heads).mean(0))
    return torch.stack(rows) + layer.bias


@pytest.mark.parametrize("join", [True, False])
def test_a_layer_is_graph_attention_as_in_loops(join: bool) -> None:
    torch.manual_seed(1)
    layer, nodes = GraphAttention(6, 4, 3, join, 0.0).double(), torch.randn(5, 6, dtype=torch.float64)
    links = both_ways(table())
    made = layer(nodes, links)
    torch.testing.assert_close(made, by_loops(layer, nodes, links))
    torch.testing.assert_close(layer(nodes, links[:, torch.randperm(links.shape[1])]), made)


def test_links_count_once_in_both_directions_and_every_concept_sees_itself() -> None:
    links = {tuple(pair) for pair in both_ways(table()).T.tolist()}
    assert links == {(0, 1), (1, 0), (1, 2), (2, 1), (3, 1), (1, 3), *((i, i) for i in range(5))}
    assert both_ways(table()).shape[1] == len(links)
    assert both_ways(table(np.zeros((2, 0), np.int64))).tolist() == [list(range(5))] * 2


def test_the_start_is_the_banks_vectors_and_every_parameter_learns() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    model = graph(table(vectors=vectors))
    torch.testing.assert_close(model.nodes.detach(), torch.from_numpy(vectors))
    (model() * torch.randn(5, 6)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert "links" not in model.state_dict()


def test_dropout_never_makes_a_concept_without_links_a_vector_of_zeros() -> None:
    model = graph(table(np.zeros((2, 0), np.int64)), dropout=0.9).train()
    for _ in range(20):
        assert (model.second(torch.ones(5, 12), model.links).abs().sum(1) > 0).all()


def test_bf16_changes_nothing() -> None:
    model = graph(table()).eval()
    with torch.autocast("cpu", torch.bfloat16):
        low = model()
    assert torch.equal(low, model())


def test_no_concept_and_vectors_of_another_width_are_refused() -> None:
    with pytest.raises(UserError, match="no concept"):
        graph(table(np.zeros((2, 0), np.int64), number=0))
    with pytest.raises(UserError, match="have 3 numbers"):
        graph(table(vectors=np.zeros((5, 3), np.float32)))
