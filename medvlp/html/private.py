"""Keeps places of a machine out of pages that are handed on.

Guarantee: of an absolute, home or parent-relative path only its last part is left, in texts and in nested records.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PART = r"""[^\s/\\'":,;<>|()\[\]]+"""
_PATH = re.compile(
    rf"(?<![\w./\\])(?<!http:)(?<!https:)(?:~\w*|\.{{1,2}}|[A-Za-z]:)?[/\\](?:{_PART}[/\\])*({_PART})[/\\]?"
)
_WITHHELD = ("patient_id", "patient_ids", "patient_name", "birth_date", "accession_number", "hostname", "user", "cwd")


def scrub(text: str) -> str:
    """Return `text` with every machine path cut to its last part; web addresses and words like `AP/PA` stay."""
    return _PATH.sub(r"\1", text.replace("file://", ""))


def public(record: Any) -> Any:
    """Return a copy of a nested record without machine paths and without fields that name a person or machine."""
    if isinstance(record, Mapping):
        return {scrub(str(key)): public(value) for key, value in record.items() if key not in _WITHHELD}
    if isinstance(record, (list, tuple)):
        return [public(value) for value in record]
    return scrub(record) if isinstance(record, str) else record
