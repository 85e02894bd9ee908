"""The page on scale says what was measured and computed, and the arithmetic is right."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs/explanation/scale.md").read_text(encoding="utf-8")
RESULT = json.loads((REPOSITORY / "benchmarks/results/scale_plan.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", RESULT["plan"])
def test_the_tables_are_those_of_the_result(name: str) -> None:
    plan = RESULT["plan"][name]
    facts = [f"{plan['items']:,}", plan["core_hours"], plan["raw_tb"], plan["stored_tb"]]
    assert f"| `{name}` | " + " | ".join(map(str, [*facts, f"{plan['files']:,}", f"{plan['shards']:,}"])) + " |" in PAGE
    for cluster, found in plan["clusters"].items():
        hours = " | ".join(str(value) for value in found["hours"].values())
        assert f"| `{name}` | {cluster} | {found['jobs']} | {hours} |" in PAGE


def test_measured_rates_and_links_are_those_of_the_result() -> None:
    for name, digits in (("jpeg", 3), ("dicom", 3), ("nifti", 2), ("dicom_series", 2)):
        rate = RESULT["measured"][name]
        assert f" | {rate['core_seconds']:.{digits}f} | " in PAGE
    link = RESULT["reading_over_a_link"]
    for name, kind in (("images", "image"), ("crops", "crop")):
        speeds = " | ".join(f"{speed[name]:,}" for speed in link["a_second"].values())
        assert f" | {link['bytes'][kind]:,} | {speeds} |" in PAGE
    for hours in RESULT["plan"]["ct_rate"]["copy_hours"].values():
        assert f"{hours} hours" in PAGE


def test_the_arithmetic_holds() -> None:
    measured, ct = RESULT["measured"], RESULT["plan"]["ct_rate"]
    per_volume = measured["nifti"]["core_seconds"] * 285 / 300
    assert ct["core_hours"] == pytest.approx(50_188 * per_volume / 3600, abs=0.06)
    assert ct["stored_tb"] == pytest.approx(50_188 * measured["nifti"]["stored_bytes"] * 0.95 / 1e12, abs=0.001)
    moved = 50_188 * 0.95 * (measured["nifti"]["stored_bytes"] + measured["nifti"]["raw_bytes"])
    alone = 25_692 * measured["table_core_seconds_per_study"]
    hours = ct["clusters"]["100 jobs of one core"]["hours"]
    assert hours["200 MB/s"] == pytest.approx((moved / 2e8 + alone) / 3600, abs=0.06)
    assert RESULT["plan"]["mimic_cxr"]["shards"] == math.ceil(377_110 / 512)
