"""Semantic groups of training images, batches of whole groups, and captions of a group's concept (KEEP).

Guarantee: the groups of an epoch and their captions are a function of (seed, epoch); every image is in the groups of
each of its concepts; a group holds one concept and `group_size` places, filled by its own images again where they are
too few. Concepts are those that the report says are present, the most special ones; an image whose report states none
is `NORMAL`, if it denies one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from medvlp.data.counter import GROUP, generator
from medvlp.errors import UserError
from medvlp.knowledge.books import NORMAL_FINDINGS, finding_names
from medvlp.types import ABSENT, PRESENT

if TYPE_CHECKING:
    from jaxtyping import Bool, Int

    from medvlp.knowledge.bank import KnowledgeBank

NORMAL = "normal"
NORMAL_NAMES = ("normal chest", "clear lungs", "no abnormal finding", "no acute disease")
WORDLESS = ("finding", "lesion", "abnormality", "disease", "process", "tail_abnorm_obs", "excluded_obs", "borderline")
"""Entries of the finding book that are too general to make a group."""
ANATOMY = ("UBERON:", "FMA:", "CARO:")
"""Beginnings of ids that name parts of the body: what a group shows is a disease or finding."""


@dataclass(frozen=True)
class SemanticGroups:
    """Images by concept.

    Args:
        concepts: Concept of each class of groups.
        members: Rows of the images that show it, in order.
        related: Where two concepts must not be each other's negatives, `[k k]`; True on the diagonal.
        bank: Knowledge bank, or None where concepts are the 75 findings.
    """

    concepts: tuple[str, ...]
    members: tuple[Int[np.ndarray, " m"], ...]
    related: Bool[np.ndarray, "k k"]
    bank: KnowledgeBank | None

    @cached_property
    def places(self) -> Int[np.ndarray, "n 2"]:
        """Return (image row, concept) of every membership; a loader's samples are the rows of this table."""
        pairs = [np.stack([rows, np.full(len(rows), k)], axis=1) for k, rows in enumerate(self.members)]
        return np.concatenate(pairs).astype(np.int64)

    @cached_property
    def shown(self) -> dict[int, Int[np.ndarray, " s"]]:
        """Return image row -> the concepts that it shows."""
        places = self.places[np.argsort(self.places[:, 0], kind="stable")]
        rows, starts = np.unique(places[:, 0], return_index=True)
        return dict(zip(rows.tolist(), np.split(places[:, 1], starts[1:]), strict=True))

    def relations(self, places: Int[np.ndarray, "n 2"], group_size: int) -> Bool[np.ndarray, "g g"]:
        """Return which groups of a batch must not be each other's negatives.

        These are groups of related concepts, and groups of which an image shows what the other is about: unlike KEEP's
        tiles, a radiograph shows several findings.

        Args:
            places: (image row, concept) of each sample, group after group.
            group_size: Samples of a group.
        """
        concepts, rows = places[::group_size, 1], places[:, 0].reshape(-1, group_size)
        shown = [np.unique(np.concatenate([self.shown[row] for row in group])) for group in rows.tolist()]
        touches = np.stack([self.related[np.ix_(names, concepts)].any(0) for names in shown])
        return touches | touches.T

    def within(self, rows: Int[np.ndarray, " m"]) -> SemanticGroups:
        """Return the groups of these images alone; a concept that none of them shows keeps its number."""
        return replace(self, members=tuple(member[np.isin(member, rows)] for member in self.members))

    def size(self, group_size: int) -> int:
        """Return the places of an epoch."""
        return sum(-(-len(member) // group_size) * group_size for member in self.members)

    def order(self, seed: int, epoch: int, group_size: int) -> Int[np.ndarray, " n"]:
        """Return rows of `places`, group after group: each concept's images in random order, cut into groups."""
        rng = generator(GROUP, seed, epoch)
        starts = np.cumsum([0, *map(len, self.members)])
        groups = []
        for first, rows in zip(starts, self.members, strict=False):
            shuffled = first + rng.permutation(len(rows))
            missing = -len(rows) % group_size
            groups.append(np.concatenate([shuffled, np.resize(shuffled, missing)]).reshape(-1, group_size))
        every = np.concatenate(groups)
        return every[rng.permutation(len(every))].reshape(-1)

    def caption(self, concept: int, rng: np.random.Generator) -> str:
        """Return a caption of a concept: a template with one of its names or, with a bank, its path."""
        from medvlp.knowledge.prompts import hierarchy_caption, templates

        name = self.concepts[concept]
        if self.bank is not None and name in self.bank.book:
            return hierarchy_caption(self.bank.book, name, rng)
        names = _names(name)
        template = templates()[int(rng.integers(len(templates())))]
        text = template.format(names[int(rng.integers(len(names)))])
        return text[:1].upper() + text[1:]


def find_groups(
    reports: Mapping[str, str], rows: Mapping[str, Sequence[int]], bank: KnowledgeBank | None
) -> SemanticGroups:
    """Return the groups of images whose reports are given.

    Args:
        reports: Study -> its report.
        rows: Study -> rows of its images.
        bank: Knowledge bank, or None for the 75 findings.

    Raises:
        UserError: There are fewer than two concepts: nothing could be told apart.
    """
    from medvlp.knowledge.groups import relation_matrix, semantic_groups

    shown = _by_finding(reports) if bank is None else _by_concept(reports, bank)
    of_study = {study: [name for name in names if name != NORMAL] for study, names in shown.items()}
    if bank is not None:
        groups = dict(semantic_groups(of_study, bank.book))
    else:
        groups = {}
        for study in sorted(of_study):
            for name in of_study[study]:
                groups[name] = (*groups.get(name, ()), study)
    normal = tuple(sorted(study for study, names in shown.items() if NORMAL in names))
    groups |= {NORMAL: normal} if normal else {}
    if len(groups) < 2:
        raise UserError(
            "The reports name fewer than two concepts: there are no groups to tell apart.",
            "data.store, data.knowledge",
            "Use a store with more reports, or a bank whose ontologies hold the findings of the reports.",
        )
    names = sorted(groups)
    members = [np.array([row for study in groups[name] for row in rows[study]], dtype=np.int64) for name in names]
    related = np.eye(len(names), dtype=bool) if bank is None else relation_matrix(bank.book, names)
    return SemanticGroups(tuple(names), tuple(members), related, bank)


def _by_finding(reports: Mapping[str, str]) -> dict[str, list[str]]:
    """Return study -> entries of the finding book that are present."""
    from medvlp.text.triplets import read_mentions

    general = {*finding_names()[:NORMAL_FINDINGS], *WORDLESS}
    shown: dict[str, list[str]] = {}
    for study, report in reports.items():
        mentions = read_mentions(report)
        present = {book for m in mentions for _, book in m.cells if m.value == PRESENT} - general
        shown[study] = sorted(present) or _normal(any(m.value == ABSENT for m in mentions) or bool(mentions))
    return shown


def _by_concept(reports: Mapping[str, str], bank: KnowledgeBank) -> dict[str, list[str]]:
    """Return study -> concepts of the bank that are present."""
    from medvlp.data.concepts import linker_of

    linker, by_rule = linker_of(bank), _by_finding(reports)
    shown: dict[str, list[str]] = {}
    for study, report in reports.items():
        spans = [span for span in linker.link_report(report) if not span.concept_id.startswith(ANATOMY)]
        present = {span.concept_id for span in spans if span.value == PRESENT}
        shown[study] = sorted(present) or _normal(by_rule[study] == [NORMAL])
    return shown


def _normal(stated: bool) -> list[str]:
    return [NORMAL] if stated else []


def _names(finding: str) -> tuple[str, ...]:
    """Return words for an entry of the finding book."""
    from medvlp.text.lexicon import lexicon

    if finding == NORMAL:
        return NORMAL_NAMES
    named = [entry.name for entry in lexicon().findings.values() if entry.book == finding and not entry.state]
    return tuple(dict.fromkeys([*named, finding.replace("_", " ")]))
