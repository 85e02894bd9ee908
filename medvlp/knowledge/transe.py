"""Embeddings of a concept graph by TransE (Bordes et al., NeurIPS 2013): head + relation lies near tail.

Guarantee: equal graph, settings and seed give equal embeddings on one machine; a node's vector has unit length. Written
here because the libraries that have it bring a download cache and a tuner with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError
from medvlp.knowledge.graph import ConceptGraph

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float, Int

    from medvlp.config.knowledge import GraphEmbeddingConfig


@dataclass(frozen=True)
class GraphEmbedding:
    """Vectors of nodes and relations, and the mean loss of each epoch."""

    nodes: Float[np.ndarray, "n d"]
    relations: Float[np.ndarray, "r d"]
    losses: tuple[float, ...]


def train_transe(graph: ConceptGraph, config: GraphEmbeddingConfig) -> GraphEmbedding:
    """Train TransE by the margin loss max(0, margin + |h + r - t|_1 - |h' + r - t'|_1), with corrupted heads or tails.

    A corrupted triple that is in the graph does not count. Adam; each epoch shuffles the triples anew.

    Args:
        graph: At least two nodes and one link.
        config: Width, margin, negatives, epochs, learning rate, batch and seed.

    Raises:
        UserError: The graph has no link.
    """
    import torch

    if len(graph.triples) == 0:
        raise UserError("The concept graph has no link to learn from.", fix="Give an ontology with is_a links.")
    generator = torch.Generator().manual_seed(config.seed)
    triples = torch.from_numpy(graph.triples)
    known = torch.from_numpy(np.unique(_codes(graph, graph.triples)))
    bound = 6 / config.dim**0.5
    nodes = (torch.rand(len(graph.nodes), config.dim, generator=generator) * 2 - 1).mul_(bound).requires_grad_()
    relations = (torch.rand(len(graph.relations), config.dim, generator=generator) * 2 - 1).mul_(bound).requires_grad_()
    optimizer = torch.optim.Adam([nodes, relations], lr=config.lr)
    losses = []
    for _ in range(config.epochs):
        order = torch.randperm(len(triples), generator=generator)
        total = 0.0
        for start in range(0, len(order), config.batch_size):
            batch = triples[order[start : start + config.batch_size]]
            drawn = torch.randint(len(graph.nodes), (len(batch), config.negatives), generator=generator)
            at_head = torch.rand(len(batch), generator=generator) < 0.5
            counts = ~torch.isin(_codes(graph, _corrupted(batch, drawn, at_head)), known)
            loss = (_hinge(nodes, relations, batch, drawn, at_head, config.margin) * counts).sum()
            loss = loss / counts.sum().clamp(min=1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(batch)
        losses.append(total / len(triples))
    unit = torch.nn.functional.normalize
    return GraphEmbedding(unit(nodes.detach()).numpy(), unit(relations.detach()).numpy(), tuple(losses))


def _codes(graph: ConceptGraph, triples: Any) -> Any:
    """Return one whole number for each triple `[... 3]`."""
    n, r = len(graph.nodes), len(graph.relations)
    return (triples[..., 0] * r + triples[..., 1]) * n + triples[..., 2]


def _corrupted(batch: torch.Tensor, drawn: torch.Tensor, at_head: torch.Tensor) -> torch.Tensor:
    """Return the false triples [b k 3]: the head, or the tail, of triple b replaced by the drawn nodes [b k]."""
    import torch

    false = batch[:, None].repeat(1, drawn.shape[1], 1)
    false[..., 0] = torch.where(at_head[:, None], drawn, false[..., 0])
    false[..., 2] = torch.where(at_head[:, None], false[..., 2], drawn)
    return false


def _hinge(
    nodes: torch.Tensor,
    relations: torch.Tensor,
    batch: torch.Tensor,
    drawn: torch.Tensor,
    at_head: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Return max(0, margin + distance of the true triple - distance of the false one) [b k]."""
    import torch
    import torch.nn.functional as F

    unit = F.normalize(nodes, dim=-1)
    head, tail = F.embedding(batch[:, 0], unit), F.embedding(batch[:, 2], unit)  # indexing sums gradients in any order
    step = F.embedding(batch[:, 1], F.normalize(relations, dim=-1))
    true = (head + step - tail).abs().sum(-1)
    wanted = torch.where(at_head[:, None], tail - step, head + step)  # where the replaced node would have to lie
    false = (F.embedding(drawn, unit) - wanted[:, None]).abs().sum(-1)
    return torch.relu(margin + true[:, None] - false)


def tail_ranks(graph: ConceptGraph, embedding: GraphEmbedding) -> Int[np.ndarray, " e"]:
    """Return for each triple the rank, from 1, of its tail among all nodes by distance, other true tails left out."""
    ranks = np.empty(len(graph.triples), dtype=np.int64)
    true: dict[tuple[int, int], list[int]] = {}
    for head, relation, tail in graph.triples.tolist():
        true.setdefault((head, relation), []).append(tail)
    for row, (head, relation, tail) in enumerate(graph.triples.tolist()):
        distance = np.abs(embedding.nodes[head] + embedding.relations[relation] - embedding.nodes).sum(1)
        others = [other for other in true[head, relation] if other != tail]
        ranks[row] = 1 + (np.delete(distance, others) < distance[tail]).sum()
    return ranks
