"""The table of all methods is made from the result, and says what is missing and what is not above random."""

from __future__ import annotations

import importlib.util
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "methods.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("methods_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def score(value: float, chance: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02, "n": 9, "chance": chance}


def row(title: str, probe: float, delta: float, **more: Any) -> dict[str, Any]:
    difference = {"b": "random", "value_b": 0.7, "difference": delta, "low": delta - 0.01, "high": delta + 0.01}
    known = {"title": title, "training": {"minutes": 7.4}, "probe": score(probe), "probe_minus_random": difference}
    return known | {"faithful": True} | more


def test_the_table_ranks_marks_and_names_what_is_missing(script: ModuleType) -> None:
    result = {
        "methods": [
            row("Weak", 0.7, 0.005, retrieval={"status": "not applicable: the encoder has no text side"}),
            row("Strong", 0.9, 0.2, pointing=score(0.6, 0.15), faithful=False),
            {"title": "Broken", "failed": "error: out of memory"},
        ],
        "baselines": [{"name": "location_prior", "pointing": score(0.45, 0.15)}],
    }
    lines = script.table(result).splitlines()
    assert lines[2] == "| Strong (stand-in) | 0.900 (0.880–0.920) | – | 0.600 (0.580–0.620) | – | 7 |"
    assert lines[3] == "| Weak ¹ | 0.700 (0.680–0.720) | – | – | – | 7 |"
    assert lines[4].startswith("| Broken | failed: error: out of memory |")
    assert lines[5] == "| *location_prior* | – | – | 0.450 (0.430–0.470) | – | |"
    assert lines[6] == "| *chance* | 0.500 | 0.500 | 0.150 | – | |"
    assert lines[-1].startswith("¹ Not above")
    assert len({line.count("|") for line in lines[:7]}) == 1


@pytest.mark.parametrize("encoder", ["albef", "villa"])
def test_a_probe_is_compared_with_random_weights_of_its_family_whichever_stands_first(
    script: ModuleType, encoder: str
) -> None:
    def comparison(a: str, b: str, value_a: float, value_b: float) -> dict[str, Any]:
        delta = value_a - value_b
        scores = {
            "value_a": value_a,
            "value_b": value_b,
            "difference": delta,
            "low": delta - 0.01,
            "high": delta + 0.03,
        }
        names = {"task": "phantom_findings", "protocol": "linear_probe", "metric": "auroc", "label": "macro"}
        return names | {"a": a, "b": b, "p_adjusted": 0.5} | scores

    values = {encoder: 0.9, "random:resnet10t@96": 0.75, "random:vit_tiny_patch16_224@96": 0.5}
    rows = [comparison(a, b, values[a], values[b]) for a, b in itertools.combinations(sorted(values), 2)]
    found = script.against_random(rows, encoder, "vit_tiny_patch16_224")
    assert found["value_b"] == 0.5
    assert found["difference"] == pytest.approx(0.4)
    assert (found["high"] - found["difference"] > 0.02) == (encoder == "albef")
    assert found["low"] < found["difference"] < found["high"]
    assert script.against_random(rows, encoder, "resnet10t")["difference"] == pytest.approx(0.15)


def test_minutes_are_those_of_the_steps_once_each(script: ModuleType, tmp_path: Path) -> None:
    rows = [
        {"step": 10, "train/samples_per_second": 10.0, "train/loss": 3.0},
        {"step": 20, "train/samples_per_second": 5.0, "train/loss": 2.0},
        {"step": 20, "train/samples_per_second": 5.0, "train/loss": 2.0},
        {"step": 30, "val/loss": 1.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = SCRIPT.parents[1] / "configs" / "pretrain" / "convirt-tiny.yaml"
    found = script.training(file, tmp_path)
    batch = found["batch_size"]
    assert found["minutes"] == pytest.approx(round(10 * batch / 10 / 60 + 10 * batch / 5 / 60, 1))
    assert (found["steps"], found["loss"]) == (20, 2.0)


def test_the_table_of_the_readme_is_that_of_the_result(script: ModuleType) -> None:
    page = script.PAGE.read_text(encoding="utf-8")
    if not script.RESULT.is_file():
        assert script.BEGIN not in page, "a table without a result"
        return
    result = json.loads(script.RESULT.read_text(encoding="utf-8"))
    assert f"{script.BEGIN}\n{script.table(result)}\n{script.END}" in page
