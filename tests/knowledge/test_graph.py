"""Graph arrays, and TransE against its definition written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_ontology import write

from medvlp.config.knowledge import GraphEmbeddingConfig
from medvlp.errors import UserError
from medvlp.knowledge.concepts import ConceptBook
from medvlp.knowledge.graph import build_graph
from medvlp.knowledge.ontology import Concept
from medvlp.knowledge.transe import _corrupted, _hinge, tail_ranks, train_transe


@pytest.fixture
def book(tmp_path: Path) -> ConceptBook:
    return ConceptBook.from_files([write(tmp_path)])


def tree(depth: int = 4, children: int = 3) -> ConceptBook:
    concepts = [Concept("N", "root")]
    level = ["N"]
    for _ in range(depth):
        level = [f"{parent}{k}" for parent in level for k in range(children)]
        concepts += [Concept(name, name, parents=(name[:-1],)) for name in level]
    return ConceptBook(concepts)


def test_arrays_hold_the_links(book: ConceptBook) -> None:
    graph = build_graph(book)
    assert graph.nodes == ("A:1", "D:1", "D:2", "D:3", "D:4", "D:5")
    assert graph.relations == ("is_a", "located_in")
    named = [(graph.nodes[h], graph.relations[r], graph.nodes[t]) for h, r, t in graph.triples.tolist()]
    assert named == [("D:2", "is_a", "D:1"), ("D:3", "is_a", "D:2"), ("D:3", "located_in", "A:1"),
                     ("D:4", "is_a", "D:3"), ("D:5", "is_a", "D:2")]  # fmt: skip
    only = build_graph(book, other_relations=False)
    assert only.relations == ("is_a",)
    assert len(only.triples) == 4


def test_the_edge_index_reaches_every_node(book: ConceptBook) -> None:
    graph = build_graph(book, other_relations=False)
    edges = set(map(tuple, graph.edge_index().T.tolist()))
    links = {(h, t) for h, _, t in graph.triples.tolist()}
    assert edges == links | {(t, h) for h, t in links} | {(k, k) for k in range(6)}
    assert graph.edge_index().shape == (2, len(edges))
    assert set(map(tuple, graph.edge_index(both_ways=False, self_loops=False).T.tolist())) == links
    orphan = graph.nodes.index("A:1")
    assert [pair for pair in edges if orphan in pair] == [(orphan, orphan)]


def test_a_part_of_the_graph_keeps_what_lies_above(book: ConceptBook) -> None:
    assert build_graph(book, keep=["D:6"], other_relations=False).nodes == ("D:1", "D:2", "D:3")
    with pytest.raises(UserError, match="no concept"):
        build_graph(book, keep=["D:99"])


def test_the_loss_is_that_of_the_definition() -> None:
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    nodes, relations = torch.randn(7, 5, generator=generator), torch.randn(2, 5, generator=generator)
    batch = torch.tensor([[0, 0, 1], [2, 1, 3], [4, 0, 5]])
    drawn = torch.tensor([[6, 3], [5, 0], [1, 2]])
    at_head = torch.tensor([True, False, True])
    false = _corrupted(batch, drawn, at_head)
    got = _hinge(nodes, relations, batch, drawn, at_head, 2.0)

    def unit(vector: np.ndarray) -> np.ndarray:
        return vector / np.sqrt((vector**2).sum())

    def distance(h: int, r: int, t: int) -> float:
        n, e = nodes.numpy(), relations.numpy()
        return float(np.abs(unit(n[h]) + unit(e[r]) - unit(n[t])).sum())

    for i, (h, r, t) in enumerate(batch.tolist()):
        for j, other in enumerate(drawn[i].tolist()):
            wrong = (other, r, t) if at_head[i] else (h, r, other)
            assert tuple(false[i, j].tolist()) == wrong
            assert got[i, j] == pytest.approx(max(0.0, 2 + distance(h, r, t) - distance(*wrong)), abs=1e-5)


def test_training_is_determined_by_its_seed_and_learns_the_tree() -> None:
    graph = build_graph(tree(depth=3))
    config = GraphEmbeddingConfig(dim=24, epochs=50, negatives=8, batch_size=16)
    first, again = train_transe(graph, config), train_transe(graph, config)
    assert np.array_equal(first.nodes, again.nodes)
    assert np.array_equal(first.relations, again.relations)
    other = train_transe(graph, config.model_copy(update={"seed": 1}))
    assert not np.array_equal(first.nodes, other.nodes)
    assert first.nodes.dtype == np.float32
    assert np.linalg.norm(first.nodes, axis=1) == pytest.approx(1, abs=1e-5)
    assert first.losses[-1] < 0.4 * first.losses[0]
    trained = (1 / tail_ranks(graph, first)).mean()
    untrained = (1 / tail_ranks(graph, train_transe(graph, config.model_copy(update={"epochs": 1})))).mean()
    assert trained > 0.5
    assert trained > 3 * untrained


def test_a_large_graph_is_trained_the_same_each_time() -> None:
    """Sums of gradients must not depend on the order in which threads finish; small graphs are summed by one."""
    concepts = [
        Concept("N0", "root"),
        *(Concept(f"N{k}", "x", parents=(f"N{k % min(k, 50)}",)) for k in range(1, 3000)),
    ]
    graph = build_graph(ConceptBook(concepts))
    config = GraphEmbeddingConfig(dim=64, epochs=1)
    first, second, third = (train_transe(graph, config).nodes for _ in range(3))
    assert np.array_equal(first, second)
    assert np.array_equal(first, third)


def test_ranks_leave_other_true_tails_out() -> None:
    links = {"A": (), "B": (), "C": ("A", "B"), "D": ()}
    graph = build_graph(ConceptBook(Concept(name, name, parents=parents) for name, parents in links.items()))
    from medvlp.knowledge.transe import GraphEmbedding

    nodes = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 0.0], [0.0, 1.5]], dtype=np.float32)
    embedding = GraphEmbedding(nodes, np.zeros((1, 2), dtype=np.float32), (0.0,))
    # From C: C itself at 0, A at 1, D at 1.5, B at 2; for B the other true tail A is left out.
    assert tail_ranks(graph, embedding).tolist() == [2, 3]


def test_a_graph_without_links_is_refused() -> None:
    with pytest.raises(UserError, match="no link"):
        train_transe(build_graph(ConceptBook([Concept("A", "a")])), GraphEmbeddingConfig())
