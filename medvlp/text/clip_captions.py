"""Captions for clips of data sets that have labels or measurements and no reports, by sentences that stand in a file.

Guarantee: a caption says what labels and measurements say, and nothing else: no label that is absent, uncertain or not
mentioned, no measurement that is not given. Which data sets have sentences, and which ones, is in `clip_captions.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any


@cache
def caption_templates() -> dict[str, Any]:
    """Return the sentences of each data set."""
    import yaml

    file = Path(__file__).with_name("clip_captions.yaml")
    templates: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return templates


def template_caption(dataset: str, labels: Mapping[str, float], values: Mapping[str, float]) -> str:
    """Return the caption of a clip; empty where its labels and measurements say nothing.

    Args:
        dataset: One of `caption_templates`.
        labels: 1 present, 0 absent, -1 uncertain, NaN not mentioned.
        values: Measurements in the units of the data card; NaN where not given.
    """
    template = caption_templates()[dataset]
    said = [
        sentence
        for group in template.get("labels", ())
        for name, sentence in group.items()
        if labels.get(name, math.nan) == 1
    ]
    for name, how in template.get("values", {}).items():
        value = values.get(name, math.nan)
        if math.isfinite(value):
            said.append(how["says"].format(round(value)))
            said += [sentence for bound, sentence in how.get("grades", ()) if value < bound][:1]
    return " ".join(said)
