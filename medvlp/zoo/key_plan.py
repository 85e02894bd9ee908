"""Which tensor of a file becomes which of ours, decided before anything is loaded.

Guarantee: every name is accounted for. The names that a file must have follow from our model and the rules of its
format, so a name that is missing, left over, renamed or of another shape is an error that says which. A name is ignored
only by a rule that gives the reason.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from medvlp.errors import UserError
from medvlp.zoo.release import IgnoreRule, NameRule, PartRule, Release

MAX_SHOWN = 12
Shapes = Mapping[str, torch.Size]


@dataclass(frozen=True)
class Source:
    """Where one of our tensors comes from."""

    keys: tuple[str, ...]
    """Names in the file; several are joined along the first axis; none means zeros."""
    part: tuple[int, int] | None = None
    reason: str = ""
    flat: bool = False
    """The file holds all axes but the first as one."""

    def shape(self, shapes: Shapes) -> tuple[int, ...]:
        """Return the shape that the file gives."""
        first = tuple(shapes[self.keys[0]])
        if len(self.keys) > 1:
            return (sum(shapes[key][0] for key in self.keys), *first[1:])
        return (first[0] // self.part[1], *first[1:]) if self.part else first

    def fits(self, shapes: Shapes, own: Sequence[int]) -> bool:
        """Return whether the file's shape is ours: but for axes of length 1, or for the axes that it holds as one."""
        given = self.shape(shapes)
        if self.flat:
            return len(given) == 2 and given == (own[0], math.prod(own[1:]))
        return [n for n in given if n != 1] == [n for n in own if n != 1]

    def tensor(self, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the values that the file gives."""
        if len(self.keys) > 1:
            return torch.cat([state[key] for key in self.keys])
        whole = state[self.keys[0]]
        return whole.chunk(self.part[1])[self.part[0]] if self.part else whole


@dataclass(frozen=True)
class Line:
    """What became of some tensors of the file, for the table of `medvlp zoo check`."""

    fate: str
    """used, joined, split, zeros, ignored or absent; rounded, of what is used: of low precision."""
    names: str
    count: int
    detail: str


@dataclass
class KeyPlan:
    """The whole account of a file."""

    sources: dict[str, Source] = field(default_factory=dict)
    """Our name -> where it comes from."""
    absent: list[str] = field(default_factory=list)
    """Parts of ours that the file does not have and need not have."""
    ignored: dict[str, str] = field(default_factory=dict)
    """Name in the file -> reason."""
    lines: list[Line] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        """Tensors of the file by what became of them."""
        return Counter(
            {fate: sum(x.count for x in self.lines if x.fate == fate) for fate in {x.fate for x in self.lines}}
        )

    @property
    def said(self) -> tuple[str, ...]:
        """The account in words: how many tensors of the file are used, and what became of all others."""
        own = sum(self.counts[fate] for fate in ("used", "joined", "split"))
        others = [line for line in self.lines if line.fate in ("ignored", "zeros", "absent", "rounded")]
        counted = (
            f"{line.count} {line.fate}: {line.detail}" if line.count else f"{line.fate}: {line.detail}"
            for line in others
        )
        return (f"{own} tensors of the file used, none unexplained", *counted)


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for: `{a,b}` and `{0..11}`, nested if need be."""
    found = re.search(r"\{([^{}]*)\}", pattern)
    if not found:
        return [pattern]
    inner = found.group(1)
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", inner)
    choices = [str(n) for n in range(int(numbers[1]), int(numbers[2]) + 1)] if numbers else inner.split(",")
    head, tail = pattern[: found.start()], pattern[found.end() :]
    names = itertools.chain.from_iterable(expand_braces(head + choice + tail) for choice in choices)
    return list(dict.fromkeys(names))  # an inner group comes back once for each choice of its neighbours


def strip_prefixes(names: Iterable[str], release: Release) -> dict[str, str]:
    """Return name without the beginnings of `release.strip` -> name as in the file."""
    renamed = {name: name for name in names}
    for prefix in release.strip:
        if renamed and all(name.startswith(prefix) for name in renamed):
            renamed = {name.removeprefix(prefix): original for name, original in renamed.items()}
    return renamed


def plan_keys(own: Shapes, given: Shapes, release: Release, file: Path | str) -> KeyPlan:
    """Return the account of a file.

    Args:
        own: Names and shapes of our model.
        given: Names and shapes of the file, `strip_prefixes` applied.
        release: Format of the file.
        file: The file, for the message.

    Raises:
        UserError: A name is missing, unexplained, or of another shape, or the rules leave one of our own names out.
    """
    plan = KeyPlan()
    missing: list[str] = []
    rest = dict(own)
    for rule in release.keys:
        mine = [name for name in rest if name.startswith(rule.ours)]
        for name in mine:
            del rest[name]
        sources = _sources(rule, mine, given)
        needed = [key for source in sources.values() for key in source.keys]
        if rule.optional and not any(key in given for key in needed):
            plan.absent.append(rule.ours)
            plan.lines.append(Line("absent", rule.file[0], 0, f"{rule.ours.rstrip('.')} is left out"))
            continue
        missing += [key for key in needed if key not in given]
        plan.sources |= sources
        plan.lines += _lines(rule, sources, own, given)
    if rest:
        names = ", ".join(sorted(rest)[:MAX_SHOWN])
        raise UserError(
            f"The rules of '{release.name}' do not say where the model's {names} come from.",
            f"format {release.name}: keys",
            "Add a part whose `ours` begins like these names.",
        )
    used = {key for source in plan.sources.values() for key in source.keys}
    for ignore in release.ignored:
        missing += _ignore(ignore, given, used, plan)
    extra = [key for key in given if key not in used and key not in plan.ignored]
    _check(plan, own, given, sorted(set(missing)), sorted(extra), release, file)
    return plan


def _sources(rule: PartRule, mine: Sequence[str], given: Shapes) -> dict[str, Source]:
    """Return the sources of a part's tensors, with the beginning that finds most of them."""
    choices = [{name: _source(rule, name.removeprefix(rule.ours), prefix) for name in mine} for prefix in rule.file]
    return max(choices, key=lambda sources: sum(key in given for s in sources.values() for key in s.keys))


def _source(rule: PartRule, name: str, prefix: str) -> Source:
    for names in rule.names:
        found = re.fullmatch(names.ours, name)
        if found is None:
            continue
        if names.zeros is not None:
            return Source((), reason=names.zeros)
        keys = tuple(prefix + found.expand(template) for template in _templates(names))
        return Source(keys, names.part, flat=names.flat)
    return Source((prefix + name,))


def _templates(names: NameRule) -> tuple[str, ...]:
    return names.join if names.file is None else (names.file,)


def _lines(rule: PartRule, sources: Mapping[str, Source], own: Shapes, given: Shapes) -> list[Line]:
    fates: dict[str, set[str]] = {}
    reshaped: dict[str, int] = {}
    for name, source in sources.items():
        fate = "joined" if len(source.keys) > 1 else "split" if source.part else "used"
        fates.setdefault(fate, set()).update(source.keys)
        if source.keys and all(key in given for key in source.keys) and source.shape(given) != tuple(own[name]):
            reshaped[fate] = reshaped.get(fate, 0) + 1
    lines = [
        Line(
            fate,
            _shown_names(keys),
            len(keys),
            rule.ours.rstrip(".") + (f"; {reshaped[fate]} with axes laid out otherwise" if fate in reshaped else ""),
        )
        for fate, keys in fates.items()
        if keys
    ]
    zeros = [f"{name}: {source.reason}" for name, source in sources.items() if not source.keys]
    return [*lines, *(Line("zeros", "-", 0, text) for text in zeros)]


def _shown_names(keys: set[str]) -> str:
    """Return the one name, or the beginning that all names share and a star."""
    first, last = min(keys), max(keys)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))
    return first if first == last else f"{first[:shared]}*"


