"""RadGraph F1: entities and relations of a generated report against those of the reference.

Guarantee: equals the rewards of the package radgraph (Delbrouck et al., Findings of EMNLP 2022) on the same
annotations. Annotations are those of the released model, read from a file or made by `RadGraph`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.errors import UserError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Annotation = Mapping[str, Any]
"""`{"entities": {id: {"tokens", "label", "relations": [[type, id of the other entity], ...]}}}`, as RadGraph has it."""
Statement = tuple[str | bool, ...]


def _entities(annotation: Annotation) -> Sequence[Annotation]:
    return list(annotation["entities"].values())


def _words_and_label(annotation: Annotation) -> set[Statement]:
    return {(entity["tokens"], entity["label"]) for entity in _entities(annotation)}


def _with_relation_or_not(annotation: Annotation) -> set[Statement]:
    return {
        (entity["tokens"], entity["label"], True) if entity["relations"] else (entity["tokens"], entity["label"])
        for entity in _entities(annotation)
    }


def _with_relations(annotation: Annotation) -> set[Statement]:
    """Return entities without relation as they are, and each relation with the words of both ends in lower case."""
    found: set[Statement] = set()
    for entity in _entities(annotation):
        if not entity["relations"]:
            found.add((entity["tokens"], entity["label"]))
        for kind, other in entity["relations"]:
            words = annotation["entities"][other]["tokens"]
            found.add((entity["tokens"].lower(), entity["label"], kind, words.lower()))
    return found


LEVELS: Mapping[str, Callable[[Annotation], set[Statement]]] = {
    "rg_e": _words_and_label,
    "rg_er": _with_relation_or_not,
    "rg_er_bar": _with_relations,
}
"""What must agree: words and label of an entity; also whether it has relations; or which ones and to what."""


def radgraph_counts(generated: Sequence[Annotation], reference: Sequence[Annotation]) -> Int[np.ndarray, "n 3 3"]:
    """Return for each pair and each of `LEVELS` the statements in both, in the generated one, and in the reference.

    Raises:
        ValueError: Not one reference per report.
    """
    counts = np.zeros((len(generated), len(LEVELS), 3), dtype=np.int64)
    for row, (own, other) in enumerate(zip(generated, reference, strict=True)):
        for level, statements in enumerate(LEVELS.values()):
            a, b = statements(own), statements(other)
            counts[row, level] = len(a & b), len(a), len(b)
    return counts


def radgraph_f1(counts: Int[np.ndarray, "*set 3"]) -> Float[np.ndarray, "*set"]:
    """Return F1 of each pair; RadGraph F1 of a set is the mean. Without a common statement, or without any, it is 0."""
    total = counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], total, out=np.zeros(total.shape), where=total > 0)


def read_annotations(file: Path, names: Sequence[str]) -> list[Annotation]:
    """Return the annotations of some reports from a JSON file that maps the name of each report to its annotation.

    Raises:
        UserError: The file cannot be read, lacks a report, or an annotation is not in RadGraph's format.
    """
    fix = "Write it as RadGraph does: a name for each report, with entities that have tokens, label and relations."
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"The annotations cannot be read: {error}.", file, fix) from error
    if not isinstance(content, dict):
        raise UserError("The annotations are no mapping.", file, fix)
    if missing := [name for name in names if name not in content]:
        raise UserError(f"{len(missing)} reports have no annotation, {missing[0]} among them.", file, fix)
    for name in names:
        if mistake := _mistake(content[name]):
            raise UserError(f"The annotation of {name} {mistake}.", file, fix)
    return [content[name] for name in names]


def _mistake(annotation: Any) -> str | None:
    """Return what is wrong with an annotation."""
    entities = annotation.get("entities") if isinstance(annotation, dict) else None
    if not isinstance(entities, dict):
        return "has no entities"
    for entity in entities.values():
        if not isinstance(entity, dict) or not {"tokens", "label", "relations"} <= entity.keys():
            return "has an entity without tokens, label or relations"
        for relation in entity["relations"]:
            if not isinstance(relation, list) or len(relation) != 2 or relation[1] not in entities:
                return "has a relation to no entity"
    return None
