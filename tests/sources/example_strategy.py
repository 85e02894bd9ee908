"""Random examples for the raw layouts, and the comparison of what an adapter reads with what a layout wrote."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st

from medvlp.sources.phantom.clips import heart_clip, surgery_clip
from medvlp.sources.phantom.examples import Example, ExampleBox, ExampleClip, ExampleImage, ExampleLesion, ExampleVolume
from medvlp.sources.phantom.findings import NAMES
from medvlp.sources.phantom.layouts.base import Layout
from medvlp.types import Study

HEIGHT, WIDTH = 24, 20
WORDS = ("clear", "lungs", "no", "effusion", "heart", "normal", "left", "right", "opacity", "mild", "is", "seen")


@st.composite
def examples(draw: st.DrawFn, layout: type[Layout]) -> list[Example]:
    """Three to six patients, at least one in every split, with one or two examinations each."""
    splits = ["train", "val", "test", *draw(st.lists(st.sampled_from(["train", "val", "test"]), max_size=3))]
    visits = [draw(st.integers(1, 2)) for _ in splits]
    made: list[Example] = []
    for patient, (split, count) in enumerate(zip(splits, visits, strict=True)):
        age, sex = draw(st.integers(18, 90)), draw(st.sampled_from("MF"))
        for visit in range(count):
            made.append(draw(example(layout, len(made), patient, visit, split, age, sex)))
    return made


@st.composite
def example(
    draw: st.DrawFn, layout: type[Layout], number: int, patient: int, visit: int, split: str, age: int, sex: str
) -> Example:
    """One examination, with everything that the layout needs."""
    findings = frozenset(draw(st.sets(st.sampled_from(NAMES), max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    images: tuple[ExampleImage, ...] = ()
    if layout.needs in ("radiographs", "lungs"):
        views = [draw(st.sampled_from(["PA", "AP"])), *(["LATERAL"] if draw(st.booleans()) else [])]
        images = tuple(picture(rng, view, sorted(findings)) for view in views)
    return Example(
        number=number,
        patient=patient,
        visit=visit,
        split=split,
        age=age,
        sex=sex,
        findings=findings,
        sections=sections(rng),
        images=images,
        volume=volume(rng, layout, findings) if layout.needs in ("volumes", "organs", "abdomen") else None,
        clip=clip(rng, layout),
        labels=labels(rng, layout),
    )


def clip(rng: np.random.Generator, layout: type[Layout]) -> ExampleClip | None:
    """A few small frames, where the layout needs any."""
    if layout.needs == "heart":
        return heart_clip(rng, frames=int(rng.integers(4, 8)), size=32)
    return surgery_clip(rng, frames=int(rng.integers(2, 5)), size=16) if layout.needs == "surgery" else None


def sections(rng: np.random.Generator) -> dict[str, str]:
    """Findings, and perhaps the other sections: a report without headings has findings alone."""
    names = ["indication", "comparison", "impression"]
    return {name: sentence(rng) for name in ["findings", *(name for name in names if rng.random() < 0.7)]}


def labels(rng: np.random.Generator, layout: type[Layout]) -> dict[str, float] | None:
    """Every label at random among the values that the data set has; None where labels follow from findings."""
    if not layout.label_values:
        return None
    from medvlp.sources.cards import load_card

    names = load_card(layout.name).label_columns
    return {name: float(rng.choice(layout.label_values)) for name in names}


def picture(rng: np.random.Generator, view: str, findings: list[str]) -> ExampleImage:
    """Noise with a box and a mask for every finding; the mask touches all sides of its box."""
    boxes, masks = [], []
    for name in findings:
        x, y = int(rng.integers(0, WIDTH - 4)), int(rng.integers(0, HEIGHT - 4))
        width, height = int(rng.integers(2, WIDTH - x)), int(rng.integers(2, HEIGHT - y))
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[y : y + height, x : x + width] = rng.random((height, width)) < 0.7
        mask[y, x : x + width] = mask[y : y + height, x] = True
        mask[y + height - 1, x + width - 1] = True
        boxes.append(ExampleBox(name, x, y, width, height))
        masks.append((name, mask))
    pixels = rng.integers(1, 255, (HEIGHT, WIDTH), dtype=np.uint8)
    left = rng.random((HEIGHT, WIDTH)) < 0.4
    return ExampleImage(pixels, view, tuple(boxes), tuple(masks), (left, (rng.random((HEIGHT, WIDTH)) < 0.6) & ~left))


def volume(rng: np.random.Generator, layout: type[Layout], findings: frozenset[str]) -> ExampleVolume:
    """A few voxels of HU with spacing, an origin, structures of the card's names and a lesion for a nodule or mass."""
    from medvlp.sources.cards import load_card

    shape = tuple(int(side) for side in rng.integers(5, 9, 3))
    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = *rng.integers(4, 12, 3) / 4, 1
    affine[:3, 3] = rng.integers(-400, 400, 3) / 4
    names = load_card(layout.name).structures
    chosen = sorted(rng.choice(len(names), min(4, len(names)), replace=False).tolist()) if names else []
    structures = rng.integers(0, len(chosen) + 1, shape).astype(np.uint8)
    lesions = [
        ExampleLesion(name, tuple((affine[:3] @ [2, 2, 2, 1]).tolist()), 6.5 + place)
        for place, name in enumerate(sorted(findings & {"nodule", "mass"}))
    ]
    return ExampleVolume(
        rng.integers(-1000, 1500, shape).astype(np.int16),
        affine,
        structures,
        {place + 1: names[index] for place, index in enumerate(chosen)},
        tuple(lesions),
    )


def sentence(rng: np.random.Generator) -> str:
    """A few words with a full stop."""
    words = " ".join(rng.choice(WORDS, int(rng.integers(2, 7))))
    return words.capitalize() + "."


def differences(found: Study, wanted: Study) -> dict[str, tuple[Any, Any]]:
    """Return the fields in which two studies differ: NaN equals NaN, numbers agree to 1e-6."""
    names = [field.name for field in dataclasses.fields(Study)]
    pairs = {name: (plain(getattr(found, name)), plain(getattr(wanted, name))) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def plain(value: Any) -> Any:
    """Return a value in a form that can be compared."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else round(value, 6)
    return value
