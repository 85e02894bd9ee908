"""Heat maps over radiographs as one picture.

Guarantee: a colour means the same value in all panels that share a scale, and the bar shows which; where there is no
evidence the radiograph is seen as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medvlp.html.heat import laid_over, scale_of

if TYPE_CHECKING:
    from jaxtyping import Float

LEAST_SIDE = 256
"""Small images are drawn as a multiple of their size up to this many pixels, so that their text can be read."""
GAP, LINE, TEXT = 12, 20, 14
_INK, _PAPER = (20, 20, 20), (255, 255, 255)


@dataclass(frozen=True)
class Panel:
    """One image, with or without a heat map over it.

    Args:
        grey: The radiograph, 0 black to 1 white.
        heat: Evidence on its pixels; NaN where it was not seen.
        title: Above it.
        note: Under the title.
    """

    grey: Float[np.ndarray, "h w"]
    heat: Float[np.ndarray, "h w"] | None
    title: str
    note: str | None = None


def picture(
    rows: Sequence[Sequence[Panel]],
    what: str,
    scale: Literal["shared", "each"] = "shared",
    pixels: int = 768,
    notes: Sequence[str] = (),
    headings: Sequence[str] = (),
) -> Image.Image:
    """Return panels side by side, a colour bar under them (or under each) and what it measures.

    Args:
        rows: Panels, row by row; those of a row are of one size.
        what: Name of the values.
        scale: One colour scale for all panels, or one for each.
        pixels: Longest side of a panel; 0 leaves each image at its own size.
        notes: What else is to be said under them.
        headings: A line over each row, where titles would be too long for a panel.
    """
    heats = [panel.heat for row in rows for panel in row if panel.heat is not None]
    shared = scale_of(heats)
    drawn = [[_panel(panel, shared if scale == "shared" else None, what, pixels) for panel in row] for row in rows]
    blocks = [_beside(row) for row in drawn]
    if headings:
        blocks = [
            _below([_text(line, block.width), block], gap=0) for line, block in zip(headings, blocks, strict=True)
        ]
    if scale == "shared":
        blocks.append(_bar(*shared, what, min(max(block.width for block in blocks), 420)))
    said = ["more colour: more evidence", *notes]
    if any(np.isnan(heat).any() for heat in heats):
        said.append("dark: not seen by the encoder")
    width = max(block.width for block in blocks)
    return _below([*blocks, _below([_text(line, width) for line in _lines(said, width)], gap=0)])


def _panel(panel: Panel, ends: tuple[float, float] | None, what: str, pixels: int) -> Image.Image:
    times = max(1, LEAST_SIDE // max(panel.grey.shape)) if pixels else 1
    grey, heat = (None if one is None else one.repeat(times, 0).repeat(times, 1) for one in (panel.grey, panel.heat))
    assert grey is not None
    factor = min(1.0, pixels / max(grey.shape)) if pixels else 1.0
    height, width = (max(1, round(side * factor)) for side in grey.shape)
    if factor < 1:
        image = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
        grey = np.asarray(image.resize((width, height), Image.Resampling.BOX))
        if heat is not None:
            rows, columns = (
                np.minimum(((np.arange(n) + 0.5) / n * m).astype(np.intp), m - 1)
                for n, m in zip((height, width), heat.shape, strict=True)
            )
            heat = heat[np.ix_(rows, columns)]  # smooth already: no average that would spread what is not seen
    if heat is None:
        shown = Image.fromarray(np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)).convert("RGB")
        below = []
    else:
        low, high = scale_of([heat]) if ends is None else ends
        shown = Image.fromarray(laid_over(grey, heat, low, high))
        below = [_bar(low, high, what, width)] if ends is None else []
    return _below([_text(panel.title, width), _text(panel.note or "", width), shown, *below], gap=2)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(TEXT)


def _text(text: str, width: int) -> Image.Image:
    """Return a line of text, shortened where it is wider than its panel."""
    font, shown = _font(), text
    while font.getlength(shown) > width and len(shown) > 1:
        shown = f"{shown.rstrip('…')[:-1]}…"
    line = Image.new("RGB", (width, LINE), _PAPER)
    ImageDraw.Draw(line).text((0, 1), shown, fill=_INK, font=font)
    return line


def _lines(parts: Sequence[str], width: int) -> list[str]:
    """Return remarks, joined as long as they fit on a line."""
    lines: list[str] = []
    for part in parts:
        joined = f"{lines[-1]}; {part}" if lines else part
        if lines and _font().getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(part)
    return lines


def _bar(low: float, high: float, what: str, width: int) -> Image.Image:
    """Return the scale: its colours as they lie over a middle grey, with the values of its ends and its middle."""
    bar = Image.new("RGB", (width, 2 * LINE + 16), _PAPER)
    bar.paste(_text(what, width), (0, 0))
    shares = np.linspace(low, high, width)[None].repeat(12, axis=0)
    bar.paste(Image.fromarray(laid_over(np.full(shares.shape, 0.5), shares, low, high)), (0, LINE))
    draw, font = ImageDraw.Draw(bar), _font()
    for share, value in ((0.0, low), (0.5, (low + high) / 2), (1.0, high)):
        label = f"{value:.3g}"
        draw.text((share * (width - font.getlength(label)), LINE + 14), label, fill=_INK, font=font)
    return bar


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    width = sum(image.width for image in images) + GAP * (len(images) - 1)
    sheet = Image.new("RGB", (width, max(image.height for image in images)), _PAPER)
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + GAP
    return sheet


def _below(images: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    edge = GAP if gap == GAP else 0
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    sheet = Image.new("RGB", (max(image.width for image in images) + 2 * edge, height + 2 * edge), _PAPER)
    top = edge
    for image in images:
        sheet.paste(image, (edge, top))
        top += image.height + gap
    return sheet
