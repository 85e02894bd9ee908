"""Ternary matrices place x finding from triplets (MedKLIP, MeDSLIP), and the labels of each stream.

Guarantee: 1 is present, 0 absent, -1 not mentioned; what a report doubts counts as not mentioned, as in the published
matrices, and stays in the triplets. Present wins over absent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from medvlp.errors import UserError, nearest
from medvlp.knowledge.books import anatomy_names, finding_names
from medvlp.types import ABSENT, PRESENT, Triplet

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int8

NOT_STATED = -1


def ternary_matrix(cells: Iterable[Triplet]) -> Int8[np.ndarray, "51 75"]:
    """Return the matrix of triplets whose places and findings are book entries (see `text.triplets.cells_of`).

    Raises:
        UserError: A name is no book entry.
    """
    import numpy as np

    places = {name: k for k, name in enumerate(anatomy_names())}
    findings = {name: k for k, name in enumerate(finding_names())}
    matrix = np.full((len(places), len(findings)), NOT_STATED, dtype=np.int8)
    for cell in cells:
        for name, known in ((cell.anatomy, places), (cell.finding, findings)):
            if name not in known:
                raise UserError(f"'{name}' is no book entry.{nearest(name, list(known))}", fix="Map it to one first.")
        if cell.value in (PRESENT, ABSENT):
            row, column = places[cell.anatomy], findings[cell.finding]
            matrix[row, column] = max(matrix[row, column], int(cell.value))
    return matrix


def finding_labels(matrix: Int8[np.ndarray, "*n 51 75"]) -> Int8[np.ndarray, "*n 75"]:
    """Return each finding's label: 1 where it is present anywhere, else 0 where it is denied anywhere, else -1."""
    return matrix.max(axis=-2)


def anatomy_labels(matrix: Int8[np.ndarray, "*n 51 75"]) -> Int8[np.ndarray, "*n 51"]:
    """Return each place's label: 1 where any finding is present there, else 0 where any is denied, else -1."""
    return matrix.max(axis=-1)
