"""Phantom examinations as plain records, to be written in the raw layout of any data set.

Guarantee: example i of a seed depends on (seed, i, sizes) alone and holds what the phantom study i holds: pixels,
boxes, masks, volume and report of one patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int16, UInt8

    from medvlp.sources.phantom.study import PhantomImage, PhantomStudy


@dataclass(frozen=True, slots=True)
class ExampleBox:
    """Bounds of a finding in pixels of its image: x, y of the top-left corner, then width and height."""

    finding: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class ExampleImage:
    """One radiograph, bright is dense. `masks` are (finding, where it is), one per box of the same place."""

    pixels: UInt8[np.ndarray, "h w"]
    view: str = "PA"
    """PA, AP or LATERAL."""
    boxes: tuple[ExampleBox, ...] = ()
    masks: tuple[tuple[str, Bool[np.ndarray, "h w"]], ...] = ()
    lungs: tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]] | None = None
    """The patient's left and right lung, where they are asked for."""


@dataclass(frozen=True, slots=True)
class ExampleLesion:
    """A finding in a volume: its centre (right, anterior, superior) and diameter in mm."""

    finding: str
    centre_mm: tuple[float, float, float]
    diameter_mm: float


@dataclass(frozen=True, slots=True)
class ExampleVolume:
    """A CT volume in HU, RAS, with the affine of `medvlp.types.Volume` and a label map of named structures."""

    array: Int16[np.ndarray, "d h w"]
    affine: Float[np.ndarray, "4 4"]
    structures: UInt8[np.ndarray, "d h w"] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    """Value in `structures` -> structure."""
    lesions: tuple[ExampleLesion, ...] = ()
    findings: UInt8[np.ndarray, "d h w"] | None = None
    """Where localised findings are: 1 + the place in `medvlp.sources.phantom.findings.NAMES`."""


@dataclass(frozen=True, slots=True)
class ExampleTracing:
    """Outline of a left ventricle in one frame, as an ultrasound tracing has it: all lines are x1, y1, x2, y2."""

    frame: int
    axis: tuple[float, float, float, float]
    """The long axis."""
    chords: tuple[tuple[float, float, float, float], ...]
    """Lines across it, from one of its ends to the other."""


@dataclass(frozen=True, slots=True)
class ExampleClip:
    """Frames of an ultrasound loop (grey) or of an operation (red, green and blue, one frame a second)."""

    frames: UInt8[np.ndarray, "f h w *c"]
    fps: float
    tracings: tuple[ExampleTracing, ...] = ()
    volumes_ml: tuple[float, float] = (0.0, 0.0)
    """Of the left ventricle at the end of systole and of diastole."""
    phases: tuple[int, ...] = ()
    """Number of the phase of an operation, from 0, per frame."""
    tools: tuple[frozenset[int], ...] = ()
    """Numbers of the instruments in sight, from 0, per frame."""


@dataclass(frozen=True, slots=True)
class Example:
    """One examination of one patient.

    Args:
        number: Place in the data set, from 0; layouts make ids from it.
        patient: Number of the patient, from 0.
        visit: Number of the patient's examination, from 0.
        split: train, val or test.
        age: Years.
        sex: M or F.
        findings: Names of `medvlp.sources.phantom.findings.NAMES` that are present.
        sections: Lower-case section name -> text: findings, and perhaps impression, indication and comparison.
        images: The radiographs.
        volume: The CT volume, where one is asked for.
        clip: The clip, where one is asked for.
        labels: Labels in the data set's own names, instead of those that follow from `findings`.
    """

    number: int
    patient: int
    visit: int = 0
    split: str = "train"
    age: int = 60
    sex: str = "M"
    findings: frozenset[str] = frozenset()
    sections: Mapping[str, str] = field(default_factory=dict)
    images: tuple[ExampleImage, ...] = ()
    volume: ExampleVolume | None = None
    clip: ExampleClip | None = None
    labels: Mapping[str, float] | None = None

    @property
    def caption(self) -> str:
        """The shortest text that says it all: the impression, or the findings of a report without one."""
        return self.sections.get("impression") or self.sections["findings"]


