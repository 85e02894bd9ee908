"""Painting of findings into the volume, each with its 3D mask.

Guarantee: every finding of a study is in the volume, and its mask says where. Shape and place come from the stream of
the finding's key, so that a follow-up shows the same lesion.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medvlp.sources.phantom.anatomy import HILUM, LOBES, Anatomy, Changes
from medvlp.sources.phantom.body import SIDE_SIGN
from medvlp.sources.phantom.devices import paint_device
from medvlp.sources.phantom.diffuse import paint_edema, paint_emphysema, paint_fibrosis
from medvlp.sources.phantom.findings import Finding
from medvlp.sources.phantom.grid import coarse_noise, mix, path_tubes, soft
from medvlp.sources.phantom.masks import Mask, Slices, ball, both_lungs
from medvlp.sources.phantom.patient import Patient
from medvlp.sources.phantom.skeleton import Break, rib_path


def changes_of(findings: list[Finding]) -> Changes:
    """Return what the findings do to the healthy shape, before anything is painted."""
    heart, flatten, vessels = 1.0, 0.0, 1.0
    breaks = []
    for finding in findings:
        s = finding.severity
        if finding.name == "cardiomegaly":
            heart = 1.13 + 0.27 * s
        elif finding.name == "emphysema":
            flatten = 7 + 16 * s
            vessels *= 0.86 - 0.22 * s
        elif finding.name == "edema":
            vessels *= 1.1 + 0.18 * s
        elif finding.name == "fracture":
            healed = finding.kind == "healed"
            shift = (2 if healed else 5) + (3 if healed else 8) * s
            breaks.append(
                Break(finding.side or "", finding.rib or 0, finding.angle or 0.0, shift, 1.0 if healed else 0.0)
            )
    return Changes(heart, flatten, vessels, tuple(breaks))


def paint(
    anatomy: Anatomy, patient: Patient, findings: list[Finding], stream_of: Callable[[int], np.random.Generator]
) -> list[Mask]:
    """Paint all findings into `anatomy.hu`; return their masks in the order of `findings`.

    Args:
        anatomy: The thorax built with `changes_of(findings)`; its volume is changed in place.
        patient: Whose thorax it is.
        findings: What to paint.
        stream_of: Returns the random stream of a finding's key.
    """
    masks: dict[int, Mask] = {}
    order = ("emphysema", "fibrosis", "edema", "consolidation", "atelectasis", "nodule", "mass", "effusion",
             "pneumothorax", "cardiomegaly", "fracture", "device")  # fmt: skip
    for number in sorted(range(len(findings)), key=lambda k: order.index(findings[k].name)):
        finding = findings[number]
        painter = _PAINTERS[finding.name]
        masks[number] = painter(anatomy, patient, finding, stream_of(finding.key)).cropped()
    return [masks[number] for number in range(len(findings))]


def _side(anatomy: Anatomy, side: str) -> Slices:
    everything = slice(0, anatomy.grid.size)
    return everything, everything, anatomy.sides[side]


def _effusion(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    side = f.side or "right"
    box, lung = _side(a, side), a.lung[side]
    x, y, z = a.grid.local(box)
    bottom = a.domes[side] - 42
    level = bottom + 10 + 112 * f.severity**1.2
    rise = 30 * np.clip((np.abs(x) - 50) / 78, 0, 1.2) ** 2.2 + 16 * np.clip((-y - 20) / 80, 0, 1) ** 2
    share = soft((level + rise - z).astype(np.float32), 4.0) * lung
    mix(a.hu[box], share, 14.0)
    return Mask(box, share > 0.5)


def _pneumothorax(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    side = f.side or "right"
    box, lung = _side(a, side), a.lung[side]
    x, y, z = a.grid.local(box)
    reach = np.clip((z + 40 + 90 * f.severity) / 110, 0.0, 1.0)
    thick = (9 + 48 * f.severity**1.3) * reach * (1 - 0.12 * np.clip(np.abs(y) / 80, 0, 1))
    # The distance from the side wall follows its curve from back to front, and runs smoothly into that from the apex.
    round_y = np.clip(1 - (np.abs(y - a.shape.centre_y) / a.shape.wall_y) ** 2.3, 0, 1) ** 0.4
    beside = 0.9 * (a.shape.wall_x * round_y - np.abs(x))
    above = 0.8 * (a.apex - z - 20 * ((np.abs(x) - 56) / 45) ** 2)
    edge = -7 * np.logaddexp(-beside / 7, -above / 7)
    gap = (thick - edge).astype(np.float32)
    free = soft(gap, 2.5) * (lung > 0.3)
    line = np.clip(1 - np.abs(gap + 1.5) / 2.4, 0, 1) * (lung > 0.5) * (thick > 4)
    down = soft(-gap, 4.0) * lung * np.float32(35 + 110 * f.severity)
    part = a.hu[box]
    solid = part > -300
    part += np.where(solid & (free < 0.5), 0, down)
    mix(part, (free * np.clip(lung * 1.5, 0, 1)).astype(np.float32), -1000.0)
    mix(part, (0.75 * line).astype(np.float32), 0.0)
    return Mask(box, ((free > 0.5) | (line > 0.3)) & (lung > 0.3))


def _place(a: Anatomy, f: Finding, rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    """Choose a point (template x, y, z) in the lobe, between two distances from the pleura."""
    number = LOBES[f.lobe or ""]
    inside = a.lobes == number
    good = np.flatnonzero(inside & (a.depth > low) & (a.depth < high))
    if len(good) == 0:
        good = np.flatnonzero(inside)
    # Rank by a random direction: the choice hardly moves when the breath of a follow-up moves the lobe.
    at = np.array(np.unravel_index(good, inside.shape)).T[:, ::-1] * a.grid.step + a.grid.first
    direction = rng.normal(size=3) / np.array([30.0, 40.0, 30.0])
    rank = np.argsort(at @ direction)
    return at[rank[int(rng.uniform(0.1, 0.9) * len(rank))]]


def _share(a: Anatomy, box: Slices) -> np.ndarray:
    return both_lungs(a)[box]


def _consolidation(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    centre = _place(a, f, rng, 6, 40)
    radius = 28 + 34 * f.severity
    box, (x, y, z) = ball(a, centre, radius * 1.3)
    shape = a.hu[box].shape
    r = np.sqrt((x * x + y * y) + z * z) / radius
    noise = coarse_noise(rng, shape, (6, 6, 6))
    level = np.clip((1.0 - r + 0.16 * noise) * 3.0, 0, 1) * (0.84 + 0.16 * f.severity)
    lobe = a.lobes[box] == LOBES[f.lobe or ""]
    share = (level * lobe * _share(a, box)).astype(np.float32)
    part = a.hu[box]
    part += share * (np.maximum(part, 25.0) - part)
    return Mask(box, share > 0.25)


def _atelectasis(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    side = f.side or "right"
    sign = SIDE_SIGN[side]
    lobe = LOBES[f.lobe or ""]
    if f.kind == "lobar":
        box, lung = _side(a, side), a.lung[side]
        x, y, z = a.grid.local(box)
        hilum = HILUM[side]
        wide = 22 + 26 * f.severity
        if lobe in (3, 5):
            inside = np.minimum(wide * np.clip((hilum[2] + 8 - z) / 80, 0, 1.1) + 16 - np.abs(x), 14 - y)
        elif lobe in (1, 4):
            inside = np.minimum(wide * 1.7 * np.clip((z + 2) / 70, 0, 1.2) + 8 - np.abs(x), z + 4)
        else:
            inside = np.minimum((14 + 14 * f.severity) - np.abs(z + 30 + 0.4 * (y - 20)), 80 - np.abs(x))
        share = soft(inside.astype(np.float32), 5.0) * lung * (a.lobes[box] == lobe)
        mix(a.hu[box], share.astype(np.float32), 35.0)
        return Mask(box, share > 0.5)
    target = _place(a, f, rng, 10, 30)
    target[2] = max(a.domes[side] + 16 + 14 * rng.random(), target[2] * 0.4 + (a.domes[side] + 20) * 0.6)
    length = 34 + 34 * f.severity
    half = 2.2 + 2.6 * f.severity
    tilt_x, tilt_y = rng.normal(-0.16 * sign, 0.16), rng.normal(0, 0.12)
    bands = int(rng.integers(1, 3))
    reach = np.array([length, 34, 34])
    box = a.grid.box(target - reach, target + reach)
    x, y, z = a.grid.local(box)
    across = 1 - ((x - target[0]) / length) ** 2 - ((y - target[1]) / 32) ** 2
    share = np.zeros(a.hu[box].shape, np.float32)
    for band in range(bands):
        sheet = target[2] + 13 * band + tilt_x * (1 - 1.4 * band) * (x - target[0]) + tilt_y * (y - target[1])
        inside = np.minimum(half * np.sqrt(np.clip(across, 0, 1)) * 1.6 - np.abs(z - sheet), across * 40)
        np.maximum(share, soft(inside.astype(np.float32), 2.8), out=share)
    share *= _share(a, box)
    share[:, :, np.sign(x).ravel() != sign] = 0
    mix(a.hu[box], share, 30.0)
    return Mask(box, share > 0.35)


def _cardiomegaly(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    return Mask((slice(0, a.grid.size),) * 3, a.heart > 0.5)


def _nodule(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    radius = (f.size_mm or 10.0) / 2
    centre = _place(a, f, rng, radius + 3, radius + 30)
    box, (x, y, z) = ball(a, centre, radius * 1.4 + 3)
    lumps = [1 - ((x * x + y * y) + z * z) / radius**2]
    for _ in range(3):
        off = rng.normal(size=3)
        off *= 0.45 * radius / np.linalg.norm(off)
        lumps.append(1 - (((x - off[0]) ** 2 + (y - off[1]) ** 2) + (z - off[2]) ** 2) / (0.72 * radius) ** 2)
    level = np.max(np.stack(np.broadcast_arrays(*lumps)), axis=0) * radius / 2
    share = soft(level.astype(np.float32), 2.6) * (a.depth[box] > 0)
    mix(a.hu[box], share, 420.0 if f.kind == "calcified" else 45.0)
    return Mask(box, share > 0.4)


def _mass(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    radius = (f.size_mm or 40.0) / 2
    centre = _place(a, f, rng, 8, max(radius * 0.9, 14))
    box, (x, y, z) = ball(a, centre, radius * 1.7)
    share = np.zeros(a.hu[box].shape, np.float32)
    for _ in range(6):
        off = rng.normal(size=3)
        off *= rng.uniform(0.1, 0.5) * radius / np.linalg.norm(off)
        r = np.sqrt(((x - off[0]) ** 2 + (y - off[1]) ** 2) + (z - off[2]) ** 2)
        lump = rng.uniform(0.58, 0.85) * radius - r
        np.maximum(share, soft(lump.astype(np.float32), 3.5), out=share)
    spikes = rng.normal(size=(14, 3))
    spikes /= np.linalg.norm(spikes, axis=1, keepdims=True)
    for spike in spikes:
        away = spike * radius * rng.uniform(1.15, 1.5) / np.array(a.grid.scale)
        points, weights = path_tubes(np.array([centre, centre + away]), np.array([2.2, 0.8]), 1.8)
        spot, added = a.grid.splat(points, weights / a.grid.voxel)
        local = tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(spot, box, strict=True))
        part = share[local]
        if part.shape == added.shape:
            np.maximum(part, np.minimum(added, 1), out=part)
    share *= _share(a, box)
    part = a.hu[box]
    part += share * (np.maximum(part, 42.0) - part)
    return Mask(box, share > 0.4)


def _fracture(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    angles = np.linspace((f.angle or 60) - 11, (f.angle or 60) + 13, 30)
    path = rib_path(f.side or "right", f.rib or 6, patient, a.shape, angles)
    points, weights = path_tubes(path, 10.0, 2.6)
    box, share = a.grid.splat(points, weights / a.grid.voxel)
    return Mask(box, share > 0.4)


def _device(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    box, added = paint_device(a, patient, f, rng)
    return Mask(box, added > 120)


_PAINTERS = {
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "consolidation": _consolidation,
    "atelectasis": _atelectasis,
    "cardiomegaly": _cardiomegaly,
    "edema": paint_edema,
    "nodule": _nodule,
    "mass": _mass,
    "emphysema": paint_emphysema,
    "fibrosis": paint_fibrosis,
    "fracture": _fracture,
    "device": _device,
}
