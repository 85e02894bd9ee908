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
from medvlp.config.prepare import PrepareConfig
from medvlp.sources.base import Problem, Source
from medvlp.store import manifest
from medvlp.store.boxes import boxes_that_fit
from medvlp.store.days import study_days
from medvlp.store.files import file_sha256, write_atomic, write_json
from medvlp.store.plan import LISTS_RULE, TEST_RULE, VAL_RULE, Plan, stored_config
from medvlp.store.shards import PROGRESS, ShardTask, file_sizes
from medvlp.types import UNKNOWN_PATIENT

logger = logging.getLogger(__name__)

PLAN = "plan.json"
_PACKAGES = (
    "imagehash",
    "numcodecs",
    "numpy",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "pydicom",
    "scipy",
)


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
    masks = [_mask_row(plan, row) for record in records for row in record["masks"]]
    with_images = {row["study_id"] for row in images}
    planned = {study.study_id for study, _ in plan.images}
    studies = [study for study in plan.studies if study.study_id in with_images or study.study_id not in planned]
    studies, misfits = boxes_that_fit(studies, images) if plan.kind == "image" else (studies, [])
    labels = source.label_columns
    days = study_days(plan.studies)
    study_rows = [manifest.study_row(study, labels, days.get(study.study_id)) for study in studies]
    shown = {row["image_id"] for row in images}
    questions = [row for study in studies for row in manifest.question_rows(study) if row["image_id"] in shown]
    quarantine, share = _quarantine(plan, misfits, [problem for record in records for problem in record["problems"]])

    card = source.card.text.encode()
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in quarantine)
    images_file = manifest.parquet_bytes(manifest.table(images, manifest.IMAGE_COLUMNS))
    studies_file = manifest.parquet_bytes(manifest.table(study_rows, manifest.study_columns(labels)))
    masks_file = manifest.parquet_bytes(manifest.table(masks, manifest.MASK_COLUMNS))
    asked = manifest.parquet_bytes(manifest.table(questions, manifest.QUESTION_COLUMNS)) if questions else None
    for name, data in (
        *(((manifest.QUESTIONS, asked),) if asked else ()),
        (manifest.MASKS, masks_file),
        (manifest.IMAGES, images_file),
        (manifest.STUDIES, studies_file),
        (manifest.CARD, card),
        (manifest.QUARANTINE, lines.encode()),
    ):
        write_atomic(out / name, data, scratch)

    stored = stored_config(plan.kind, config)
    preprocessing_sha256, card_sha256 = stored.sha256(), source.card.text_sha256
    counts = _counts(images, study_rows, len(plan.images)) | {"masks": len(masks), "shard_masks": plan.shard_masks}
    counts |= {"questions": len(questions)} if questions else {}
    counts["empty masks"] = sum(row["pixels"] == 0 for row in masks)
    if counts["empty masks"]:
        lost = f"{counts['empty masks']:,} of {len(masks):,} masks have no pixel as stored"
        logger.warning("%s: %s; they are empty, or too small for image.size; see pixels in masks.parquet", out, lost)
    for split in {study.split for study in plan.studies} - {row["split"] for row in study_rows}:
        logger.warning("%s: no study of split %s is left; see %s", out, split, manifest.QUARANTINE)
    rules = {"split_lists": LISTS_RULE, "test_fraction": TEST_RULE}
    rule = next((rules[key] for key in rules if key in plan.settings), VAL_RULE)
    meta = {
        "format": "medvlp store",
        "format_version": manifest.FORMAT_VERSION,
        "dataset": config.source,
        "kind": plan.kind,
        "hash": manifest.store_hash(
            config.source, preprocessing_sha256, card_sha256, images, study_rows, masks, questions
        ),
        "preprocessing": stored.resolved(),
        "labels": list(labels),
        "split_rule": {"rule": rule, "val_fraction": plan.settings["val_fraction"], "split_seed": config.split_seed}
        | {key: plan.settings[key] for key in ("test_fraction",) if key in plan.settings},
        "counts": counts,
        "source": plan.summary,
        "quarantine": {"entries": len(quarantine), "share": share},
        "sha256": {
            "preprocessing": preprocessing_sha256,
            "card": card_sha256,
            manifest.IMAGES: file_sha256(out / manifest.IMAGES),
            manifest.STUDIES: file_sha256(out / manifest.STUDIES),
            manifest.MASKS: file_sha256(out / manifest.MASKS),
            **({manifest.QUESTIONS: file_sha256(out / manifest.QUESTIONS)} if questions else {}),
        },
        "made_from": plan.state,
        "versions": _versions(),
    }
    write_json(out / manifest.META, meta, scratch)


