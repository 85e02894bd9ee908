"""One study in memory: volume, masks, radiographs, report and truth of one patient, all from (seed, index).

Guarantee: `generate_study` is a pure function; two calls with the same arguments give the same bytes, in any process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int16, UInt8

from medvlp.sources.phantom.anatomy import Anatomy, build
from medvlp.sources.phantom.findings import Finding, sample_findings, sickness
from medvlp.sources.phantom.grid import Grid
from medvlp.sources.phantom.lesions import Mask, changes_of, paint
from medvlp.sources.phantom.patient import Patient, Posture, Visit, sample_patient, sample_posture, stream, visit
from medvlp.sources.phantom.project import (
    View,
    Wires,
    arms_away,
    attenuation,
    bounding_box,
    expose,
    line_integral,
    pixel_mm,
    project_mask,
    sample_exposure,
    views_of,
    wire_integral,
)
from medvlp.sources.phantom.reports import Report, write_report
from medvlp.sources.phantom.wording import RADIOGRAPH
from medvlp.sources.phantom.wording_ct import CT
from medvlp.types import Triplet


@dataclass(frozen=True)
class PhantomImage:
    """One radiograph of a study.

    Args:
        view: PA, AP or LATERAL.
        pixels: 8-bit image, bright is dense.
        integral: Line integrals of attenuation it was made from, before scatter, blur and noise.
        spacing_mm: Pixel distance on the detector.
        masks: For each finding of the study its projected mask.
        boxes: For each finding x, y, width, height of its projected mask in pixels; None where nothing is seen.
        geometry: How the exposure was made.
    """

    view: str
    pixels: UInt8[np.ndarray, "h w"]
    integral: Float[np.ndarray, "h w"]
    spacing_mm: float
    masks: tuple[Bool[np.ndarray, "h w"], ...]
    boxes: tuple[tuple[int, int, int, int] | None, ...]
    geometry: View


@dataclass(frozen=True)
class PhantomStudy:
    """One examination of a phantom patient.

    `volume` is `[d h w]` in HU and RAS (d superior, h anterior, w right); `affine` maps the array index (d, h, w, 1) to
    (right, anterior, superior, 1) in mm; `spacing_mm` is along (d, h, w).
    """

    visit: Visit
    patient: Patient
    posture: Posture
    findings: tuple[Finding, ...]
    volume: Int16[np.ndarray, "d h w"]
    affine: Float[np.ndarray, "4 4"]
    spacing_mm: tuple[float, float, float]
    masks: tuple[Mask, ...]
    lobes: UInt8[np.ndarray, "d h w"]
    heart: Bool[np.ndarray, "d h w"]
    images: tuple[PhantomImage, ...]
    report: Report
    grid: Grid = field(repr=False)

    @property
    def triplets(self) -> tuple[Triplet, ...]:
        """What the report states, finding by place."""
        return self.report.triplets

    @property
    def labels(self) -> dict[str, float]:
        """What is in the patient: 1 or 0 for every label of the card."""
        return self.report.image_labels


def _flat(mask: Mask, away: np.ndarray | None, grid: Grid, view: View, size: int) -> Bool[np.ndarray, "h w"]:
    inside = mask.inside
    if away is not None:
        inside = inside & (away[mask.box[0], :, mask.box[2]] > 0.5)
    return project_mask(inside, mask.box, grid, view, size)


def generate_study(
    seed: int,
    index: int,
    size: int = 128,
    image_size: int = 256,
    findings: Sequence[Finding] | None = None,
    noise: bool = True,
    modality: Literal["CR", "CT"] = "CR",
) -> PhantomStudy:
    """Make study `index` of the data set `seed`.

    Args:
        seed: Seed of the data set.
        index: Number of the study; its patient follows from it.
        size: Voxels per axis of the volume.
        image_size: Pixels per side of a radiograph.
        findings: Findings instead of the drawn ones, in the same patient, posture and exposure.
        noise: Quantum noise in the radiographs.
        modality: What the report is of; of a CT there are no radiographs.
    """
    who = visit(seed, index)
    patient = sample_patient(seed, who.patient)
    drawn, before = sample_findings(seed, who.patient, patient, who.number)
    posture = sample_posture(seed, index, sickness(drawn))
    chosen = list(drawn if findings is None else findings)
    grid = Grid(size, patient.scale)
    anatomy = build(
        grid, patient, posture, changes_of(chosen), stream(seed, "tissue", who.patient), stream(seed, "gas", index)
    )
    masks = paint(anatomy, patient, chosen, lambda key: stream(seed, "lesion", who.patient, key))
    images = [] if modality == "CT" else _radiographs(seed, index, patient, posture, anatomy, masks, image_size, noise)
    wording = CT if modality == "CT" else RADIOGRAPH
    report = write_report(seed, who, patient, posture, chosen, before if findings is None else [], wording)
    volume = np.rint(anatomy.hu).astype(np.int16)
    return PhantomStudy(
        who, patient, posture, tuple(chosen), volume, grid.affine, grid.spacing_mm, tuple(masks), anatomy.lobes,
        anatomy.heart > 0.5, tuple(images), report, grid,
    )  # fmt: skip


def _radiographs(
    seed: int, index: int, patient: Patient, posture: Posture, anatomy: Anatomy, masks: list[Mask], image_size: int,
    noise: bool,
) -> list[PhantomImage]:  # fmt: skip
    grid = anatomy.grid
    # Devices are thinner than voxels: the volume is projected without them, and they from their own points.
    bare = anatomy.hu.copy()
    for placed in anatomy.devices:
        bare[placed.box] -= placed.added
    wires = [Wires(placed.points, placed.weights) for placed in anatomy.devices]
    mu = attenuation(bare)
    images = []
    for view in views_of(posture):
        rng = stream(seed, "exposure", index, view.name)
        exposure = sample_exposure(view, patient, grid, rng, image_size)
        away = arms_away(grid) if view.name == "LATERAL" else None
        integral = line_integral(mu if away is None else mu * away, grid, view, image_size)
        for wire in wires:
            integral += wire_integral(wire, grid, view, image_size)
        pixel = pixel_mm(grid, view, image_size)
        pixels = expose(integral, exposure, pixel, view, rng if noise else None)
        flat = tuple(_flat(mask, away, grid, view, image_size) for mask in masks)
        boxes = tuple(bounding_box(mask) for mask in flat)
        images.append(PhantomImage(view.name, pixels, integral, pixel, flat, boxes, view))
    return images
