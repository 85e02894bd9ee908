"""What is missing from a report, and where its numbers come from, as plain records for their templates.

Guarantee: whatever the suite asks for and has no number is listed with its reason: settings, cells of settings that
have others, stores, encoders. Of an encoder it is said how its weights were read and what it was trained on, or that
this is not known.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medvlp.bench.report_data import Results
from medvlp.bench.report_scores import PROTOCOL_NAMES, Group, Setting, is_baseline, setting_of
from medvlp.tasks.base import FROZEN

NOT_APPLICABLE = "not applicable"


def missing(found: Results) -> dict[str, Any] | None:
    """Return what has no number: rows of settings, of cells, stores and encoders; None where nothing is missing."""
    rows: dict[tuple[str, str, str, str], list[str]] = {}
    left_out: dict[tuple[str, str], list[str]] = {}
    for group in found.groups:
        setting = group.setting
        if group.reason.startswith(NOT_APPLICABLE):
            why = group.reason.removeprefix(f"{NOT_APPLICABLE}: ")
            left_out.setdefault((setting.encoder, why), []).append(setting.task)
        elif not group.cells:
            key = setting.task, PROTOCOL_NAMES.get(setting.protocol, setting.protocol), setting.amount, group.reason
            rows.setdefault(key, []).append(setting.encoder)
    record = {
        "settings": [(*key, names) for key, names in rows.items()],
        "number": sum(map(len, rows.values())),
        "parts": list(_parts(found)),
        "stores": list(missing_stores(found)),
        "encoders": [failure for failure in found.failures if failure.get("encoder") and "task" not in failure],
        "not_applicable": sum(map(len, left_out.values())),
        "left_out": [(*key, tasks) for key, tasks in left_out.items()],
    }
    parts = ("settings", "parts", "stores", "encoders", "not_applicable")
    return record if any(record[part] for part in parts) or found.failures else None


def missing_stores(found: Results) -> Iterator[tuple[str, list[str]]]:
    """Yield each data set that has no prepared store here, with its tasks."""
    lacking: dict[str, list[str]] = {}
    for name, task in found.tasks.items():
        if task.get("dataset") and task["dataset"] not in found.stores:
            lacking.setdefault(str(task["dataset"]), []).append(name)
    yield from lacking.items()


def _parts(found: Results) -> Iterator[tuple[Group, int]]:
    """Yield the settings that have fewer cells than seeds and draws ask for, with the number asked for."""
    asked = asked_cells(found)
    for group in found.groups:
        wanted = asked.get(group.setting, 0)
        if 0 < len(group.cells) < wanted:
            yield group, wanted


def asked_cells(found: Results) -> dict[Setting, int]:
    """Return the number of cells of each setting of an encoder: its draws times the seeds that change a number."""
    asked: dict[Setting, int] = {}
    names = [name for name in found.encoder_names if not is_baseline(name) or name.startswith("random:")]
    for entry in found.suite.get("entries", []):
        draws, seeds = int(entry.get("draws") or 1), len(entry.get("seeds") or [0])
        for protocol in entry.get("protocols", []):
            amounts = [{"shots": k} for k in entry.get("shots") or []] if protocol == "few_shot" else []
            if protocol != "few_shot":
                amounts = [{"fraction": f} for f in entry.get("fractions") or [1.0]]
            for amount in amounts:
                for name in names:
                    setting = setting_of({"task": entry["task"], "protocol": protocol, "encoder": name} | amount)
                    trained = protocol in (FROZEN, "fine_tune") or name.startswith("random:")
                    drawn = draws if setting.shots or setting.fraction < 1 else 1
                    asked[setting] = max(asked.get(setting, 0), drawn * (seeds if trained else 1))
    return asked


def provenance(found: Results) -> dict[str, Any]:
    """Return the rows of the tables: software, stores, tasks, encoders."""
    cell = found.cells[0].result if found.cells else {}
    return {
        "git": found.facts.get("git") or cell.get("git") or "",
        "versions": found.facts.get("versions") or cell.get("versions") or {},
        "stores": found.stores,
        "tasks": [(name, task, _task_hash(found, name)) for name, task in found.tasks.items()],
        "encoders": [_encoder(found, name) for name in found.encoder_names],
        "audit": found.leaks.get("audit", {}),
    }


def _task_hash(found: Results, name: str) -> str:
    hashes = {str((cell.info.get("hashes") or {}).get("task", "")) for cell in found.cells if cell.info["task"] == name}
    return ", ".join(sorted(one[:12] for one in hashes if one))


def _encoder(found: Results, name: str) -> dict[str, Any]:
    records = [record for record in found.encoders if record.get("name") == name]
    first: dict[str, Any] = records[0] if records else {}
    training = found.leaks.get("encoders", {}).get(name)
    if training is None or not training.get("known"):
        trained = "nothing" if is_baseline(name) else "not known"
    else:
        trained = ", ".join(f"{one['dataset']} ({one['split']})" for one in training.get("sources", ())) or "nothing"
    return {
        "name": name,
        "spec": first.get("spec", ""),
        "hashes": list(dict.fromkeys(str(record.get("hash", "")) for record in records if record.get("hash"))),
        "offers": first.get("offers") or [],
        "loaded": first.get("loaded") or [],
        "trained": trained,
    }
