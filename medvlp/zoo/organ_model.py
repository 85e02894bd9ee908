"""fVLM's released model: a vector for each organ, from the tokens that its mask covers.

Guarantee: the vectors are the official ones: a query of the organ attends to the tokens of three blocks and of the last
norm, under the organ's mask, and a projection of its own follows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from medvlp.errors import UserError
from medvlp.zoo.axes import to_axes
from medvlp.zoo.release import Release
from medvlp.zoo.released import ReleasedModel

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


class OrganModel(ReleasedModel):
    """An image tower and vectors of organs.

    Options of the format: `organs`, their names in the order of the file; `blocks` whose tokens are read, from 0;
    `heads` and `width` of the attention and the projections.

    Attributes:
        queries: One for each organ.
    """

    def __init__(self, release: Release) -> None:
        super().__init__(release)
        options, dim = release.options, self.image.dim
        self.organs: tuple[str, ...] = tuple(options["organs"])
        self.queries = nn.Parameter(torch.zeros(len(self.organs), dim))
        self.attention = nn.MultiheadAttention(dim, options["heads"], batch_first=True)
        self.projections = nn.ModuleList(nn.Linear(dim, options["width"]) for _ in self.organs)

    def organ_states(
        self, pixels: Float[torch.Tensor, "b c d h w"], masks: Bool[torch.Tensor, "b o z y x"]
    ) -> Float[torch.Tensor, "b o d"]:
        """Return what the query of each organ reads, before the projection.

        Args:
            pixels: Normalised voxels in RAS.
            masks: Whether a token belongs to an organ, on the grid of the tower's features.

        Raises:
            UserError: A mask covers no token, or there are not as many as organs.
        """
        if masks.shape[1] != len(self.organs) or not masks.flatten(2).any(2).all():
            raise UserError(
                f"The masks are not one of each of {', '.join(self.organs)}, or one of them is empty.",
                "organs",
                "Give a mask that covers a token for each organ, and leave volumes out that lack one.",
            )
        turned = to_axes(pixels, self.image.config.axes)
        self.image.check_own_size(tuple(turned.shape[2:]))
        states = list(self.image.states(turned))
        read = [states[block] for block in self.release.options["blocks"]]
        tokens = torch.cat([*read, self.image.backbone.norm(states[-1])], dim=1)
        flags = to_axes(masks, self.image.config.axes).flatten(2).repeat(1, 1, len(read) + 1)
        found = []
        for organ in range(len(self.organs)):
            query = self.queries[organ].expand(len(tokens), 1, -1)
            out, _ = self.attention(query, tokens, tokens, key_padding_mask=~flags[:, organ], need_weights=False)
            found.append(out[:, 0])
        return torch.stack(found, dim=1)

    def organ_vectors(
        self, pixels: Float[torch.Tensor, "b c d h w"], masks: Bool[torch.Tensor, "b o z y x"]
    ) -> Float[torch.Tensor, "b o e"]:
        """Return unit vectors of organs in the space of their texts; see `organ_states`."""
        return self.project_organs(self.organ_states(pixels, masks))

    def project_organs(self, states: Float[torch.Tensor, "b o d"]) -> Float[torch.Tensor, "b o e"]:
        """Return unit vectors of what the queries of organs read."""
        vectors = [project(state) for project, state in zip(self.projections, states.unbind(1), strict=True)]
        return functional.normalize(torch.stack(vectors, dim=1), dim=2)
