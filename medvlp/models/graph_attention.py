"""Vectors of concepts by attention over the links between them (GAT, arXiv 1710.10903; ARL, ACM MM 2022).

Guarantee: a concept sees itself and those it is linked with, in either direction, each once; the result does not depend
on the order of the links. Computed in at least float32 also under autocast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from medvlp.knowledge.table import ConceptTable

SLOPE = 0.2


class GraphAttention(nn.Module):
    """One layer: each node becomes a weighted sum of its neighbours, in several heads.

    Args:
        width: Width of the nodes.
        dim: Width of a head.
        heads: Number of heads.
        join: Put the heads side by side; else their mean.
        dropout: Of the weights; a node never loses sight of itself, or one without links would become a vector of
            zeros, whose norm has no usable gradient.
    """

    def __init__(self, width: int, dim: int, heads: int, join: bool, dropout: float) -> None:
        super().__init__()
        self.heads, self.dim, self.join, self.dropout = heads, dim, join, dropout
        self.project = nn.Linear(width, heads * dim, bias=False)
        self.source, self.target = nn.Parameter(torch.empty(heads, dim)), nn.Parameter(torch.empty(heads, dim))
        self.bias = nn.Parameter(torch.zeros(heads * dim if join else dim))
        for weight in (self.project.weight, self.source, self.target):
            nn.init.xavier_uniform_(weight)

    def forward(self, nodes: Float[torch.Tensor, "n d"], links: Int[torch.Tensor, "2 e"]) -> Float[torch.Tensor, "n e"]:
        """Return the new nodes; link (i, j) lets j see i."""
        source, target = links
        projected = self.project(nodes).unflatten(1, (self.heads, self.dim))
        scores = (projected * self.source).sum(2)[source] + (projected * self.target).sum(2)[target]
        scores = functional.leaky_relu(scores, SLOPE)
        lowest = scores.new_full((len(nodes), self.heads), -torch.inf)
        top = lowest.scatter_reduce(0, target[:, None].expand_as(scores), scores.detach(), "amax")
        weights = (scores - top[target]).exp()
        weights = weights / torch.zeros_like(top).index_add(0, target, weights)[target]
        dropped = functional.dropout(weights, self.dropout, self.training)
        weights = torch.where((source == target)[:, None], weights, dropped)
        seen = torch.zeros_like(projected).index_add(0, target, weights[..., None] * projected[source])
        return (seen.flatten(1) if self.join else seen.mean(1)) + self.bias


class ConceptGraph(nn.Module):
    """Node vectors, then two layers of graph attention.

    Args:
        concepts: Ids, links and, where there are any, vectors to start from.
        dim: Width of a concept's vector.
        heads: Heads of the first layer.
        head_dim: Width of each.
        dropout: Of nodes and weights.

    Raises:
        UserError: There is no concept, or the start vectors have another width.
    """

    links: torch.Tensor

    def __init__(self, concepts: ConceptTable, dim: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        if len(concepts) == 0:
            raise UserError(
                "The texts name no concept of the knowledge bank.",
                "data.knowledge",
                "Give a bank that suits the reports.",
            )
        if concepts.vectors is not None and concepts.vectors.shape[1] != dim:
            raise UserError(
                f"The bank's vectors have {concepts.vectors.shape[1]} numbers, the method's concepts {dim}.",
                "method.options.entities.dim",
                f"Set it to {concepts.vectors.shape[1]}.",
            )
        self.register_buffer("links", both_ways(concepts), persistent=False)
        nodes = torch.randn(len(concepts), dim) if concepts.vectors is None else torch.as_tensor(concepts.vectors)
        self.nodes = nn.Parameter(nodes.float().clone())
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.first = GraphAttention(dim, head_dim, heads, join=True, dropout=dropout)
        self.second = GraphAttention(heads * head_dim, dim, 1, join=False, dropout=dropout)

    def forward(self) -> Float[torch.Tensor, "n d"]:
        """Return the vectors of all concepts; with dropout each call differs, so call it once a step."""
        with torch.autocast(self.nodes.device.type, enabled=False):
            nodes = functional.dropout(self.norm(self.nodes), self.dropout, self.training)
            nodes = functional.elu(self.first(nodes, self.links))
            return self.second(functional.dropout(nodes, self.dropout, self.training), self.links)


def both_ways(concepts: ConceptTable) -> Int[torch.Tensor, "2 e"]:
    """Return every link in both directions and one of each concept with itself, sorted, each once."""
    given = torch.as_tensor(concepts.links).long().reshape(2, -1)
    own = torch.arange(len(concepts)).expand(2, -1)
    return torch.cat([given, given.flip(0), own], dim=1).unique(dim=1)
