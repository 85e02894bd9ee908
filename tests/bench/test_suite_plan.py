"""Which cells a suite has for encoders that offer more or less than a task needs."""

from __future__ import annotations

from typing import Any

import pytest

from medvlp.bench.plan import Judged, lacking, left_out, not_applicable, settings_of
from medvlp.config.suite import SuiteConfig
from medvlp.config.task import TaskConfig
from medvlp.tasks import TASKS
from medvlp.tasks.base import HEAT_MAPS, SCORES, SPACE

LABELS = [{"name": "x", "positive": "x"}]


def tasks() -> dict[str, Any]:
    given = {"classification": LABELS, "grounding": LABELS, "retrieval": []}
    return {
        kind: TASKS.get(kind)(
            TaskConfig.model_validate({"name": kind, "version": 1, "dataset": "d", "type": kind, "labels": labels})
        )
        for kind, labels in given.items()
    }


def judged(*offers: str, name: str = "e", has_text: bool = True, kind: Any = "encoder") -> Judged:
    return Judged(name, name, "h", "d", kind, has_text=has_text, offers=offers)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (judged(SCORES, SPACE, HEAT_MAPS), {}),
        (judged(SCORES, HEAT_MAPS), {"retrieval": "the encoder has no shared space of images and texts"}),
        (judged(SPACE, SCORES), {"grounding": "the encoder has no heat maps"}),
        (
            judged(SPACE),
            {"classification": "the encoder has no zero-shot scores", "grounding": "the encoder has no heat maps"},
        ),
        (
            judged(has_text=False),
            dict.fromkeys(("classification", "grounding", "retrieval"), "the encoder has no text side"),
        ),
    ],
)
def test_zero_shot_needs_what_the_task_names(one: Judged, expected: dict[str, str]) -> None:
    known = tasks()
    assert {kind: lack for kind, task in known.items() if (lack := lacking(task, "zero_shot", one))} == expected
    assert lacking(known["classification"], "linear_probe", one) == ""
    suite = SuiteConfig.model_validate(
        {"name": "s", "version": 1, "entries": [{"task": kind, "protocols": ["zero_shot"]} for kind in known]}
    )
    planned = {key for key, *_ in settings_of(suite, known, [one])}
    assert planned == set(known) - set(expected)
    assert not_applicable(suite, known, [one]) == [(kind, "zero_shot", "e", lack) for kind, lack in expected.items()]


def test_what_is_left_out_is_said_for_every_amount_of_labels() -> None:
    known = tasks()
    entry = {"task": "classification", "protocols": ["linear_probe", "few_shot"], "fractions": [0.1, 1.0], "shots": [4]}
    entry["exclude"] = {"e": "for a reason"}
    suite = SuiteConfig.model_validate({"name": "s", "version": 1, "entries": [{**entry, "draws": 2}]})
    assert not list(settings_of(suite, known, [judged(name="e")]))
    found = {
        (protocol, amount.fraction, amount.shots) for _, protocol, amount, *_ in left_out(suite, known, [judged()])
    }
    assert found == {("linear_probe", 0.1, 0), ("linear_probe", 1.0, 0), ("few_shot", 1.0, 4)}
    assert {why for *_, why in left_out(suite, known, [judged()])} == {"left out: for a reason"}
    assert len(list(settings_of(suite, known, [judged(name="other")]))) == 2 + 1 + 2


def test_baselines_stand_beside_the_tasks_that_they_belong_to() -> None:
    known = tasks()
    suite = SuiteConfig.model_validate(
        {"name": "s", "version": 1, "entries": [{"task": kind, "protocols": ["zero_shot"]} for kind in known]}
    )
    for name, expected in (
        ("majority", ("classification", "linear_probe")),
        ("location_prior", ("grounding", "zero_shot")),
    ):
        one = judged(name=name, has_text=False, kind="baseline")
        assert [found[:2] for found in settings_of(suite, known, [one])] == [expected]
