"""Tiny raw data sets written by hand, and what an adapter makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from medvlp.sources import SOURCES
from medvlp.sources.base import Problem, Source
from medvlp.types import Study


def put(root: Path, files: Mapping[str, str] | Iterable[str]) -> Path:
    """Write texts by path; files that are only named are empty (adapters never open an image)."""
    texts = files if isinstance(files, Mapping) else dict.fromkeys(files, "")
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def read(name: str, root: Path, **options: object) -> tuple[dict[str, Study], list[Problem], Source]:
    """Return the studies by id, in their order, the problems, and the adapter itself."""
    source = SOURCES.get(name)(root, options)
    studies = {study.study_id: study for study in source.studies()}
    assert all(problem.fix and str(root) not in problem.path + problem.reason for problem in source.problems)
    return studies, source.problems, source


def reasons(problems: list[Problem]) -> dict[str, str]:
    """Return id (or path) -> reason."""
    return {problem.study_id or problem.path: problem.reason for problem in problems}