def reopen(plan: Plan, tasks: Sequence[ShardTask], out: Path) -> None:
    """Write the records of a whole store's shards and remove `store.json`, so that shards can be replaced."""
    import pyarrow.parquet as pq

    scratch = out / PROGRESS / "tmp"
    facts = _by_shard(pq.read_table(out / manifest.IMAGES).drop_columns(list(_PLANNED)).to_pylist(), "index", tasks)
    masks = _by_shard(_recorded_masks(plan, pq.read_table(out / manifest.MASKS).to_pylist()), "image", tasks)
    lines = [line for line in read_quarantine(out) if line["row"] is not None]
    problems = [
        {"index": line["row"], "part": line["part"], "reason": line["reason"], "fix": line["next"]}
        | ({"path": line["path"]} if line["part"] == "masks" else {})
        for line in lines
    ]
    by_shard = _by_shard(problems, "index", tasks)
    for task in tasks:
        number = task.number
        record = {"rows": facts[number], "masks": masks[number], "problems": by_shard[number]}
        write_json(task.record, record | {"bytes": file_sizes(task)}, scratch, indent=None)
    write_json(out / PROGRESS / PLAN, plan.state, scratch)
    (out / manifest.META).unlink()


def _by_shard(rows: Sequence[dict[str, Any]], key: str, tasks: Sequence[ShardTask]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {task.number: [] for task in tasks}
    for row in rows:
        found[row[key] // tasks[0].shard_images].append(row)
    return found


def _recorded_masks(plan: Plan, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of `masks.parquet` as the shards record them: with the index of their image, not its ids."""
    place = {image.image_id: index for index, (_, image) in enumerate(plan.images)}
    names = ("image_id", "study_id")
    return [
        {name: value for name, value in row.items() if name not in names} | {"image": place[row["image_id"]]}
        for row in rows
    ]


def read_quarantine(out: Path) -> list[dict[str, Any]]:
    """Return the lines of `quarantine.jsonl`.

    Each has `path`, `reason`, `next` and `study_id`, and where it is about what a shard reads also `row` (index of the
    image) and `part` (image or masks).
    """
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
    return {name: planned[name] if name in planned else facts.get(name) for name in manifest.IMAGE_COLUMNS}


def _mask_row(plan: Plan, facts: dict[str, Any]) -> dict[str, Any]:
    study, image = plan.images[facts["image"]]
    planned = {"image_id": image.image_id, "study_id": study.study_id}
    return {name: planned.get(name, facts.get(name)) for name in manifest.MASK_COLUMNS}


def _quarantine(
    plan: Plan, box_problems: Sequence[Problem], image_problems: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], float]:
    """Return the quarantine lines and the share of studies (or files that belong to none) with a problem."""
    lines: list[dict[str, Any]] = []
    for problem in (*plan.problems, *box_problems):
        line = {"path": problem.path, "reason": problem.reason, "next": problem.fix, "study_id": problem.study_id}
        lines.append({**line, "row": None, "part": None})
    for trouble in sorted(image_problems, key=lambda trouble: trouble["index"]):
        study, image = plan.images[trouble["index"]]
        path = trouble.get("path") or image.path or f"image {image.image_id}"
        line = {"path": path, "reason": trouble["reason"], "next": trouble["fix"], "study_id": study.study_id}
        lines.append({**line, "row": trouble["index"], "part": trouble["part"]})
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
            "patients": _patients(own),
        }
    return {
        "studies": len(studies),
        "images": len(images),
        "patients": _patients(studies),
        "array_rows": rows,
        "splits": by_split,
    }


def _patients(studies: Sequence[dict[str, Any]]) -> int:
    """Return how many known patients there are."""
    return len({row["patient_id"] for row in studies} - {UNKNOWN_PATIENT})


def _versions() -> dict[str, str]:
    found = {"medvlp": medvlp.__version__, "python": platform.python_version()}
    return found | {name: importlib.metadata.version(name) for name in _PACKAGES}
