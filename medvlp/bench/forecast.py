"""What a suite will cost, and what is missing, before anything is run.

Guarantee: nothing is trained, no image is read and no released weights are loaded. Cells are counted as the runner
counts them; hours are those of cells that were timed, else of a rule that is named with them.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.baselines import baseline_hash, baseline_names
from medvlp.bench.cells import OK, RESCORED, RUN, status_of
from medvlp.bench.encoder_records import EncoderRecords
from medvlp.bench.judged import seeds_of, shown_spec, with_random
from medvlp.bench.plan import Judged, not_applicable
from medvlp.bench.reuse import KeptPredictions
from medvlp.bench.schedule import Planned, Schedule
from medvlp.bench.suite import Suite
from medvlp.errors import UserError
from medvlp.tasks.base import HEAT_MAPS, SCORES, SPACE

if TYPE_CHECKING:
    from medvlp.zoo.preview import Preview

PASSES_A_SECOND = {"cuda": 1000.0, "cpu": 20.0}
"""Images that an encoder of the size of ViT-B/16 sees in a second at 224 pixels: the rule where nothing was timed."""
RESCORING_SECONDS = 1.0
"""For a cell whose predictions are kept: intervals alone."""
PROBE_SECONDS = {"linear_probe": 5.0, "few_shot": 2.0, "knn": 2.0}
"""For a head on features that are there already."""
TRAINING_PASSES = 3
"""What a training step costs against looking at the image."""
ASSUMED_IMAGES = 10_000
"""Of a split whose store is not here."""


@dataclass(frozen=True)
class Row:
    """Cells of one task and protocol."""

    task: str
    dataset: str
    protocol: str
    cells: int
    done: int
    hours: float
    """For those that are not done."""
    timed: bool
    """Whether the hours are those of cells that were timed."""


@dataclass
class Forecast:
    """What a suite will cost and what is missing.

    Attributes:
        rows: Cells by task and protocol.
        encoders: Name, spec and account of each encoder.
        missing: (what, next step) of what stops cells.
        not_applicable: (encoder, why it does not run them) -> tasks with their protocols.
    """

    rows: list[Row] = field(default_factory=list)
    encoders: list[tuple[str, str, str]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    not_applicable: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    @property
    def cells(self) -> int:
        """All cells of the suite."""
        return sum(row.cells for row in self.rows)

    @property
    def done(self) -> int:
        """Cells that have numbers."""
        return sum(row.done for row in self.rows)

    @property
    def hours(self) -> float:
        """For what is not done, one cell at a time."""
        return sum(row.hours for row in self.rows)


def forecast(
    suite: Suite, specs: Sequence[str], *, out: Path | None = None, timed: Sequence[Path] = (), device: str = "cpu"
) -> Forecast:
    """Return what a suite will cost.

    Args:
        suite: The suite, perhaps without some stores.
        specs: Encoders.
        out: Folder of results, whose cells are done and timed.
        timed: Further folders of results whose times count.
        device: `cpu` or `cuda`, for the rule.
    """
    found = Forecast()
    judged = _judged(suite, specs, EncoderRecords(out), found)
    schedule = Schedule(suite)
    plan = list(schedule.plan(judged))
    _add_missing(found, suite, plan)
    for task, protocol, encoder, lack in not_applicable(suite.config, schedule.tasks, judged):
        found.not_applicable.setdefault((encoder, lack), []).append(f"{task} ({protocol})")
    clock = Clock(timed, schedule, device, out)
    groups: dict[tuple[str, str, str], list[Planned]] = defaultdict(list)
    for planned in plan:
        about = planned.about
        groups[about["task"], about["dataset"], about["protocol"]].append(planned)
    for (task, dataset, protocol), members in groups.items():
        done = [one for one in members if out is not None and _is_done(out, one)]
        left = [one for one in members if one not in done]
        times = [clock.seconds(one) for one in left]
        hours = sum(seconds for seconds, _ in times) / 3600
        known = bool(times) and all(is_timed for _, is_timed in times)
        found.rows.append(Row(task, dataset, protocol, len(members), len(done), hours, known))
    return found


def _is_done(out: Path, planned: Planned) -> bool:
    return planned.cell is not None and bool(planned.judged.hash) and status_of(out / "cells" / planned.cell.hash) == OK


def _judged(suite: Suite, specs: Sequence[str], records: EncoderRecords, found: Forecast) -> list[Judged]:
    from medvlp.zoo.preview import preview

    judged: list[Judged] = []
    for spec in with_random(specs, suite):
        try:
            seen = preview(spec)
        except UserError as error:
            found.missing.append((f"Encoder {shown_spec(spec)}: {error.what}", error.fix))
            found.encoders.append((shown_spec(spec), shown_spec(spec), "cannot be loaded"))
            continue
        found.encoders.append((seen.name, shown_spec(spec), seen.account))
        is_random = spec.startswith("random:")
        for dataset in dict.fromkeys(task.dataset for task in suite.tasks.values()):
            for seed in seeds_of(suite, spec):
                judged.append(_as_judged(seen, spec, seed, dataset, is_random, suite, records))
    for name in baseline_names(suite.config.baselines):
        datasets = dict.fromkeys(task.dataset for task in suite.tasks.values())
        judged += [Judged(name, name, baseline_hash(name), dataset, "baseline") for dataset in datasets]
    return judged


def _as_judged(
    seen: Preview, spec: str, seed: int, dataset: str, is_random: bool, suite: Suite, records: EncoderRecords
) -> Judged:
    store = suite.stores.get(dataset)
    known = None if store is None else records.get(spec, seed, store.config)
    offered = {SCORES: seen.scores_text, SPACE: seen.shared_space, HEAT_MAPS: seen.heat_maps}
    return Judged(
        seen.name,
        spec,
        "" if known is None else known["hash"],
        dataset,
        "random" if is_random else "encoder",
        seed,
        seen.has_text,
        tuple(name for name, is_offered in offered.items() if is_offered),
    )


def _add_missing(found: Forecast, suite: Suite, plan: Iterable[Planned]) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for planned in plan:
        if planned.reason is not None:
            task = "" if planned.about["dataset"] in suite.missing else f"Task {planned.about['task']}: "
            counts[task + planned.reason.what, planned.reason.fix] += 1
    found.missing += [(f"{what} ({count} cells)", fix) for (what, fix), count in counts.items()]


class Clock:
    """Seconds of a cell, from cells that were timed.

    Args:
        results: Folders of results.
        schedule: Tasks and samples, for the rule.
        device: `cpu` or `cuda`, for the rule.
        out: Folder of results whose predictions are kept, and whose times count too.
    """

    def __init__(self, results: Sequence[Path], schedule: Schedule, device: str, out: Path | None) -> None:
        self.kept = None if out is None else KeptPredictions(out)
        self.schedule, self.rate = schedule, PASSES_A_SECOND["cuda" if device.startswith("cuda") else "cpu"]
        times: dict[tuple[Any, ...], list[float]] = defaultdict(list)
        for folder in [*([] if out is None else [out]), *results]:
            for path in sorted(folder.glob(f"cells/*/{RUN}")):
                for key, seconds in _timed(path):
                    times[key].append(seconds)
        self._median = {key: statistics.median(values) for key, values in times.items()}
        self._featured: set[tuple[str, str]] = set()

    def seconds(self, planned: Planned) -> tuple[float, bool]:
        """Return the seconds of a cell, with its share of the features, and whether such a cell was timed."""
        about = planned.about
        if self._is_rescored(planned):
            known = self._median.get((RESCORED, about["task"]))
            return RESCORING_SECONDS if known is None else known, known is not None
        exact = (about["task"], about["protocol"], about["fraction"], about["shots"])
        key = next((key for key in (exact, exact[:2]) if key in self._median), None)
        extra = self._features(planned)
        return (self._rule(planned) if key is None else self._median[key]) + extra, key is not None

    def _is_rescored(self, planned: Planned) -> bool:
        """Return whether the predictions of a cell are kept, so that nothing is trained."""
        if self.kept is None or planned.cell is None or not planned.judged.hash:
            return False
        task = self.schedule.task(planned.key, planned.judged)
        settings = self.schedule.settings(task, planned.cell.protocol)
        return next(self.kept.donors(planned.cell, settings), None) is not None

    def _features(self, planned: Planned) -> float:
        """Seconds for the features of an encoder on a data set, with the first cell that needs them."""
        about, key = planned.about, (planned.judged.name, planned.about["dataset"])
        if about["protocol"] not in PROBE_SECONDS or planned.judged.kind == "baseline" or key in self._featured:
            return 0.0
        self._featured.add(key)
        known = self._median.get(("features", about["dataset"]))
        store = self.schedule.suite.stores.get(about["dataset"])
        return (3 * ASSUMED_IMAGES if store is None else len(store)) / self.rate if known is None else known

    def _rule(self, planned: Planned) -> float:
        protocol = planned.about["protocol"]
        if protocol in PROBE_SECONDS:
            return PROBE_SECONDS[protocol]
        sizes = self._sizes(planned)
        looks = sizes["val"] + sizes["test"]
        if protocol != "zero_shot":
            task = self.schedule.task(planned.key, planned.judged).config
            tuned, trials = task.fine_tune, 1 if task.tuning is None else len(task.tuning.settings)
            shown = tuned.epochs * sizes["train"] if tuned.steps is None else tuned.steps * tuned.batch_size
            looked = shown // max(sizes["train"], 1) // (tuned.validate_epochs or 1)
            looks += trials * (TRAINING_PASSES * shown + looked * sizes["val"])
        return looks / self.rate

    def _sizes(self, planned: Planned) -> dict[str, int]:
        try:
            samples = self.schedule.samples(planned.key)
            train = self.schedule.subset(planned.key, planned.amount)
        except UserError:
            share = int(planned.about["fraction"] * ASSUMED_IMAGES)
            return {"train": share, "val": ASSUMED_IMAGES, "test": ASSUMED_IMAGES}
        return {"train": len(train), "val": len(samples["val"]), "test": len(samples["test"])}


def _timed(path: Path) -> Iterable[tuple[tuple[Any, ...], float]]:
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        about = json.loads((path.parent / "cell.json").read_text(encoding="utf-8"))
        features = float(run.get("features_seconds", 0.0))
        seconds = float(run["seconds"]) - features
        keys = [about[name] for name in ("task", "protocol", "fraction", "shots")]
    except (OSError, ValueError, KeyError):
        return
    if status_of(path.parent) != OK:
        return
    if "predictions_of" in run:
        yield (RESCORED, about["task"]), seconds
        return
    yield tuple(keys), seconds
    yield tuple(keys[:2]), seconds
    if features > 1:  # less was read, not computed
        yield ("features", about["dataset"]), features
