"""The end of `prepare`: tables, card, quarantine and `store.json` from the records of all shards; and the way back.

Guarantee: `store.json` is written last, so a store that has one is whole. `reopen` turns a whole store back into one in
progress without losing a shard.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import medvlp
from medvlp.config.schema import PrepareConfig
from medvlp.sources.base import Source
from medvlp.store import manifest
from medvlp.store.files import file_sha256, write_atomic, write_json
from medvlp.store.plan import VAL_RULE, Plan
from medvlp.store.shards import PROGRESS, ShardTask

logger = logging.getLogger(__name__)

PLAN = "plan.json"
_PACKAGES = ("imagehash", "numpy", "opencv-python-headless", "pillow", "pyarrow", "pydicom", "scipy", "zarr")


def finish(plan: Plan, records: Sequence[dict[str, Any]], source: Source, config: PrepareConfig) -> None:
    """Write everything of a store but its shards.

    Args:
        plan: What the store should hold.
        records: Those of all shards, in their order.
        source: The data set, for its card.
        config: The configuration.
    """
    out, scratch = config.out, config.out / PROGRESS / "tmp"
    facts = [row for record in records for row in record["rows"]]
    images = [_image_row(plan, row) for row in sorted(facts, key=lambda row: row["index"])]
    with_images = {row["study_id"] for row in images}
    studies = [study for study in plan.studies if study.study_id in with_images or not study.images]
    labels = source.card.label_columns
    study_rows = [manifest.study_row(study, labels) for study in studies]
    quarantine, share = _quarantine(plan, [problem for record in records for problem in record["problems"]])

    card = source.card.text.encode()
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in quarantine)
    images_file = manifest.parquet_bytes(manifest.table(images, manifest.IMAGE_COLUMNS))
    studies_file = manifest.parquet_bytes(manifest.table(study_rows, manifest.study_columns(labels)))
    for name, data in (
        (manifest.IMAGES, images_file),
        (manifest.STUDIES, studies_file),
        (manifest.CARD, card),
        (manifest.QUARANTINE, lines.encode()),
    ):
        write_atomic(out / name, data, scratch)

    preprocessing_sha256, card_sha256 = config.image.sha256(), source.card.text_sha256
    counts = _counts(images, study_rows, len(plan.images))
    for split in {study.split for study in plan.studies} - {row["split"] for row in study_rows}:
        logger.warning("%s: no study of split %s is left; see %s", out, split, manifest.QUARANTINE)
    meta = {
        "format": "medvlp store",
        "format_version": manifest.FORMAT_VERSION,
        "dataset": config.source,
        "hash": manifest.store_hash(config.source, preprocessing_sha256, card_sha256, images, study_rows),
        "preprocessing": config.image.resolved(),
        "labels": list(labels),
        "split_rule": {"rule": VAL_RULE, "val_fraction": config.val_fraction, "split_seed": config.split_seed},
        "counts": counts,
        "source": plan.summary,
        "quarantine": {"entries": len(quarantine), "share": share},
        "sha256": {
            "preprocessing": preprocessing_sha256,
            "card": card_sha256,
            manifest.IMAGES: file_sha256(out / manifest.IMAGES),
            manifest.STUDIES: file_sha256(out / manifest.STUDIES),
        },
        "made_from": plan.state,
        "versions": _versions(),
    }
    write_json(out / manifest.META, meta, scratch)


def reopen(plan: Plan, tasks: Sequence[ShardTask], out: Path) -> None:
    """Write the records of a whole store's shards and remove `store.json`, so that shards can be replaced."""
    import pyarrow.parquet as pq

    scratch = out / PROGRESS / "tmp"
    kept = [name for name in manifest.IMAGE_COLUMNS if name not in _PLANNED]
    rows = pq.read_table(out / manifest.IMAGES, columns=kept).to_pylist()
    problems = [line for line in read_quarantine(out) if line["row"] is not None]
    for task in tasks:
        first, last = task.number * task.shard_images, task.number * task.shard_images + len(task.paths)
        record = {
            "rows": [row for row in rows if first <= row["index"] < last],
            "problems": [
                {"index": line["row"], "reason": line["reason"], "fix": line["next"]}
                for line in problems
                if first <= line["row"] < last
            ],
            "bytes": task.file.stat().st_size if task.file.exists() else 0,
        }
        write_json(task.record, record, scratch, indent=None)
    write_json(out / PROGRESS / PLAN, plan.state, scratch)
    (out / manifest.META).unlink()


def read_quarantine(out: Path) -> list[dict[str, Any]]:
    """Return the lines of `quarantine.jsonl`: `path`, `reason`, `next`, `study_id`, and for images the array `row`."""
    path = out / manifest.QUARANTINE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


_PLANNED = ("image_id", "study_id", "patient_id", "path", "view", "modality", "split")


def _image_row(plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    study, image = plan.images[facts["index"]]
    planned = {
        "image_id": image.image_id,
        "study_id": study.study_id,
        "patient_id": study.patient_id,
        "path": image.path,
        "view": image.view,
        "modality": image.modality,
        "split": study.split,
    }
    return {name: planned[name] if name in planned else facts[name] for name in manifest.IMAGE_COLUMNS}


def _quarantine(plan: Plan, image_problems: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], float]:
    """Return the quarantine lines and the share of studies (or files that belong to none) with a problem."""
    lines: list[dict[str, Any]] = []
    for problem in plan.problems:
        line = {"path": problem.path, "reason": problem.reason, "next": problem.fix, "study_id": problem.study_id}
        lines.append({**line, "row": None})
    for trouble in sorted(image_problems, key=lambda trouble: trouble["index"]):
        study, image = plan.images[trouble["index"]]
        line = {"path": image.path, "reason": trouble["reason"], "next": trouble["fix"], "study_id": study.study_id}
        lines.append({**line, "row": trouble["index"]})
    bad = {line["study_id"] or line["path"] for line in lines}
    everything = bad | {study.study_id for study in plan.studies}
    return lines, len(bad) / max(len(everything), 1)


def _counts(images: Sequence[dict[str, Any]], studies: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    image_splits = Counter(row["split"] for row in images)
    by_split: dict[str, dict[str, int]] = {}
    for split in sorted({row["split"] for row in studies}, key=str):
        own = [row for row in studies if row["split"] == split]
        by_split[str(split)] = {
            "studies": len(own),
            "images": image_splits[split],
            "patients": len({row["patient_id"] for row in own}),
        }
    return {
        "studies": len(studies),
        "images": len(images),
        "patients": len({row["patient_id"] for row in studies}),
        "array_rows": rows,
        "splits": by_split,
    }


def _versions() -> dict[str, str]:
    found = {"medvlp": medvlp.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}
