"""Raw data set -> prepared store.

Guarantee: `prepare` may be killed at any moment; the same command finishes the work, and the store is the same, byte
for byte, as from one undisturbed run with any number of workers. A finished store is not written again, unless images
that could not be read before can be read now. A store made from other input or other settings is never mixed with or
overwritten.

While it works, `.progress/` in the store holds the plan and one record per finished shard; `store.json` is written
last.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvlp.cluster import cpu_count
from medvlp.config.prepare import PrepareConfig
from medvlp.errors import UserError
from medvlp.progress import progress_bar
from medvlp.sources import SOURCES
from medvlp.sources.base import Source
from medvlp.sources.cards import Card
from medvlp.store import manifest
from medvlp.store.array_store import read_meta
from medvlp.store.files import locked, remove_folder, write_json
from medvlp.store.finish import PLAN, finish, read_quarantine, reopen
from medvlp.store.plan import Plan, differences, make_plan, stored_config
from medvlp.store.remote import is_remote, place
from medvlp.store.shards import PROGRESS, ShardTask, create_arrays, finished, read_image
from medvlp.store.workers import run_shards

REASONS_SHOWN = 3
"""The most frequent reasons of a quarantine, which are printed at the end."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PrepareSummary:
    """What a run of `prepare` left behind.

    `images` counts what `unit` says, `quarantined` lines of `quarantine.jsonl`; `key` is the private file that names
    the originals of hashed ids, None where ids were kept.
    """

    store: Path
    studies: int
    images: int
    quarantined: int
    seconds: float
    hash: str
    already_complete: bool = False
    key: Path | None = None
    unit: str = manifest.UNITS["image"]

    def __str__(self) -> str:
        images = f" with {counted(self.images, self.unit)}" if self.images else ""
        return f"{counted(self.studies, 'studies')}{images} in {self.store}"


def prepare(config: PrepareConfig) -> PrepareSummary:
    """Write the store that a configuration describes, or finish it, or find that it is complete.

    Raises:
        UserError: The raw data set is unusable; `out` holds something else; the disk is full or read-only; another run
            writes the same store; or more studies than `max_quarantine_share` are bad (the store is then complete and
            can be looked into).
    """
    started = time.perf_counter()
    source = SOURCES.get(config.source)(config.root, config.options)
    config = _with_colours(config, source.card)
    _check_target(config)
    plan = make_plan(source, config)
    _check_same_input(plan, config.out)
    already_complete = _is_complete(plan, config)
    if already_complete:
        logger.info("%s is complete: nothing to do", config.out)
    else:
        with locked(config.out / PROGRESS):
            _check_same_input(plan, config.out)
            _write(plan, source, config)
            remove_folder(config.out / PROGRESS)
    meta = read_meta(config.out)
    paths = {image.image_id: ref.path for (_, image), ref in zip(plan.images, plan.refs, strict=True)}
    key = plan.protection.write_key(config.source, meta["hash"], paths)
    _check_quarantine(meta["quarantine"], config)
    return PrepareSummary(
        store=config.out,
        studies=meta["counts"]["studies"],
        images=meta["counts"]["images"],
        quarantined=meta["quarantine"]["entries"],
        seconds=time.perf_counter() - started,
        hash=meta["hash"],
        already_complete=already_complete,
        key=key,
        unit=manifest.UNITS[plan.kind],
    )


def counted(number: int, plural: str) -> str:
    """Return a number with its unit: `1 study`, `2 studies`."""
    singular = plural[:-3] + "y" if plural.endswith("ies") else plural[:-1]
    return f"{number} {singular if number == 1 else plural}"


def _with_colours(config: PrepareConfig, card: Card) -> PrepareConfig:
    """Keep the colours of a data set of colour pictures, unless the configuration says what becomes of them."""
    if not card.coloured or "colour" in config.image.model_fields_set:
        return config
    return config.model_copy(update={"image": config.image.model_copy(update={"colour": "keep"})})


def _check_target(config: PrepareConfig) -> None:
    """Refuse a folder that holds something else: nothing of the user's is ever overwritten."""
    out = config.out
    if is_remote(place(out)):
        raise UserError(
            "A store is prepared on a disk: half-written files have no place in an object store.",
            place(out),
            f"Choose a folder for --out, then run `medvlp data copy FOLDER {place(out)}`.",
        )
    if out.exists() and not out.is_dir():
        raise UserError("The store must be a folder, but there is a file of this name.", out, "Choose another --out.")
    if out.resolve() == config.root.resolve():
        raise UserError("The store would be written into the raw data set.", out, "Choose another --out.")
    if out.is_dir() and not (out / manifest.META).exists() and not (out / PROGRESS).exists() and any(out.iterdir()):
        raise UserError("The folder is not empty and holds no store.", out, "Choose an empty or new folder for --out.")


