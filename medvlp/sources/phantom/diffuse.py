"""Findings of both lungs at once: edema, emphysema, fibrosis.

Guarantee: each painter changes the volume in place and returns where; shape and place come from the stream given.
"""

from __future__ import annotations

import numpy as np

from medvlp.sources.phantom.anatomy import HILUM, Anatomy
from medvlp.sources.phantom.body import SIDE_SIGN
from medvlp.sources.phantom.findings import Finding
from medvlp.sources.phantom.grid import coarse_noise, mix, soft, tubes
from medvlp.sources.phantom.masks import Mask, ball, both_lungs
from medvlp.sources.phantom.patient import Patient


def paint_edema(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    """Draw haze around the hila and septal lines at the walls; return their mask."""
    everything = (slice(0, a.grid.size),) * 3
    lung = both_lungs(a)
    x, y, z = a.grid.x, a.grid.y, a.grid.z
    near = np.zeros_like(a.hu)
    for hilum in HILUM.values():
        flat = ((x - hilum[0]) / 52) ** 2 + ((y - hilum[1]) / 60) ** 2
        np.maximum(near, np.exp(-flat.astype(np.float32)) * np.exp(-(((z - hilum[2] + 18) / 62) ** 2)), out=near)
    noise = coarse_noise(rng, a.hu.shape, (26, 26, 26))
    haze = (60 + 110 * f.severity + (150 + 400 * f.severity) * near * np.clip(1 + 0.45 * noise, 0, 2)).astype(
        np.float32
    )
    haze *= lung
    room = np.clip((20 - a.hu) / 860, 0, 1)
    a.hu += haze * room
    starts, stops = [], []
    for sign in (1.0, -1.0):
        for _ in range(int(10 + 22 * f.severity)):
            height = rng.uniform(-105, -30)
            half, _, centre = a.shape.at(np.array([height]))
            depth = rng.uniform(-30, 45)
            wall = half[0] * (1 - (abs(depth - centre[0]) / 95) ** 2.3) ** 0.4
            starts.append((sign * (wall - 1), depth, height))
            stops.append((sign * (wall - rng.uniform(9, 18)), depth, height + rng.uniform(-2, 2)))
    points, weights = tubes(np.array(starts), np.array(stops), np.full(len(starts), 1.1 + 0.4 * f.severity), 1.6)
    box, share = a.grid.splat(points, weights / a.grid.voxel)
    mix(a.hu[box], np.minimum(share, 1) * lung[box], 20.0)
    return Mask(everything, (haze > 40) & (lung > 0.5))


def paint_emphysema(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    """Draw thin lung with holes and bullae; return their mask."""
    lung = both_lungs(a)
    upper = np.clip(0.55 + 0.45 * (a.grid.z / 80), 0.3, 1.0)
    holes = np.clip(coarse_noise(rng, a.hu.shape, (30, 30, 30)) * 0.5 + 0.6, 0, 1.2)
    drop = (lung * upper * (50 + 75 * f.severity)).astype(np.float32) * holes
    a.hu -= np.where(a.hu < -500, np.minimum(drop, np.maximum(a.hu + 992, 0)), 0)
    mask = (drop > 12) & (lung > 0.5)
    for _ in range(int(rng.integers(1, 4)) + int(3 * f.severity)):
        side = "right" if rng.random() < 0.5 else "left"
        radius = rng.uniform(9, 13 + 14 * f.severity)
        centre = np.array([SIDE_SIGN[side] * rng.uniform(50, 78), rng.uniform(-40, 15), rng.uniform(45, 92)])
        box, (x, y, z) = ball(a, centre, radius + 5)
        r = np.sqrt((x * x + y * y) + z * z).astype(np.float32)
        inside = soft(radius - r, 2.5) * lung[box]
        mix(a.hu[box], inside, -985.0)
        wall = np.clip(1 - np.abs(r - radius) / 1.8, 0, 1) * (lung[box] > 0.5)
        a.hu[box] += wall * 330
        mask[box] |= inside > 0.5
    return Mask((slice(0, a.grid.size),) * 3, mask)


def paint_fibrosis(a: Anatomy, patient: Patient, f: Finding, rng: np.random.Generator) -> Mask:
    """Draw a net under the pleura, most below; return its mask."""
    lung = both_lungs(a)
    edge = np.clip(1 - a.depth / (20 + 30 * f.severity), 0, 1)
    low = np.clip((10 + 55 * f.severity - a.grid.z) / 90, 0.0, 1)
    where = np.clip(1.6 * edge * low, 0, 1) * lung
    net = np.zeros_like(a.hu)
    for _ in range(2):
        noise = coarse_noise(rng, a.hu.shape, (38, 30, 38))
        np.abs(noise, out=noise)
        np.maximum(net, np.clip(1 - noise * 2.4, 0, 1), out=net)
    added = where * (70 + (380 + 330 * f.severity) * net)
    a.hu += added * np.clip((40 - a.hu) / 880, 0, 1)
    return Mask((slice(0, a.grid.size),) * 3, (where > 0.12) & (lung > 0.5))
