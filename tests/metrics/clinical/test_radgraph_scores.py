"""RadGraph F1 on annotations counted by hand, and files that are broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.metrics.clinical.radgraph import LEVELS, radgraph_counts, radgraph_f1, read_annotations

PRESENT, ANATOMY, ABSENT = (
    "Observation::definitely present",
    "Anatomy::definitely present",
    "Observation::definitely absent",
)


def annotation(*entities: tuple[str, str, list[list[str]]]) -> dict[str, Any]:
    return {
        "entities": {
            str(place): {"tokens": tokens, "label": label, "relations": relations}
            for place, (tokens, label, relations) in enumerate(entities, 1)
        }
    }


OWN = annotation(
    ("Small", PRESENT, [["modify", "2"]]),
    ("effusion", PRESENT, [["located_at", "3"]]),
    ("left", ANATOMY, []),
    ("edema", ABSENT, []),
)
OTHER = annotation(
    ("small", PRESENT, [["modify", "2"]]),
    ("effusion", PRESENT, [["located_at", "3"], ["located_at", "4"]]),
    ("left", ANATOMY, []),
    ("base", ANATOMY, []),
    ("edema", PRESENT, []),
)
NOTHING = annotation()


def test_statements_that_agree_are_counted_at_each_level() -> None:
    counts = radgraph_counts([OWN, OWN, NOTHING], [OTHER, OWN, NOTHING])
    assert list(LEVELS) == ["rg_e", "rg_er", "rg_er_bar"]
    # words and label: effusion, left; whether related: the same; which relations: small-modify-effusion in lower
    # case, effusion-located_at-left, left.
    np.testing.assert_array_equal(counts[0], [[2, 4, 5], [2, 4, 5], [3, 4, 6]])
    np.testing.assert_allclose(radgraph_f1(counts[0]), [4 / 9, 4 / 9, 6 / 10])
    np.testing.assert_allclose(radgraph_f1(counts[1:]), [[1, 1, 1], [0, 0, 0]])
    assert radgraph_f1(radgraph_counts([OWN], [NOTHING])).tolist() == [[0, 0, 0]]


def test_repeated_entities_count_once() -> None:
    twice = annotation(("left", ANATOMY, []), ("left", ANATOMY, []), ("left", ANATOMY, [["modify", "1"]]))
    assert radgraph_counts([twice], [twice])[0].tolist() == [[1, 1, 1], [2, 2, 2], [2, 2, 2]]


def test_each_report_needs_a_reference() -> None:
    with pytest.raises(ValueError, match="shorter"):
        radgraph_counts([OWN], [])


@pytest.mark.parametrize(
    ("content", "mistake"),
    [
        ("[1", "cannot be read"),
        ("[]", "no mapping"),
        ({"a": OWN}, "1 reports have no annotation, b among them"),
        ({"a": OWN, "b": {}}, "annotation of b has no entities"),
        ({"a": OWN, "b": {"entities": {"1": {"tokens": "x"}}}}, "without tokens, label or relations"),
        ({"a": OWN, "b": annotation(("x", PRESENT, [["modify", "7"]]))}, "relation to no entity"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: Any, mistake: str) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=mistake):
        read_annotations(file, ["a", "b"])


def test_annotations_come_in_the_order_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"a": OWN, "b": OTHER}))
    assert read_annotations(file, ["b", "a"]) == [OTHER, OWN]
