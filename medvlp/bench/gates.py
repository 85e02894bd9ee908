"""The gate before a suite: its data are audited, and every cell that a leak touches is marked.

Guarantee: a cell is marked where a test image of its task, or the patient of one, was shown by what trained its head or
its encoder, as far as the stores and the published overlaps tell; what cannot be known is said, too. The audit is made
once for each set of stores. It stops no cell: a mark stands beside the number.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.cells import as_json
from medvlp.bench.plan import Amount
from medvlp.bench.provenance import Training
from medvlp.bench.schedule import Planned, Schedule
from medvlp.config.base import json_sha256
from medvlp.errors import UserError
from medvlp.html.private import public
from medvlp.store.files import write_atomic
from medvlp.tasks.base import ZERO_SHOT

if TYPE_CHECKING:
    from medvlp.bench.locks import Locks
    from medvlp.store.array_store import Store
    from medvlp.tasks.base import Samples

logger = logging.getLogger(__name__)

FOLDER, LEAKS = "audit", "leaks.json"
AUDIT_VERSION = 2
"""Rises with every change of the audit that finds other leaks: then it is made again."""
_FRONT = ("Leak", "Overlap", "Conflict", "Duplicates")
"""Kinds of findings that stand on a report's front, beside what stores record of their split lists; shortcuts are
measured by the baselines of the suite."""


@dataclass(frozen=True)
class Audit:
    """What the audit of the stores found. Stores are called by their data set, further ones with a piece of their hash.

    Args:
        stores: Name -> hash.
        findings: Sentences about the stores of the suite, without names of patients.
        exposed: Test store -> test image -> training store -> number of its images that show the test image.
        error: Why there was no audit; then nothing is known of leaks.
    """

    stores: Mapping[str, str] = field(default_factory=dict)
    findings: Sequence[str] = ()
    exposed: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    error: str = ""

    def shown(self, test: str, images: Iterable[str], training: str) -> int:
        """Return how many of some test images a training store shows."""
        own = self.exposed.get(test, {})
        return sum(training in own[image] for image in images if image in own)

    @cached_property
    def name_of(self) -> dict[str, str]:
        """Hash of a store -> its name here."""
        return {store_hash: name for name, store_hash in self.stores.items()}


def audit_once(stores: Sequence[Store], further: Sequence[Store], out: Path, scratch: Path, locks: Locks) -> Audit:
    """Return the audit of stores, made now or, for the same stores, before.

    Args:
        stores: Those of the suite.
        further: Those that encoders were trained on: what they show of the suite's test images is counted.
        out: Folder of the results.
        scratch: Folder on the same disk.
        locks: Those of the folder of results.
    """
    named = _names([*stores, *further])
    own = {store.hash for store in stores}
    key = json_sha256([AUDIT_VERSION, sorted(own), sorted(store.hash for store in named.values())])[:24]
    file = out / FOLDER / f"{key}.json"
    with locks.waited_for(f"audit-{key}"):
        if not file.exists():
            logger.info("audit of %s", ", ".join(named))
            try:
                found = _audit(named, own, scratch)
            except UserError as error:
                logger.warning("no audit: %s", error.what)
                return Audit({name: store.hash for name, store in named.items()}, error=public(error.what))
            write_atomic(file, as_json(found).encode(), scratch)
    return Audit(**json.loads(file.read_text(encoding="utf-8")))


def _names(stores: Sequence[Store]) -> dict[str, Store]:
    named: dict[str, Store] = {}
    for store in stores:
        if store.hash not in {other.hash for other in named.values()}:
            name = store.dataset if store.dataset not in named else f"{store.dataset}-{store.hash[:8]}"
            named[name] = store
    return named


def _audit(named: Mapping[str, Store], own: Collection[str], scratch: Path) -> dict[str, Any]:
    from medvlp.store.audit import audit
    from medvlp.store.remote import is_remote

    folder = scratch / "audit"
    folder.mkdir(parents=True, exist_ok=True)
    paths, names = [], {}
    for name, store in named.items():
        if is_remote(store.path):
            paths.append(store.path)
        else:  # an audit tells stores by the names of their folders, and those of a suite may be alike
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(store.path.resolve(), target_is_directory=True)
            paths.append(link)
        names[paths[-1].name] = name
    report = audit(paths)
    exposed: dict[str, dict[str, dict[str, int]]] = {}
    for row in report.exposures:
        counts = {names[store]: count for store, count in row["count_by_store"].items()}
        exposed.setdefault(names[row["store"]], {})[row["image_id"]] = counts
    of_suite = {name: path for (name, store), path in zip(named.items(), paths, strict=True) if store.hash in own}
    findings = report.findings if len(of_suite) == len(named) else audit(list(of_suite.values())).findings
    sentences = [_without_patients(text) for text in findings if text.split(":")[0] in _FRONT]
    for name in of_suite:
        listed = named[name].meta.get("source", {}).get("split lists", {})
        for kind, key in (("Leak", "overlaps"), ("Lists", "faults")):
            sentences += [f"{kind}: split lists of {name}: {text}." for text in listed.get(key, ())]
    return {
        "stores": {name: store.hash for name, store in named.items()},
        "findings": sentences,
        "exposed": exposed,
    }


def _without_patients(sentence: str) -> str:
    return re.sub(r"; for example [^)]*\)", ")", sentence)


class Marks:
    """Says of a cell which leaks touch it.

    Args:
        audit: Of the suite's stores.
        schedule: Tasks and samples.
        trainings: Name of an encoder -> what it was trained on.
    """

    def __init__(self, audit: Audit, schedule: Schedule, trainings: Mapping[str, Training]) -> None:
        self.audit, self.schedule, self.trainings = audit, schedule, trainings
        self._of_heads: dict[tuple[str, Amount], list[str]] = {}
        self._of_encoders: dict[tuple[str, str], list[str]] = {}

    def of(self, planned: Planned) -> list[str]:
        """Return a sentence for every leak that touches a cell."""
        store = self.schedule.suite.store_of(self.schedule.tasks[planned.key].config)
        test = self.schedule.samples(planned.key)["test"]
        found: list[str] = []
        if planned.about["protocol"] != ZERO_SHOT:
            head = planned.key, planned.amount
            if head not in self._of_heads:
                self._of_heads[head] = list(self._own(planned, store, test))
            found += self._of_heads[head]
        training = self.trainings.get(planned.judged.name)
        if training is not None and planned.judged.kind == "encoder":
            encoder = planned.key, planned.judged.name
            if encoder not in self._of_encoders:
                self._of_encoders[encoder] = list(self._encoder(training, store, test))
            found += self._of_encoders[encoder]
        return found

    def _own(self, planned: Planned, store: Store, test: Samples) -> Iterator[str]:
        """Leaks between the training samples of a head and its test samples."""
        train = self.schedule.subset(planned.key, planned.amount)
        patients = set(train.patient_ids) & set(test.patient_ids)
        if patients:
            count = sum(patient in patients for patient in test.patient_ids)
            yield f"{_samples(count, store, test)} are of patients whose images train the head."
            return
        name = self.audit.name_of.get(store.hash)
        count = 0 if name is None else self.shown(store, test, name)
        if count:
            touched = _samples(count, store, test)
            yield f"{touched} are shown by images of the training or validation split of {store.dataset}."

    def shown(self, store: Store, test: Samples, training: str) -> int:
        """Return how many test samples a training store shows; of a study any image counts."""
        name = self.audit.name_of[store.hash]
        if _are_images(store, test):
            return self.audit.shown(name, test.sample_ids, training)
        images, studies = (store.images[key].astype(str).to_numpy() for key in ("image_id", "study_id"))
        touched = {
            study for image, study in zip(images, studies, strict=True) if self.audit.shown(name, [image], training)
        }
        return sum(study in touched for study in studies[test.rows])

    def _encoder(self, training: Training, store: Store, test: Samples) -> Iterator[str]:
        """Leaks between the data that an encoder was trained on and the test samples."""
        from medvlp.store.leak_map import overlaps_between

        for source in training.sources:
            own = store.hash == source.store or store.dataset == source.dataset
            known = self.audit.name_of.get(source.store)
            overlaps = overlaps_between({source.dataset, store.dataset})
            same = own or any(overlap.share == "same" and overlap.patients for overlap in overlaps)
            if same and source.split == "train" and (count := _of_training(store, test)):
                touched = _samples(count, store, test)
                yield f"{touched} are of the training split of {store.dataset}, which trained the encoder."
            if own and source.split in ("all", "test"):
                yield f"The encoder was trained on the test images of {store.dataset}."
            elif own and source.split == "unknown":
                yield (f"The encoder was trained on {store.dataset}; whether on its test images is not written down.")
            elif known is not None:
                count = self.shown(store, test, known)
                if count:
                    yield f"{_samples(count, store, test)} are shown by images of {known}, which trained the encoder."
            else:
                for overlap in overlaps:
                    if overlap.share != "same" or not overlap.patients or source.split != "train":
                        yield (
                            f"The encoder was trained on {source.dataset}, which shares images or patients with "
                            f"{store.dataset}; how many of its test images was not examined."
                        )


def _of_training(store: Store, samples: Samples) -> int:
    """Return how many samples show images of the data set's own training split: a task may test on such."""
    return int((store.images["split"].to_numpy()[samples.rows] == "train").sum())


