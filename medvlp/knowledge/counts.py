"""How often the reports of a bank state each finding and name each concept.

Guarantee: a report counts once for a finding and value, and once for a concept, however often it repeats itself.
"""

from __future__ import annotations

from collections import Counter

from medvlp.knowledge.bank import KnowledgeBank
from medvlp.types import ABSENT, PRESENT, UNCERTAIN


def finding_counts(bank: KnowledgeBank, store: str | None = None) -> list[tuple[str, int, int, int]]:
    """Return (finding, reports that state it present, absent, uncertain), the most frequent first."""
    found: dict[float, Counter[str]] = {value: Counter() for value in (PRESENT, ABSENT, UNCERTAIN)}
    for report in bank.reports(store).values():
        for value, counter in found.items():
            counter.update({cell.finding for cell in report.cells if cell.value == value})
    names = sorted({name for counter in found.values() for name in counter})
    rows = [(name, found[PRESENT][name], found[ABSENT][name], found[UNCERTAIN][name]) for name in names]
    return sorted(rows, key=lambda row: (-sum(row[1:]), row[0]))


def concept_counts(bank: KnowledgeBank, store: str | None = None) -> list[tuple[str, str, int]]:
    """Return (id, name, reports that name it), the most frequent first."""
    found: Counter[str] = Counter()
    for report in bank.reports(store).values():
        found.update({span.concept_id for span in report.spans})
    return sorted(((name, bank.book[name].name, count) for name, count in found.items()), key=lambda r: (-r[2], r[0]))
