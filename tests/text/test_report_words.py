"""Words of reports on sentences with known result; whole reports are compared in `tests/metrics/report`."""

from __future__ import annotations

import pytest

from medvlp.errors import UserError
from medvlp.text.report_words import r2gen_text, simple_text, tokeniser


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