def phantom_examples(
    studies: int, seed: int, size: int = 64, image_size: int = 256, needs: str = "radiographs"
) -> Iterator[Example]:
    """Yield the first `studies` phantom examinations of a seed.

    Args:
        studies: How many.
        seed: Seed of the data set.
        size: Voxels per axis of the volumes, from which the radiographs are projected too.
        image_size: Pixels per side of a radiograph.
        needs: What the layout needs, as `Layout.needs` says.
    """
    if needs in ("abdomen", "heart", "surgery"):
        yield from _without_thorax(studies, seed, size, needs)
        return
    from medvlp.sources.phantom.study import generate_study

    for number in range(studies):
        modality: Literal["CR", "CT"] = "CT" if needs in ("volumes", "organs") else "CR"
        yield _example(number, generate_study(seed, number, size, image_size, modality=modality), needs)


def _without_thorax(studies: int, seed: int, size: int, needs: str) -> Iterator[Example]:
    """Yield examinations of what the thorax does not show; the patients are those of the thorax."""
    from medvlp.sources.phantom import abdomen, clips
    from medvlp.sources.phantom.patient import sample_patient, visit

    for number in range(studies):
        who = visit(seed, number)
        patient = sample_patient(seed, who.patient)
        yield Example(
            number=number,
            patient=int(who.patient),
            visit=who.number,
            split=who.split,
            age=int(patient.age),
            sex=patient.sex,
            volume=abdomen.abdomen_volume(seed, number, size) if needs == "abdomen" else None,
            clip=clips.phantom_clip(seed, number, needs) if needs in ("heart", "surgery") else None,
        )


def _example(number: int, study: PhantomStudy, needs: str) -> Example:
    images = []
    for image in study.images:
        seen = [
            (finding.name, box, mask)
            for finding, box, mask in zip(study.findings, image.boxes, image.masks, strict=True)
            if box is not None
        ]
        boxes = tuple(ExampleBox(name, *map(float, box)) for name, box, _ in seen)
        masks = tuple((name, mask) for name, _, mask in seen)
        lungs = _lungs(study, image) if needs == "lungs" else None
        images.append(ExampleImage(image.pixels, image.view, boxes, masks, lungs))
    return Example(
        number=number,
        patient=int(study.visit.patient),
        visit=study.visit.number,
        split=study.visit.split,
        age=int(study.patient.age),
        sex=study.patient.sex,
        findings=frozenset(finding.name for finding in study.findings),
        sections=dict(study.report.sections),
        images=tuple(images),
        volume=_volume(study, needs == "organs") if needs in ("volumes", "organs") else None,
    )


def _lungs(study: PhantomStudy, image: PhantomImage) -> tuple[np.ndarray, np.ndarray]:
    """Return where rays of a radiograph run through the left and the right lung."""
    from medvlp.sources.phantom.anatomy import LOBES
    from medvlp.sources.phantom.project import project_mask

    depth, height, width = study.lobes.shape
    everything = (slice(0, depth), slice(0, height), slice(0, width))
    left, right = (
        project_mask(
            np.isin(study.lobes, [value for name, value in LOBES.items() if name.startswith(side)]),
            everything,
            study.grid,
            image.geometry,
            len(image.pixels),
        )
        for side in ("left", "right")
    )
    return left, right


def _volume(study: PhantomStudy, organs: bool) -> ExampleVolume:
    """Return the volume of a study with its lobes, of `organs` with the heart and every localised finding too."""
    from medvlp.sources.phantom.anatomy import LOBES
    from medvlp.sources.phantom.findings import LOCAL, NAMES

    lesions, found = [], np.zeros(study.volume.shape, np.uint8)
    for finding, mask in zip(study.findings, study.masks, strict=True):
        if finding.name not in LOCAL or not mask.inside.any():
            continue
        found[mask.box][mask.inside] = 1 + NAMES.index(finding.name)
        if not organs and finding.name not in ("nodule", "mass"):
            continue
        corner = [axis.start or 0 for axis in mask.box]
        centre = study.affine[:3] @ [*(np.argwhere(mask.inside).mean(axis=0) + corner), 1.0]
        right, anterior, superior = map(float, centre)
        size = finding.size_mm or _ball_mm(int(mask.inside.sum()), study.spacing_mm)
        lesions.append(ExampleLesion(finding.name, (right, anterior, superior), float(size)))
    names, structures = {value: name for name, value in LOBES.items()}, study.lobes
    if organs:
        heart = max(names) + 1
        names[heart] = "heart"
        structures = np.where(study.heart & (structures == 0), np.uint8(heart), structures)
    return ExampleVolume(study.volume, study.affine, structures, names, tuple(lesions), found if organs else None)


def _ball_mm(voxels: int, spacing_mm: tuple[float, float, float]) -> float:
    """Return the diameter of the ball of as many voxels."""
    return float((6 / np.pi * voxels * np.prod(spacing_mm)) ** (1 / 3))
