"""What a store will hold, decided before the first image is read.

Guarantee: the plan depends on the raw data set and the configuration alone. It fixes the array row of every image, so
that shards can be written in any order by any number of processes, and its hash tells whether a started or finished
store was made from the same input.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, Literal

from medvlp.config.base import json_sha256
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.sources.base import Problem, Source
from medvlp.sources.splits import apply_split_lists, read_split_lists
from medvlp.store.days import unreadable_dates
from medvlp.store.identifiers import Protection
from medvlp.store.manifest import FORMAT_VERSION
from medvlp.types import UNKNOWN_PATIENT, ImageRef, Mask, Study

logger = logging.getLogger(__name__)

VAL_FRACTION = 0.1
VAL_RULE = "official splits; val = the share of the training patients with the lowest SHA-256 of '<seed>/<patient>'"

TEST_RULE = (
    "test = the share of patients with the lowest SHA-256 of 'test/<seed>/<patient>', of the others val = the share "
    "with the lowest one of '<seed>/<patient>'; studies of unknown patients are in no split"
)

LISTS_RULE = "the given split lists; where they have no val, " + VAL_RULE.split("; ", 1)[1]


@dataclass(frozen=True)
class Plan:
    """Studies in their order, images as (study, image) in array order, and what the adapter left out.

    `kind` is what the store holds: images, volumes, video clips or none of these. Studies, images and problems are as
    they may be kept; `refs` are the images as they are read, and `masks` those of each that are stored with it. A shard
    has `shard_images` images.
    """

    kind: Literal["image", "volume", "video", "none"]
    studies: list[Study]
    images: list[tuple[Study, ImageRef]]
    refs: list[ImageRef]
    masks: list[tuple[Mask, ...]]
    problems: list[Problem]
    shard_images: int
    settings: dict[str, Any]
    summary: dict[str, object]
    protection: Protection

    @property
    def shard_masks(self) -> int:
        """The most masks that the images of one shard have."""
        counts = [len(own) for own in self.masks]
        size = self.shard_images
        return max((sum(counts[first : first + size]) for first in range(0, len(counts), size)), default=0)

    @property
    def input_sha256(self) -> str:
        """Hash of everything that the raw data set says."""
        studies = [dataclasses.asdict(study) for study in self.studies]
        for study in studies:
            if not study["questions"]:  # stores of data sets without questions keep the hash that they had before
                del study["questions"]
        return json_sha256({"studies": studies, "problems": [dataclasses.asdict(problem) for problem in self.problems]})

    @cached_property
    def state(self) -> dict[str, Any]:
        """What a later run into the same store must agree with."""
        counts = {"studies": len(self.studies), "images": len(self.images), "left out": len(self.problems)}
        return {"settings": self.settings, "raw data": {"sha256": self.input_sha256, **counts}}


def make_plan(source: Source, config: PrepareConfig) -> Plan:
    """Read the raw data set's tables and decide splits and array rows.

    Raises:
        UserError: From the adapter, or no study is left, or a split would be empty.
    """
    if source.card.coloured and config.image.colour == "refuse":
        fix = "Leave image.colour out to have the colours, or set it to luminance to have grey values."
        raise UserError(
            f"The images of {config.source} are coloured, and image.colour refuses these.", config.source, fix
        )
    protection = Protection(config.identifiers, source.card, [config.out, config.root])
    found = list(itertools.islice(source.studies(), config.limit))
    problems = list(source.problems)
    if not found:
        shown = protection.problem(problems[0]) if problems else None
        first = f" First reason: {shown.path}: {shown.reason}" if shown else ""
        raise UserError(
            f"No study of {config.source} can be used; {len(problems)} rows or files were left out.{first}",
            source.root,
            "Check that this is the root of the raw data set, as the card's layout says.",
        )
    studies, repeated = _unique(found)
    studies, listed = _in_split_lists(studies, source, config)
    problems += [*repeated, *unreadable_dates(studies), *_masks_of_no_image(studies)]
    studies = _with_test(studies, config.test_fraction, config.split_seed)
    val_fraction = _val_fraction(studies) if config.val_fraction is None else config.val_fraction
    studies = _with_validation(studies, val_fraction, config.split_seed)
    kind = source.kind
    shard_images = 1 if kind in ("volume", "video") else config.shard_images
    settings = {
        "format_version": FORMAT_VERSION,
        "source": config.source,
        "options": protection.options(source),
        "card_sha256": source.card.text_sha256,
        "kind": kind,
        "image" if kind == "none" else kind: stored_config(kind, config).resolved(),
        "identifiers": protection.settings,
        "masks": config.masks,
        "shard_images": shard_images,
        "val_fraction": val_fraction,
        "split_seed": config.split_seed,
        "limit": config.limit,
        **({"split_lists": listed["sha256"]} if listed else {}),
        **({"test_fraction": config.test_fraction} if config.test_fraction else {}),
    }
    refs = [(study, image) for study in studies for image in study.images] if kind != "none" else []
    masks = [
        tuple(mask for mask in study.masks if mask.image_id == image.image_id) if config.masks else ()
        for study, image in refs
    ]
    kept = [protection.study(study) for study in studies]
    return Plan(
        kind=kind,
        studies=kept,
        images=[(study, image) for study in kept for image in study.images] if kind != "none" else [],
        refs=[image for _, image in refs],
        masks=masks,
        problems=[protection.problem(problem) for problem in problems],
        shard_images=shard_images,
        settings=settings,
        summary=source.summary() | ({"split lists": listed} if listed else {}),
        protection=protection,
    )


def stored_config(kind: str, config: PrepareConfig) -> AnyStored:
    """Return how a store of this kind keeps its images."""
    choices: dict[str, AnyStored] = {"volume": config.volume, "video": config.video}
    return choices.get(kind, config.image)


def _unique(studies: Sequence[Study]) -> tuple[list[Study], list[Problem]]:
    """Leave out studies whose id or an image of which occurred before; the adapter should have said so already."""
    kept: list[Study] = []
    problems: list[Problem] = []
    ids: set[str] = set()
    images: set[str] = set()
    for study in studies:
        for name in _paths(study):
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise UserError(
                    f"The adapter gives a path outside the root: {path}.", fix="Give paths relative to the root."
                )
        own = Counter(name for image in study.images for name in (f"id '{image.image_id}'", _place(image)))
        again = f"the study id '{study.study_id}'" if study.study_id in ids else ""
        again = again or next((f"the image {name}" for name in own if name in images or own[name] > 1), "")
        if again:
            where = study.images[0].path if study.images else study.study_id
            fix = "Give every study and image an id of its own; the first study is kept."
            problems.append(Problem(where, f"{again} occurs a second time", fix, study.study_id))
            continue
        ids.add(study.study_id)
        images.update(own)
        kept.append(study)
    return kept, problems


def _masks_of_no_image(studies: Sequence[Study]) -> Iterator[Problem]:
    for study in studies:
        own = {image.image_id for image in study.images}
        for mask in study.masks:
            if own and mask.image_id not in own:
                what = f"The mask '{mask.label}' is of the image {mask.image_id}, which the study does not have."
                yield Problem(mask.path or study.study_id, what, "Correct the adapter or the table.", study.study_id)


def _paths(study: Study) -> Iterator[str]:
    for image in study.images:
        yield image.path
        yield from image.files
    yield from (mask.path for mask in study.masks if mask.path is not None)


def _place(image: ImageRef) -> str:
    """Name where an image is; several series can lie in one folder, and several frames in one file."""
    frame = "" if image.frame is None else f" frame {image.frame}"
    return f"path '{image.files[0] if image.files else image.path}'{frame}"


def _in_split_lists(
    studies: list[Study], source: Source, config: PrepareConfig
) -> tuple[list[Study], dict[str, object]]:
    """Apply the split lists of the configuration; return the studies left and what the store records of the lists.

    Raises:
        UserError: The lists share images and that is not accepted, or they cannot be used at all.
    """
    if config.split_lists is None:
        return studies, {}
    lists = read_split_lists(config.split_lists)
    studies, report = apply_split_lists(lists, studies, [source.card])
    for sentence in (*report.faults, *report.overlaps):
        logger.warning("split lists: %s", sentence)
    if report.overlaps and not config.accept_split_overlap:
        raise UserError(
            f"The split lists share images: {'; '.join(report.overlaps)}. Results would be too good.",
            lists.folder,
            "Correct the lists, or set accept_split_overlap=true: such images then go to test before val before train.",
        )
    return studies, report.summary(lists.sha256)


def _with_test(studies: list[Study], fraction: float, seed: int) -> list[Study]:
    """Part the studies of known patients into training and test, by a hash of seed and patient.

    Studies of unknown patients stay without a split: nobody can say on which side theirs are.

    Raises:
        UserError: A share is asked for, but there is a split already, or there are fewer than two known patients.
    """
    if fraction == 0:
        return studies
    given = sorted({study.split for study in studies if study.split is not None})
    if given:
        raise UserError(
            f"The data set has splits of its own: {', '.join(given)}.", "test_fraction", "Leave test_fraction out."
        )
    patients = {study.patient_id for study in studies} - {UNKNOWN_PATIENT}
    if len(patients) < 2:
        raise UserError(
            f"The test split cannot be made: there are {len(patients)} known patients.",
            "test_fraction",
            "Add what tells the patients (the data set's card says what), or give split lists.",
        )
    chosen = _lowest(patients, fraction, f"test/{seed}")
    return [
        study
        if study.patient_id == UNKNOWN_PATIENT
        else dataclasses.replace(study, split="test" if study.patient_id in chosen else "train")
        for study in studies
    ]


def _lowest(patients: set[str], fraction: float, salt: str) -> set[str]:
    """Return the share of the patients with the lowest hash of salt and id, at least one and not all."""
    order = sorted(patients, key=lambda patient: (hashlib.sha256(f"{salt}/{patient}".encode()).digest(), patient))
    return set(order[: min(max(1, round(fraction * len(order))), len(order) - 1)])


def _val_fraction(studies: list[Study]) -> float:
    """Return the share that is set aside unless the user names one: none where training patients are unknown."""
    known = {study.patient_id for study in studies if study.split == "train"} - {UNKNOWN_PATIENT}
    if len(known) >= 2 or all(study.split != "train" for study in studies):
        return VAL_FRACTION
    if "val" not in {study.split for study in studies}:
        logger.warning("No validation split is set aside: the data set does not say whose its training images are.")
    return 0.0


def _with_validation(studies: list[Study], fraction: float, seed: int) -> list[Study]:
    """Set a share of the training patients aside, where there is a training and no validation split.

    Patients are ordered by a hash of seed and id: the order of the files does not matter, and a subset of the data set
    keeps nearly the same patients. Studies of unknown patients stay in training: nobody can say whose they are.

    Raises:
        UserError: A share is asked for, but there are fewer than two training patients.
    """
    splits = {study.split for study in studies}
    if fraction == 0 or "val" in splits or "train" not in splits:
        return studies
    patients = {study.patient_id for study in studies if study.split == "train"} - {UNKNOWN_PATIENT}
    if len(patients) < 2:
        raise UserError(
            f"The validation split would be empty: there are {len(patients)} known training patients.",
            fix="Set val_fraction=0, or prepare more studies.",
        )
    chosen = _lowest(patients, fraction, str(seed))
    return [
        dataclasses.replace(study, split="val") if study.split == "train" and study.patient_id in chosen else study
        for study in studies
    ]


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line per value that differs between two nested mappings."""
    lines: list[str] = []
    for key in sorted({*before, *now}):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += differences(old, new, f"{prefix}{key}.")
        elif old != new:
            lines.append(f"{prefix}{key}: {old} in the store, {new} now")
    return lines
