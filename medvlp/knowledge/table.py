"""The concept table of a method: which concepts its batches name, how they are linked, and where embeddings start.

Guarantee: row i of every array is concept i of `ids`. Ids and links are saved with a model; start vectors are not, they
live on in its weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Float, Int


@dataclass(frozen=True)
class ConceptTable:
    """Concepts that the texts of a data set name.

    Args:
        ids: Their ids, in the order of the rows.
        links: Pairs of rows that the ontology links, `[2 e]`.
        vectors: Graph embeddings to start from, or None.
    """

    ids: tuple[str, ...]
    links: Int[np.ndarray, "2 e"]
    vectors: Float[np.ndarray, "n d"] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def to_json(self) -> dict[str, Any]:
        """Return ids and links as JSON types."""
        return {"ids": list(self.ids), "links": self.links.tolist()}

    @classmethod
    def from_json(cls, described: dict[str, Any]) -> ConceptTable:
        """Inverse of `to_json`."""
        import numpy as np

        return cls(tuple(described["ids"]), np.asarray(described["links"], dtype=np.int64).reshape(2, -1))
