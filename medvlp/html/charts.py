"""Small charts as inline SVG: lines with bands, and histograms.

Guarantee: no file, font or script is needed; colours are CSS variables of the page, so that a chart follows light, dark
and print; every series differs by marker or dash as well as by colour; values appear when the pointer rests on a mark.
A chart is drawn 360 units wide, so that its text keeps its size both on a telephone and in a grid of cards.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from markupsafe import Markup, escape

from medvlp.html.numbers import decimal, tick_label, ticks

WIDTH, HEIGHT = 360, 290
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 42

MARKERS = ("circle", "square", "diamond", "triangle", "down", "hexagon")
DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 3", "10 4")


@dataclass(frozen=True)
class Style:
    """How a series looks everywhere on a page: a CSS colour, a dash pattern, a marker."""

    colour: str
    dash: str = ""
    marker: str = "circle"
    id: str = ""
    """Of its sample on the page, see `swatches`; a line may then take its marks from there."""


def styles(names: Sequence[str], baselines: Sequence[str]) -> dict[str, Style]:
    """Give every name its look: baselines in greys with dashes, the others in a palette safe for colour-blind readers.

    Args:
        names: All series, in the order in which colours are handed out.
        baselines: Those of `names` that are drawn in grey.
    """
    grey = [name for name in names if name in set(baselines)]
    bright = [name for name in names if name not in set(baselines)]
    looks = {
        name: Style(f"var(--series-{i % 7 + 1})", DASHES[i // 7 % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(bright)
    }
    looks |= {
        name: Style(f"var(--grey-{i % 4 + 1})", DASHES[i % 4 + 1], MARKERS[(i + 1) % len(MARKERS)])
        for i, name in enumerate(grey)
    }
    return {name: replace(look, id=f"look-{i}") for i, (name, look) in enumerate(looks.items())}


@dataclass(frozen=True)
class Series:
    """One line: points in data units, an optional band, a look, and whether its points are marked."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    points: bool = True
    band: bool = True
    """Whether the area between `low` and `high` is filled; error bars are drawn either way."""
    notes: Sequence[str] = ()
    told: bool = True
    """Whether each mark has a note; without, marks are those of the style's sample and take no space."""


@dataclass(frozen=True)
class Axis:
    """One axis: its label, range, ticks with their texts, and whether it is logarithmic."""

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False

    @classmethod
    def linear(cls, label: str, low: float, high: float, about: int = 5) -> Axis:
        """Return an axis with round ticks."""
        values = ticks(low, high, about)
        return cls(label, low, high, tuple((value, tick_label(value, values)) for value in values))

    def place(self, value: float, start: float, end: float) -> float:
        """Return the position of a value between start and end; values outside the range are clipped to it."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, 1e-12)) if self.log else value
        share = 0.5 if high <= low else min(max((at - low) / (high - low), 0.0), 1.0)
        return start + share * (end - start)


def marker_path(marker: str, x: float, y: float, r: float = 4.0) -> str:
    """Return the SVG path of a marker centred at x, y."""
    if marker == "circle":
        return f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0z"
    corners = {
        "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
        "diamond": ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
        "triangle": ((0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
        "down": ((0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
        "hexagon": ((-1.1, 0), (-0.55, -0.95), (0.55, -0.95), (1.1, 0), (0.55, 0.95), (-0.55, 0.95)),
    }[marker]
    return "M" + "L".join(f"{x + r * dx:.1f} {y + r * dy:.1f}" for dx, dy in corners) + "z"


def swatches(looks: Mapping[str, Style]) -> tuple[Markup, dict[str, Markup]]:
    """Return what a page holds once, and for each name the sample of its style: a short line with its marker."""
    drawn = [
        Markup(
            '<g id="{id}"><line x1="1" y1="6" x2="25" y2="6" style="stroke:{colour}" stroke-width="2" '
            'stroke-dasharray="{dash}"/><path d="{path}" style="fill:{colour}"/></g>'
            '<marker id="{id}-mark" viewBox="-6 -6 12 12" markerWidth="10" markerHeight="10" '
            'markerUnits="userSpaceOnUse"><path d="{mark}" style="fill:{colour}"/></marker>'
        ).format(
            id=style.id,
            colour=style.colour,
            dash=style.dash,
            path=marker_path(style.marker, 13, 6),
            mark=marker_path(style.marker, 0, 0),
        )
        for style in looks.values()
    ]
    once = Markup('<svg class="hidden" width="0" height="0" aria-hidden="true"><defs>{}</defs></svg>')
    shown = Markup('<svg class="swatch" aria-hidden="true"><use href="#{}"/></svg>')
    return once.format(Markup("").join(drawn)), {name: shown.format(style.id) for name, style in looks.items()}


def simplified(x: Sequence[float], y: Sequence[float], tolerance: float = 0.5) -> list[int]:
    """Return the places of the points that a line needs to stay within `tolerance` of all (Douglas and Peucker)."""
    points = np.column_stack([x, y])
    kept, parts = {0, len(points) - 1}, [(0, len(points) - 1)]
    while parts:
        first, last = parts.pop()
        if last - first < 2:
            continue
        step = points[last] - points[first]
        away = points[first + 1 : last] - points[first]
        length = float(np.hypot(*step))
        far = np.abs(away @ (step[1], -step[0])) / length if length else np.hypot(*away.T)
        if far.max() > tolerance:
            middle = first + 1 + int(far.argmax())
            kept.add(middle)
            parts += [(first, middle), (middle, last)]
    return sorted(kept)


def _frame(x: Axis, y: Axis) -> list[str]:
    """Grid, ticks and axis titles."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for value, text in y.ticks:
        at = y.place(value, bottom, TOP)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{escape(text)}</text>')
    for value, text in x.ticks:
        at = x.place(value, LEFT, right)
        parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{escape(text)}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (TOP + bottom) / 2
    parts.append(
        f'<text class="title" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>'
    )
    parts.append(
        f'<text class="title" x="11" y="{middle}" text-anchor="middle" transform="rotate(-90 11 {middle})">'
        f"{escape(y.label)}</text>"
    )
    return parts


