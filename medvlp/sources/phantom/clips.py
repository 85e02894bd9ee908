"""Synthetic clips: a beating left ventricle as ultrasound shows it, and an operation in red with instruments.

Guarantee: a clip depends on (seed, number, kind) alone. The tracings of a ventricle lie on the ellipse that is drawn,
and its volumes are those of that ellipse turned about its long axis.
"""

from __future__ import annotations

import math

import numpy as np

from medvlp.sources.phantom.examples import ExampleClip, ExampleTracing
from medvlp.sources.phantom.patient import stream

CHORDS = 20
PHASES, TOOLS = 7, 7
"""Phases and instruments of an operation."""
_PIXEL_MM = 1.2


def phantom_clip(seed: int, number: int, kind: str) -> ExampleClip:
    """Make the clip of examination `number`: `heart` (112² grey, 50 a second) or `surgery` (RGB, one a second)."""
    rng = stream(seed, f"clip {kind}", number)
    return heart_clip(rng, frames=24, size=112) if kind == "heart" else surgery_clip(rng, frames=12, size=96)


def heart_clip(rng: np.random.Generator, frames: int, size: int) -> ExampleClip:
    """Make a loop of one beat with the outlines at the end of diastole and of systole.

    Args:
        rng: Decides size, ejection and noise.
        frames: Number of frames, 4 or more.
        size: Pixels per side.
    """
    x, y, tilt = size * rng.uniform(0.45, 0.55), size * rng.uniform(0.4, 0.5), rng.uniform(-0.2, 0.2)
    long_axis, short_axis, squeeze = (
        size * rng.uniform(0.26, 0.32),
        size * rng.uniform(0.14, 0.18),
        rng.uniform(0.2, 0.5),
    )
    diastole, systole = 1, 1 + frames // 2
    widths = [
        short_axis * (1 - squeeze * (1 - math.cos(2 * math.pi * (f - diastole) / frames)) / 2) for f in range(frames)
    ]
    rows, columns = np.mgrid[:size, :size]
    along = (columns - x) * math.sin(tilt) + (rows - y) * math.cos(tilt)
    across = (columns - x) * math.cos(tilt) - (rows - y) * math.sin(tilt)
    pixels = np.empty((frames, size, size), np.uint8)
    for frame, width in enumerate(widths):
        distance = np.hypot(along / long_axis, across / width)
        grey = np.where(distance < 1, 15, np.where(distance < 1.45, 150, 70))
        pixels[frame] = np.clip(grey * rng.gamma(8, 1 / 8, grey.shape), 0, 255)
    tracings = tuple(_tracing(frame, (x, y), tilt, long_axis, widths[frame]) for frame in (diastole, systole))
    mm = _PIXEL_MM * 112 / size
    volumes = [4 / 3 * math.pi * long_axis * widths[frame] ** 2 * mm**3 / 1000 for frame in (systole, diastole)]
    return ExampleClip(pixels, 50.0, tracings, (volumes[0], volumes[1]))


def _tracing(frame: int, centre: tuple[float, float], tilt: float, long_axis: float, width: float) -> ExampleTracing:
    """Return the long axis and the chords across an ellipse, none of them at its very ends."""

    def point(along: float, across: float) -> tuple[float, float]:
        x = centre[0] + along * math.sin(tilt) + across * math.cos(tilt)
        y = centre[1] + along * math.cos(tilt) - across * math.sin(tilt)
        return round(x, 4), round(y, 4)

    chords = []
    for step in range(CHORDS):
        along = long_axis * (2 * (step + 0.5) / CHORDS - 1)
        half = width * math.sqrt(1 - (along / long_axis) ** 2)
        chords.append((*point(along, -half), *point(along, half)))
    return ExampleTracing(frame, (*point(-long_axis, 0), *point(long_axis, 0)), tuple(chords))


def surgery_clip(rng: np.random.Generator, frames: int, size: int) -> ExampleClip:
    """Make an operation: red tissue whose shade tells the phase, a grey shaft for every instrument in sight.

    Args:
        rng: Decides phases, instruments and noise.
        frames: Number of frames, one a second.
        size: Pixels per side.
    """
    phases = tuple(sorted(rng.integers(0, PHASES, frames).tolist()))
    tools = tuple(frozenset(np.flatnonzero(rng.random(TOOLS) < 0.25).tolist()) for _ in range(frames))
    pixels = np.empty((frames, size, size, 3), np.uint8)
    for frame, (phase, seen) in enumerate(zip(phases, tools, strict=True)):
        tissue = np.array([170, 40 + 18 * phase, 50])
        pixels[frame] = np.clip(tissue + rng.normal(0, 9, (size, size, 1)), 0, 255)
        for tool in seen:
            left = size * (tool + 1) // (TOOLS + 2)
            pixels[frame, size // 3 :, left : left + max(size // 24, 1)] = 140 + 12 * tool
    return ExampleClip(pixels, 1.0, phases=phases, tools=tools)
