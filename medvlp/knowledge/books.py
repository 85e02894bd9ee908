"""The anatomy book (51 places) and the finding book (75 findings), in the order that published decoders use.

Guarantee: names and order are those of MeDSLIP and MedKLIP, so that a released checkpoint's queries and a triplet
matrix mean the same; the describing sentences are medvlp's own. A definition and an appearance are kept apart (DeViDe).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

BOOKS = tuple(Path(__file__).with_name(name) for name in ("anatomy.yaml", "findings.yaml"))
NORMAL_FINDINGS = 8
"""The first entries of the finding book are words of health; the others are abnormal."""


@dataclass(frozen=True)
class FindingNote:
    """An entry of the finding book: what the finding is, and how it looks on a radiograph."""

    name: str
    definition: str
    appearance: tuple[str, ...]

    @property
    def description(self) -> str:
        """Definition and appearance in one text, for a method that wants a single one."""
        return " ".join([self.definition, *(f"{sentence}." for sentence in self.appearance)])


@dataclass(frozen=True)
class AnatomyNote:
    """An entry of the anatomy book."""

    name: str
    description: str

    def prompt(self, trailing: bool = True) -> str:
        """Return the text that is embedded for the place.

        Args:
            trailing: End in ". " as MeDSLIP does; MedKLIP leaves it out.
        """
        return f"It is located at {self.name}" + (". " if trailing else "")


def _read(name: str) -> list[dict[str, Any]]:
    import yaml

    entries: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return entries


@cache
def finding_book() -> tuple[FindingNote, ...]:
    """Return the 75 findings in order."""
    return tuple(FindingNote(e["name"], e["definition"], tuple(e["appearance"])) for e in _read("findings.yaml"))


@cache
def anatomy_book() -> tuple[AnatomyNote, ...]:
    """Return the 51 places in order."""
    return tuple(AnatomyNote(**entry) for entry in _read("anatomy.yaml"))


@cache
def finding_names() -> tuple[str, ...]:
    """Return the names of the 75 findings in order."""
    return tuple(note.name for note in finding_book())


@cache
def anatomy_names() -> tuple[str, ...]:
    """Return the names of the 51 places in order."""
    return tuple(note.name for note in anatomy_book())
