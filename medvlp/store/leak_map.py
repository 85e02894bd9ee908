"""Which data sets share images or patients: the published overlaps, read from `data_cards/leak_map.yaml`.

Guarantee: an overlap is data, never code; a wrong entry is an error when the map is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from typing import Literal

from pydantic import Field, TypeAdapter, ValidationError, field_validator

from medvlp.config.base import Config
from medvlp.config.resources import shipped
from medvlp.errors import UserError


class Overlap(Config):
    """Two data sets that share images or patients; see the head of the file for each field."""

    outer: str
    inner: str
    share: Literal["all", "part", "same"]
    patients: bool
    by: tuple[str, ...] = Field(min_length=1)
    note: str

    @field_validator("by")
    @classmethod
    def _known(cls, ties: tuple[str, ...]) -> tuple[str, ...]:
        for tie in ties:
            kind, _, argument = tie.partition(":")
            if kind not in ("ids", "pixels", "attribute", "names") or (kind in ("attribute", "names")) != bool(
                argument
            ):
                raise ValueError(f"'{tie}' is none of ids, pixels, attribute:<name>, names:<pattern>")
            if kind == "names":
                re.compile(argument)
        return ties

    def argument(self, kind: str) -> str | None:
        """Return what follows `<kind>:` in `by`, or None where no such tie is known."""
        return next((tie.partition(":")[2] for tie in self.by if tie.startswith(f"{kind}:")), None)


@cache
def leak_map() -> tuple[Overlap, ...]:
    """Return all known overlaps.

    Raises:
        UserError: The file is wrong.
    """
    import yaml

    path = shipped("data_cards/leak_map.yaml")
    try:
        return TypeAdapter(tuple[Overlap, ...]).validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (ValidationError, yaml.YAMLError) as error:
        raise UserError(f"The leak map is wrong: {error}", path, "Correct the entry.") from None


def overlaps_between(datasets: Iterable[str]) -> list[Overlap]:
    """Return the overlaps of which both sides are among these data sets."""
    present = set(datasets)
    return [overlap for overlap in leak_map() if {overlap.outer, overlap.inner} <= present]


def overlaps_of(dataset: str) -> list[Overlap]:
    """Return the overlaps of one data set with any other."""
    return [overlap for overlap in leak_map() if dataset in (overlap.outer, overlap.inner)]