def _are_images(store: Store, test: Samples) -> bool:
    """Return whether samples are images; those of reports are studies with several."""
    return store.images["image_id"].astype(str).to_numpy()[test.rows].tolist() == list(test.sample_ids)


def _samples(count: int, store: Store, test: Samples) -> str:
    return f"{count:,} of {len(test):,} test {'images' if _are_images(store, test) else 'samples'}"


def write_leaks(out: Path, scratch: Path, locks: Locks, marks: Marks, plan: Sequence[Planned]) -> dict[str, list[str]]:
    """Write `leaks.json`, with the cells and encoders of other runs, and return the marks: hash -> sentences.

    Args:
        out: Folder of the results.
        scratch: Folder on the same disk.
        locks: Those of the folder of results.
        marks: What marks cells.
        plan: All cells of the suite for the encoders of this run.
    """
    marked = {one.cell.hash: found for one in plan if one.cell is not None and (found := marks.of(one))}
    own, audit = {one.cell.hash for one in plan if one.cell is not None}, marks.audit
    with locks.waited_for("leaks"):
        before = _read_leaks(out)
        cells = {key: texts for key, texts in before.get("cells", {}).items() if key not in own} | marked
        trainings = {name: training.record() for name, training in marks.trainings.items()}
        record = {
            "audit": {"stores": dict(audit.stores), "findings": list(audit.findings), "error": audit.error},
            "encoders": before.get("encoders", {}) | trainings,
            "cells": cells,
            "marked": dict(Counter(text for texts in cells.values() for text in texts)),
        }
        write_atomic(out / LEAKS, as_json(record).encode(), scratch)
    return marked


def _read_leaks(out: Path) -> dict[str, Any]:
    try:
        found = json.loads((out / LEAKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
