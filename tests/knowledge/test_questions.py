"""What prompts ask, in the entries of the books."""

from __future__ import annotations

import pytest

from medvlp.knowledge.books import anatomy_names, finding_names
from medvlp.knowledge.questions import Question, read_question, sided_places


def asked(prompt: str) -> list[tuple[str, str | None, bool]]:
    return [
        (finding_names()[q.finding], None if q.place is None else anatomy_names()[q.place], q.denied)
        for q in read_question(prompt)
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("there is a pleural effusion", [("effusion", None, False)]),
        ("no pleural effusion", [("effusion", None, True)]),
        ("small left pleural effusion", [("effusion", "left_pleural", False)]),
        ("right lower lobe consolidation", [("consolidation", "lower_right_lobe", False)]),
        ("bilateral effusions", [("effusion", "left_pleural", False), ("effusion", "right_pleural", False)]),
        ("no nodule or mass", [("nodule", None, True), ("mass", None, True)]),
        ("the heart is enlarged", [("cardiomegaly", None, False), ("enlarge", None, False)]),
        ("possible pneumonia", [("pneumonia", None, False)]),
        ("Pleural_Thickening", [("thicken", None, False)]),
        ("tail_abnorm_obs", [("tail_abnorm_obs", None, False)]),
        ("Tube", [("tube", None, False)]),
        ("no tube", [("tube", None, True)]),
        ("covid", []),
        ("", []),
    ],
)
def test_a_prompt_is_read_as_a_report_is(prompt: str, expected: list[tuple[str, str | None, bool]]) -> None:
    assert asked(prompt) == expected


def test_a_question_is_asked_once() -> None:
    question = Question(finding_names().index("effusion"))
    assert read_question("pleural effusion, a pleural effusion") == (question,)


def test_chambers_of_the_heart_are_no_side_of_the_chest() -> None:
    names = {anatomy_names()[row] for row in sided_places()}
    assert {"left_pleural", "middle_right_lobe", "right_costophrenic"} <= names
    assert not names & {"right_atrium", "right_ventricle", "heart_size", "unspecified"}