def _check_same_input(plan: Plan, out: Path) -> None:
    """Refuse to continue a store that was made with other settings or from other raw data."""
    if (out / manifest.META).exists():
        before, verb = read_meta(out)["made_from"], "was made"
    else:
        try:
            before, verb = json.loads((out / PROGRESS / PLAN).read_text()), "was begun"
        except FileNotFoundError:
            return
    found = differences(before, json.loads(json.dumps(plan.state)))
    if found:
        raise UserError(
            f"The store {verb} with other settings or from other raw data:\n    " + "\n    ".join(found),
            out,
            "Use the former settings, choose another --out, or remove the store to make it anew.",
        )


def _tasks(plan: Plan, config: PrepareConfig) -> list[ShardTask]:
    if plan.kind == "none":
        return []
    refs, size, masks = plan.refs, plan.shard_images, plan.shard_masks
    stored = stored_config(plan.kind, config)
    firsts = range(0, len(refs), size)
    threads = 1  # a job of a cluster has a process for each of its cores
    if config.cluster.kind == "none":
        threads = max(1, cpu_count() // max(min(config.num_workers or cpu_count(), len(firsts)), 1))
    return [
        ShardTask(
            out=config.out,
            root=config.root,
            kind=plan.kind,
            number=number,
            shard_images=size,
            images=tuple(refs[first : first + size]),
            masks=tuple(plan.masks[first : first + size]),
            shard_masks=masks,
            config=stored,
            private=plan.protection.hashes,
            threads=threads,
        )
        for number, first in enumerate(firsts)
    ]


def _can_be_read_now(problems: list[dict[str, Any]], tasks: list[ShardTask]) -> bool:
    """Tell whether something that could not be read before can be read now, e.g. since it was downloaded again.

    Args:
        problems: `index` and `part` of what could not be read.
        tasks: All shards.
    """
    before: dict[int, list[str]] = {}
    for problem in problems:
        before.setdefault(problem["index"], []).append(problem["part"])
    for index, parts in before.items():
        task = tasks[index // tasks[0].shard_images]
        now = [problem["part"] for problem in read_image(task, index - task.first).problems]
        if len(now) < len(parts) or ("image" in parts and "image" not in now):
            return True
    return False


def _is_complete(plan: Plan, config: PrepareConfig) -> bool:
    if not (config.out / manifest.META).exists() or (config.out / PROGRESS).exists():
        return False
    lines = [line for line in read_quarantine(config.out) if line["row"] is not None]
    problems = [{"index": line["row"], "part": line["part"]} for line in lines]
    return not _can_be_read_now(problems, _tasks(plan, config))


def _write(plan: Plan, source: Source, config: PrepareConfig) -> None:
    """Write what is missing. The caller holds the lock."""
    out, tasks = config.out, _tasks(plan, config)
    remove_folder(out / PROGRESS / "tmp")
    if (out / manifest.META).exists():
        reopen(plan, tasks, out)
    write_json(out / PROGRESS / PLAN, plan.state, out / PROGRESS / "tmp")
    if plan.kind != "none":
        stored = stored_config(plan.kind, config)
        create_arrays(out, plan.kind, len(plan.images), plan.shard_images, plan.shard_masks, stored)
    records = {task.number: record for task in tasks if (record := finished(task)) is not None}
    for number in [number for number, record in records.items() if _can_be_read_now(record["problems"], tasks)]:
        del records[number]
        tasks[number].record.unlink()
    pending = [task for task in tasks if task.number not in records]
    bad = sum(len(record["problems"]) for record in records.values())
    with progress_bar(f"prepare {config.source}", len(plan.images), manifest.UNITS[plan.kind]) as advance:
        advance(len(plan.images) - sum(len(task.images) for task in pending))
        with closing(run_shards(pending, config)) as written:
            for task, record in written:
                records[task.number] = record
                bad += len(record["problems"])
                advance(len(task.images), bad=bad)
    finish(plan, [records[task.number] for task in tasks], source, config)


def _check_quarantine(quarantine: dict[str, Any], config: PrepareConfig) -> None:
    if quarantine["entries"]:
        logger.warning("%d rows or files are in %s", quarantine["entries"], config.out / manifest.QUARANTINE)
        reasons = Counter(re.sub(r"\d+(?:, \d+)*", "...", line["reason"]) for line in read_quarantine(config.out))
        for reason, count in reasons.most_common(REASONS_SHOWN):
            logger.warning("  %d: %s", count, reason)
    if quarantine["share"] > config.max_quarantine_share:
        raise UserError(
            f"{quarantine['share']:.1%} of the studies have a problem, more than max_quarantine_share = "
            f"{config.max_quarantine_share:.1%}. The store is complete and holds all the others.",
            config.out / manifest.QUARANTINE,
            "Mend what it lists and run the same command again, or accept it with a larger max_quarantine_share.",
        )
