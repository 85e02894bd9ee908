"""The labeler's phrases, read from `phrases.yaml` and compiled: one regular expression a group.

Guarantee: every phrase matches whole words of lower-case text with single blanks; a mistake in the phrase file is
reported with the group that holds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medvlp.errors import UserError

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The fourteen observations of CheXpert (Irvin et al., AAAI 2019), in the order of the data set's table."""

OTHER = "other"
"""Abnormal, but none of the fourteen."""

PHRASES = Path(__file__).with_name("phrases.yaml")


@dataclass(frozen=True)
class Rules:
    """Compiled phrases.

    `mentions` holds (finding, what hides a mention, what is a mention); `states` has one named group per state.
    """

    mentions: tuple[tuple[str, re.Pattern[str] | None, re.Pattern[str]], ...]
    places: tuple[tuple[str, re.Pattern[str]], ...]
    any_place: re.Pattern[str]
    states: re.Pattern[str]
    subjects: re.Pattern[str]
    triggers: dict[str, re.Pattern[str]]
    healthy: re.Pattern[str]
    keep: re.Pattern[str]


def _join(phrases: list[str]) -> str:
    return "|".join(f"(?:{phrase})" for phrase in phrases)


def _compile(where: str, phrases: list[str]) -> re.Pattern[str]:
    try:
        if "" in phrases:
            raise UserError("A phrase is empty and would match everywhere.", f"{PHRASES.name}, {where}", "Remove it.")
        return re.compile(rf"(?<![\w-])(?:{_join(phrases)})(?![\w])")
    except (re.error, TypeError) as error:
        raise UserError(
            f"A phrase is no regular expression: {error}.", f"{PHRASES.name}, {where}", "Mend the phrase."
        ) from error


def compile_rules(data: dict[str, Any]) -> Rules:
    """Compile the content of a phrase file.

    Raises:
        UserError: A finding is unknown, a group is missing, or a phrase is no regular expression.
    """
    groups_needed = {"findings", OTHER, "places", "states", "subjects", "triggers", "healthy", "keep"}
    missing = (groups_needed - set(data)) | (set(FINDINGS[1:]) - set(data.get("findings", {})))
    unknown = (set(data.get("findings", {})) | set(data.get("places", {}))) - set(FINDINGS[1:])
    if unknown:
        raise UserError(
            f"Unknown findings: {', '.join(sorted(unknown))}.", PHRASES.name, f"Use one of: {', '.join(FINDINGS[1:])}."
        )
    if missing:
        raise UserError(f"Missing: {', '.join(sorted(missing))}.", PHRASES.name, "Add the group.")
    groups = {**{name: data["findings"][name] for name in FINDINGS[1:]}, OTHER: data["other"]}
    mentions = tuple(
        (name, _compile(f"{name}.skip", group["skip"]) if "skip" in group else None, _compile(name, group["mention"]))
        for name, group in groups.items()
    )
    order = ("borderline", "unstated", "normal", "abnormal")  # the earlier one wins where two match at one place
    states = "|".join(f"(?P<{state}>{_join(data['states'][state])})" for state in order)
    return Rules(
        mentions=mentions,
        places=tuple((name, _compile(f"places.{name}", phrases)) for name, phrases in data["places"].items()),
        any_place=_compile("places", [phrase for phrases in data["places"].values() for phrase in phrases]),
        states=re.compile(rf"(?<![\w-])(?:{states})(?![\w])"),
        subjects=_compile("subjects", data["subjects"]),
        triggers={name: _compile(f"triggers.{name}", phrases) for name, phrases in data["triggers"].items()},
        healthy=_compile("healthy", data["healthy"]),
        keep=_compile("keep", data["keep"]),
    )


@cache
def rules() -> Rules:
    """Return the compiled rules of the shipped phrase file."""
    import yaml

    return compile_rules(yaml.safe_load(PHRASES.read_text(encoding="utf-8")))
