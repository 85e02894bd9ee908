"""Numbers as text, the same on every page: three decimals, en-dash intervals, a true minus sign.

Guarantee: what is not a finite number becomes an en dash, never `nan` or `None`.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from markupsafe import Markup

NONE = "–"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def decimal(value: float | None, digits: int = 3) -> str:
    """Return `0.813`, or `−0.042` with a minus sign, or an en dash for a missing number."""
    if value is None or not _is_number(value):
        return NONE
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign: `+0.013`, `−0.042`."""
    text = decimal(value, digits)
    return f"+{text}" if text != NONE and not text.startswith("−") and float(text) != 0 else text


def interval(low: float | None, high: float | None, digits: int = 3) -> str:
    """Return `0.784–0.842`; spaces stand around the dash where a bound is negative. A missing bound gives ''."""
    if not _is_number(low) or not _is_number(high):
        return ""
    ends = decimal(low, digits), decimal(high, digits)
    return " – ".join(ends) if any(end.startswith("−") for end in ends) else "–".join(ends)


def p_value(value: float | None) -> str:
    """Return three decimals, or `<0.001`."""
    if value is None or not _is_number(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def count(value: object) -> str:
    """Return an integer with thin spaces between thousands: `22 433`."""
    if not isinstance(value, (int, float)) or not _is_number(value):
        return NONE
    return f"{int(value):,}".replace(",", "\u202f")


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as `12.5 %`; whole numbers without decimals."""
    if value is None or not _is_number(value):
        return NONE
    text = f"{100 * value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}\u202f%"


def breakable(name: str) -> Markup:
    """Return a name in which a line may break after `_`, `:`, `@`, `/` and `-`."""
    return Markup("<wbr>").join(re.split(r"(?<=[_:@/-])", name))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers (steps of 1, 2 or 5 times a power of ten) inside [low, high]."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def tick_label(value: float, values: Sequence[float]) -> str:
    """Return the shortest text that tells the ticks apart."""
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    steps = [b - a for a, b in itertools.pairwise(values) if b > a]
    digits = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 0
    return decimal(value, digits)
