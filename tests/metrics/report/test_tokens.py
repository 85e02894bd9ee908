"""Tokenisers against hashes of the officially tokenised reports, and on sentences with known result."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import pytest

from medvlp.errors import UserError
from medvlp.metrics.report.tokens import TOKENISERS, r2gen_text, simple_text, tokeniser


def test_iu_reports_have_the_official_hashes(folder: Path, iu_texts: dict[str, str]) -> None:
    tables = sorted(folder.glob("per_sample_*.csv"))
    assert {table.stem.removeprefix("per_sample_") for table in tables} == set(TOKENISERS)
    for table in tables:
        rule = tokeniser(table.stem.removeprefix("per_sample_"))
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        for row in rows:
            for side in ("reference", "generated"):
                text = rule(iu_texts[row[f"{side}_id"]])
                assert hashlib.sha256(text.encode()).hexdigest()[:16] == row[f"{side}_sha256"]
                assert len(text.split()) == int(row[f"{side}_tokens"])


@pytest.mark.parametrize(
    ("text", "simple", "r2gen"),
    [
        ("", "", " ."),
        ("Heart: NORMAL, size 3.5cm.", "heart normal size 3 5cm", "heart normal size 35cm ."),
        ("No mass,edema. X-ray; ok?", "no mass edema x ray ok", "no massedema . x-ray ok ."),
        ("1. Clear. 2. Normal. 6. Odd.", "1 clear 2 normal 6 odd", "clear . normal . 6 . odd ."),
        ('The "heart" is [big]. ', "the heart is big", "the heart is big ."),
        ("Say 'no '. Then", "say no then", "say no . then ."),
        ("A.... B.. C", "a b c", "a . b . c ."),
    ],
)  # fmt: skip
def test_texts_with_known_result(text: str, simple: str, r2gen: str) -> None:
    assert simple_text(text) == simple
    assert r2gen_text(text) == r2gen


def test_an_unknown_rule_is_named() -> None:
    with pytest.raises(UserError, match="Did you mean 'r2gen'"):
        tokeniser("r2gem")
