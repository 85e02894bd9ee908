"""Generated beside reference reports: a few test studies, as every encoder's decoder writes them.

Guarantee: texts are the kept ones that the scores were computed from. What is affirmed, denied and left open differs by
sign and line, not by colour alone, and is told to a reader who sees neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from medvlp.bench.report_charts import read_predictions
from medvlp.bench.report_data import Results, read_json
from medvlp.bench.report_places import grey_picture
from medvlp.bench.report_scores import PROTOCOL_NAMES
from medvlp.html import data_uri
from medvlp.tasks.report_generation import Reports
from medvlp.text.labeler import label_report
from medvlp.text.marks import marked
from medvlp.types import ABSENT, PRESENT, UNCERTAIN

SIDE = 224
"""Pixels of a picture."""
SAID = {
    PRESENT: {"kind": "present", "sign": "+", "word": "affirmed"},
    ABSENT: {"kind": "absent", "sign": "\u2212", "word": "denied"},
    UNCERTAIN: {"kind": "uncertain", "sign": "?", "word": "left open"},
}


def report_texts(found: Results) -> Iterator[dict[str, Any]]:
    """Yield for each example study its pictures, its reference report, and what each encoder has written.

    Of several fractions of the training reports the largest is shown.
    """
    kept: dict[str, dict[tuple[str, str], Reports]] = {}
    ids: dict[tuple[str, str, str], str] = {}
    for group in sorted(found.groups, key=lambda each: each.setting.fraction):
        setting = group.setting
        if found.tasks.get(setting.task, {}).get("type") == "report_generation" and group.cells:
            frame = read_predictions(group.cells[0])
            if frame is not None:
                kept.setdefault(setting.task, {})[setting.encoder, setting.protocol] = Reports.from_frame(frame)
                ids[setting.task, setting.encoder, setting.protocol] = setting.id
    for entry in read_json(found.root / "examples" / "studies.json") or []:
        own = kept.get(str(entry.get("task")), {})
        rows = {key: list(each.sample_ids).index(entry["sample_id"]) for key, each in own.items() if _has(each, entry)}
        if not rows:
            continue
        reference = next(own[key].references[row] for key, row in rows.items())
        greys = [grey_picture(found.root / "examples" / str(name), SIDE) for name in entry.get("files", [])]
        yield {
            **{key: entry[key] for key in ("task", "sample_id")},
            "pictures": [data_uri(np.rint(255 * grey).astype(np.uint8)) for grey in greys if grey is not None],
            "reference": pieces(reference),
            "texts": [
                {
                    "encoder": encoder,
                    "protocol": PROTOCOL_NAMES.get(protocol, protocol),
                    "setting": ids[str(entry["task"]), encoder, protocol],
                    "pieces": pieces(own[encoder, protocol].generated[row]),
                    **differences(own[encoder, protocol].generated[row], reference),
                }
                for (encoder, protocol), row in rows.items()
            ],
        }


def _has(kept: Reports, entry: dict[str, Any]) -> bool:
    return entry.get("sample_id") in kept.sample_ids


def pieces(text: str) -> list[dict[str, Any]]:
    """Return the pieces of a text as records for the template."""
    return [
        {"text": piece.text, "finding": piece.finding, **(SAID[piece.value] if piece.value is not None else {})}
        for piece in marked(text)
    ]


def differences(generated: str, reference: str) -> dict[str, list[str]]:
    """Return the findings that only the reference affirms, and those that only the generated text does."""
    there, written = (
        [name for name, value in label_report(text).items() if value == PRESENT and name != "No Finding"]
        for text in (reference, generated)
    )
    return {
        "missed": [name for name in there if name not in written],
        "added": [name for name in written if name not in there],
    }