def _ignore(rule: IgnoreRule, given: Shapes, used: set[str], plan: KeyPlan) -> list[str]:
    """Enter the names that a rule ignores, and return those that it wants and the file lacks."""
    wanted = [name for pattern in rule.keys for name in expand_braces(pattern)]
    found = [name for name in wanted if name in given]
    if rule.pattern is not None:
        found += [name for name in given if name not in used and re.fullmatch(rule.pattern, name)]
    plan.ignored |= dict.fromkeys(found, rule.because)
    if found:
        names = ", ".join(rule.keys) or str(rule.pattern)
        plan.lines.append(Line("ignored", names, len(found), rule.because))
    return [] if rule.optional and not found else [name for name in wanted if name not in given]


def _check(
    plan: KeyPlan, own: Shapes, given: Shapes, missing: list[str], extra: list[str], release: Release, file: Path | str
) -> None:
    shapes = [
        f"{'+'.join(source.keys)} {list(source.shape(given))} instead of {list(own[name])}"
        for name, source in plan.sources.items()
        if source.keys and all(key in given for key in source.keys) and not source.fits(given, own[name])
    ]
    problems = [
        f"{what} ({len(keys)}): {', '.join(keys[:MAX_SHOWN])}{' ...' if len(keys) > MAX_SHOWN else ''}"
        for what, keys in (("missing", missing), ("unexplained", extra), ("of another shape", shapes))
        if keys
    ]
    if problems:
        raise UserError(
            f"The file is not a checkpoint of the format '{release.name}': {'; '.join(problems)}.",
            file,
            f"The format is that of {release.file} Compare with `medvlp zoo list`, or fetch the file again.",
        )
