"""Pacemakers, ports, lines and tubes.

Guarantee: metal and plastic are added below voxel size, so a thin lead keeps its attenuation at any grid size. HU
stay within 8000, what scanners store on the extended CT scale.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from medvlp.sources.phantom.anatomy import Anatomy, Placed
from medvlp.sources.phantom.findings import Finding
from medvlp.sources.phantom.grid import path_tubes, smooth_path
from medvlp.sources.phantom.mediastinum import CARINA, airways
from medvlp.sources.phantom.patient import Patient

_MOST = 8000.0


def _front(anatomy: Anatomy, x: float, z: float) -> float:
    """Return the y of the front of the chest wall's muscle at (x, z)."""
    half_x, half_y, centre = anatomy.shape.at(np.array([z]))
    bulge = max(1 - (abs(x) / (half_x[0] + 40)) ** 2.4, 0.05) ** (1 / 2.3)
    return float(centre[0] + half_y[0] * bulge + 14)


def _pieces(a: Anatomy, f: Finding, rng: np.random.Generator) -> list[tuple[np.ndarray, float, float]]:
    """Return (path, radius in mm, HU) of the wires and tubes of a device."""
    sign = 1.0 if f.side == "right" else -1.0
    cava = [(18.0, 4.0, 74.0), (23.0, 4.0, 50.0), (24.0, 4.0, 18.0)]
    under_collar = [(sign * 92, 42.0, 88.0), (sign * 58, 40.0, 84.0), (sign * 30, 20.0, 84.0)]
    if sign < 0:
        under_collar.append((-4.0, 10.0, 76.0))
    floor = (a.domes["left"] + a.domes["right"]) / 2
    if f.kind == "pacemaker":
        pocket = (sign * 88, _front(a, 88, 62), 66.0)
        ventricle = [(20.0, 8.0, -30.0), (4.0, 22.0, floor + 22), (-34.0, 42.0, floor + 14 + 4 * f.severity)]
        leads = [smooth_path([pocket, *under_collar, *cava, *ventricle], 3.0)]
        if f.severity > 0.35:
            atrium = [(22.0, 8.0, -26.0), (26.0, 22.0, -40.0), (30.0, 30.0, -22.0)]
            leads.append(smooth_path([pocket, *under_collar, *cava, *atrium], 3.0))
        return [(lead, 1.15, 9000.0) for lead in leads] + [(lead[-4:], 1.8, 9000.0) for lead in leads]
    if f.kind == "central line":
        neck = [(sign * 26, -6.0, 168.0), (sign * 24, -4.0, 120.0), (sign * 20, 2.0, 92.0)]
        if sign < 0:
            neck.append((-2.0, 8.0, 76.0))
        return [(smooth_path([*neck, *cava[:2], (24.0, 4.0, 18.0 + rng.uniform(-16, 14))], 3.0), 1.5, 6000.0)]
    if f.kind == "picc":
        arm = [(sign * 179, -8.0, 62.0), (sign * 140, 18.0, 78.0)]
        return [
            (smooth_path([*arm, *under_collar, *cava[:2], (24.0, 4.0, 10.0 + rng.uniform(-14, 14))], 3.0), 1.1, 6000.0)
        ]
    if f.kind == "port":
        pocket = (sign * 76, _front(a, 76, 52), 52.0)
        return [(smooth_path([pocket, (sign * 70, 46.0, 92.0), *under_collar[1:], *cava], 3.0), 1.3, 6000.0)]
    if f.kind == "endotracheal tube":
        tip = CARINA[2] + 30 + rng.uniform(-8, 18)
        path = airways()["trachea"]
        path = path[path[:, 2] > tip] + np.array([1.0, 3.0, 0.0])
        return [(path, 1.4, 7000.0), (path, 4.2, 260.0)]
    if f.kind == "enteric tube":
        stomach = [(-18.0, -30.0, floor - 12), (-46.0, -6.0, floor - 34), (-62.0, 18.0, floor - 50)]
        gullet = [(-1.0, -30.0, 168.0), (-3.0, -36.0, 90.0), (-4.0, -40.0, 20.0), (-6.0, -40.0, -50.0)]
        return [(smooth_path([*gullet, *stomach], 3.0), 1.5, 6000.0)]
    half, _, centre = a.shape.at(np.array([-40.0, 20.0, 84.0]))
    drain = [
        (sign * (half[0] + 34), centre[0] + 6, -58.0), (sign * (half[0] - 4), centre[0], -38.0),
        (sign * (half[1] - 10), centre[1] - 10, 20.0),
        (sign * (half[2] - 20), centre[2] - 4, 76.0 + rng.uniform(-16, 8)),
    ]  # fmt: skip
    return [(smooth_path(drain, 3.0), 1.4, 7000.0), (smooth_path(drain, 3.0), 4.0, 240.0)]


def _generator(a: Anatomy, f: Finding) -> tuple[np.ndarray, np.ndarray]:
    """Return points and HU x mm³ of a pacemaker's or port's body."""
    sign = 1.0 if f.side == "right" else -1.0
    pacemaker = f.kind == "pacemaker"
    x0, z0, wide, tall = (88.0, 60.0, 24.0, 20.0) if pacemaker else (76.0, 48.0, 12.0, 12.0)
    u, v = np.meshgrid(np.linspace(-1, 1, 150), np.linspace(-1, 1, 150))
    inside = (np.abs(u) ** 3 + np.abs(v) ** 3 <= 1) & (pacemaker | ((u * u + v * v) > 0.2))
    u, v = u[inside], v[inside]
    x, z = sign * x0 + wide * u, z0 + tall * v
    points = np.stack([x, np.full_like(x, _front(a, x0, z0)) - 0.12 * wide * u * sign, z], axis=1)
    area = 4 * wide * tall / 150**2
    return points, np.full(len(points), area * (9.0 if pacemaker else 6.0) * (6500.0 if pacemaker else 3500.0))


def paint_device(
    a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator
) -> tuple[tuple[slice, slice, slice], Float[np.ndarray, "d h w"]]:
    """Draw a device into the volume.

    Returns:
        Its box and the HU that it added there.
    """
    points, weights = [], []
    for path, radius, hu in _pieces(a, f, rng):
        p, w = path_tubes(path, radius, 0.7)
        points.append(p)
        weights.append(w * hu)
    if f.kind in ("pacemaker", "port"):
        p, w = _generator(a, f)
        points.append(p)
        weights.append(w)
    every, mass = np.concatenate(points), np.concatenate(weights)
    box, added = a.grid.splat(every, mass / a.grid.voxel)
    part = a.hu[box]
    before = part.copy()
    np.minimum(part + added, np.maximum(part, _MOST), out=part)
    a.devices.append(Placed(box, part - before, every, mass))
    return box, added