def _svg(parts: Sequence[str], description: str) -> Markup:
    # every part is built in this module from numbers and escaped text
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">'
        f"{''.join(parts)}</svg>"
    )


def line_chart(series: Sequence[Series], x: Axis, y: Axis, description: str, *, diagonal: bool = False) -> Markup:
    """Draw lines with bands and markers.

    Args:
        series: The lines; the first is drawn on top.
        x: Horizontal axis.
        y: Vertical axis.
        description: What the chart shows, for readers who cannot see it.
        diagonal: Draw the line y = x (chance in a ROC plot, perfect calibration in a reliability plot).
    """
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = _frame(x, y)
    if diagonal:
        parts.append(f'<line class="reference" x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{TOP}"/>')
    for position, line in reversed(list(enumerate(series))):
        # error bars of different series stand side by side
        aside = 0.0 if line.low is None else 4.0 * (position - (len(series) - 1) / 2)
        xs = [x.place(value, LEFT, right) + aside for value in line.x]
        ys = [y.place(value, bottom, TOP) for value in line.y]
        colour = escape(line.style.colour)
        if line.band and line.low is not None and line.high is not None and len(xs) > 1:
            upper = [f"{at:.1f} {y.place(value, bottom, TOP):.1f}" for at, value in zip(xs, line.high, strict=True)]
            lower = [f"{at:.1f} {y.place(value, bottom, TOP):.1f}" for at, value in zip(xs, line.low, strict=True)]
            parts.append(f'<path class="band" style="fill:{colour}" d="M{"L".join(upper + lower[::-1])}z"/>')
        path = (
            "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs, ys, strict=True)) if line.points else _short(xs, ys)
        )
        marked = bool(line.points and not line.told and line.style.id and line.low is None)
        marks = f";marker:url(#{escape(line.style.id)}-mark)" if marked else ""
        dash = f' stroke-dasharray="{line.style.dash}"' if line.style.dash else ""
        parts.append(
            f'<path class="line" style="stroke:{colour}{marks}"{dash} d="{path}">'
            f"<title>{escape(line.name)}</title></path>"
            if len(xs) > 1
            else ""
        )
        if not line.points or marked:
            continue
        for i, (a, b) in enumerate(zip(xs, ys, strict=True)):
            if line.low is not None and line.high is not None:
                top, low = (y.place(bound[i], bottom, TOP) for bound in (line.high, line.low))
                ends = f'x1="{a:.1f}" x2="{a:.1f}" y1="{top:.1f}" y2="{low:.1f}"'
                parts.append(f'<line style="stroke:{colour}" stroke-width="1.5" {ends}/>')
            note = line.notes[i] if i < len(line.notes) else decimal(line.y[i])
            parts.append(
                f'<path class="mark" style="fill:{colour}" d="{marker_path(line.style.marker, a, b)}">'
                f"<title>{escape(line.name)}: {escape(note)}</title></path>"
            )
    return _svg(parts, description)


def _short(xs: Sequence[float], ys: Sequence[float]) -> str:
    """Return the path through the points that a line needs, as steps from one to the next."""
    at = [(round(10 * xs[i]), round(10 * ys[i])) for i in simplified(xs, ys)]
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(at)]
    words = [f"{dx / 10:g}{'' if dy < 0 else ' '}{dy / 10:g}" for dx, dy in steps]
    return f"M{at[0][0] / 10:g} {at[0][1] / 10:g}l" + " ".join(words).replace(" -", "-")


def histogram(counts: Sequence[float], edges: Sequence[float], x_label: str, y_label: str, description: str) -> Markup:
    """Draw counts `[n]` between edges `[n + 1]` as bars."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    x = Axis.linear(x_label, edges[0], edges[-1] if edges[-1] > edges[0] else edges[0] + 1)
    y = Axis.linear(y_label, 0, max([*counts, 1e-9]) * 1.05, 4)
    parts = _frame(x, y)
    for value, (low, high) in zip(counts, itertools.pairwise(edges), strict=True):
        left, end, top = x.place(low, LEFT, right), x.place(high, LEFT, right), y.place(value, bottom, TOP)
        amount = f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
        place = f'x="{left + 0.5:.1f}" y="{top:.1f}" width="{max(end - left - 1, 0.5):.1f}" height="{bottom - top:.1f}"'
        parts.append(f'<rect class="bar" {place}><title>{low:g} to {high:g}: {amount}</title></rect>')
    return _svg(parts, description)
