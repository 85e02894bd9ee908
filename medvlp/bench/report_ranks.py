"""The ranks of a report: a critical-difference plot and its table.

Guarantee: encoders that were not shown to differ are joined by a bar, whatever their ranks; what was left out for want
of a value is named. The plot needs no colour: every encoder has its row, and bars are told apart by their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from medvlp.bench.report_data import Results, read_json
from medvlp.bench.report_scores import number
from medvlp.html.charts import WIDTH, Style, marker_path
from medvlp.html.numbers import decimal, interval

LEFT, TOP, ROW, BAR = 16, 34, 38, 11


def ranks(found: Results, looks: Mapping[str, Style]) -> dict[str, Any] | None:
    """Return the records of the section, None where no ranks were computed."""
    record = read_json(found.root / "ranks.json")
    if not isinstance(record, dict) or not record.get("encoders"):
        return None
    rows = [row for row in record["encoders"] if row["encoder"] in looks]
    joined = [names for names in record["not_told_apart"] if len(names) > 1]
    together = {
        row["encoder"]: sorted(
            {name for names in joined if row["encoder"] in names for name in names} - {row["encoder"]}
        )
        for row in rows
    }
    apart = {
        name: [row["encoder"] for row in rows if row["encoder"] not in {name, *alike}]
        for name, alike in together.items()
    }
    difference = number(record.get("critical_difference")) if str(record["test"]).startswith("Nemenyi") else None
    return {
        "rows": [
            row | {"not_told_apart": together[row["encoder"]], "told_apart": apart[row["encoder"]]} for row in rows
        ],
        "plot": plot(rows, joined, difference, looks),
        "difference": difference,
        "nemenyi": difference is not None,
        "p": number(record["friedman"].get("p")),
        "datasets": record["datasets"],
        "settings": len(record["settings"]),
        "left_out": record["left_out"],
    }


def plot(
    rows: Sequence[Mapping[str, Any]],
    joined: Sequence[Sequence[str]],
    difference: float | None,
    looks: Mapping[str, Style],
) -> Markup:
    """Draw mean ranks with intervals, a row for each encoder from the best down, and bars beside those not told apart.

    Args:
        rows: `encoder`, `rank`, `low` and `high` of each, the best first.
        joined: Encoders not told apart, a bar for each list.
        difference: Nemenyi's critical difference, drawn to scale; None draws none.
        looks: Style of each encoder.
    """
    count, right = len(rows), WIDTH - 14 - BAR * len(joined)
    top = TOP + (32 if difference is not None else 0)
    bottom = top + ROW * count
    parts = []

    def at(rank: float) -> float:
        return LEFT + (min(max(rank, 1.0), count) - 1) / max(count - 1, 1) * (right - LEFT)

    step = 1 if count <= 12 else 2
    for tick in range(1, count + 1, step):
        parts.append(f'<line class="grid" x1="{at(tick):.1f}" x2="{at(tick):.1f}" y1="{top - 4}" y2="{bottom}"/>')
        parts.append(f'<text x="{at(tick):.1f}" y="{top - 10}" text-anchor="middle">{tick}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{top - 4}" y2="{top - 4}"/>')
    parts.append(f'<text class="title" x="{LEFT}" y="12">Mean rank, 1 is best</text>')
    if difference is not None:
        parts += _critical(at(1), at(1 + difference), difference)
    for i, row in enumerate(rows):
        parts += _row(row, top + ROW * i, at, right, looks[row["encoder"]])
    places = {row["encoder"]: top + ROW * i + 25 for i, row in enumerate(rows)}
    for i, names in enumerate(joined):
        ends = [places[name] for name in names if name in places]
        x = right + BAR * (i + 1)
        parts.append(
            f'<line class="joined" x1="{x}" x2="{x}" y1="{min(ends) - 5}" y2="{max(ends) + 5}">'
            f"<title>not told apart: {escape(', '.join(names))}</title></line>"
        )
    words = [f"{row['encoder']} {decimal(row['rank'], 2)}" for row in rows]
    apart = "; ".join("not told apart: " + ", ".join(names) for names in joined) or "all were told apart"
    label = escape(f"Mean ranks, the best first: {', '.join(words)}. {apart}.")
    # every part is built in this module from numbers and escaped text
    return Markup(  # noqa: S704
        f'<svg class="chart" viewBox="0 0 {WIDTH} {bottom + 4}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def _critical(start: float, end: float, difference: float) -> list[str]:
    y = 26
    ends = "".join(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{y - 4}" y2="{y + 4}"/>' for x in (start, end))
    return [
        f'<line class="axis" x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke-width="2"/>{ends}',
        f'<text x="{start:.1f}" y="{y + 15}">critical difference {decimal(difference, 2)}</text>',
    ]


def _row(row: Mapping[str, Any], y: float, at: Any, right: float, style: Style) -> list[str]:
    name, rank = escape(row["encoder"]), float(row["rank"])
    low, high = number(row.get("low")), number(row.get("high"))
    bounds = interval(low, high, 1)
    value = f"{decimal(rank, 2)} ({bounds})" if bounds else decimal(rank, 2)
    colour = escape(style.colour)
    parts = [
        f'<text class="title" x="{LEFT}" y="{y + 14}">{name}</text>',
        f'<text x="{right}" y="{y + 14}" text-anchor="end">{value}</text>',
    ]
    if low is not None and high is not None:
        parts.append(
            f'<line x1="{at(low):.1f}" x2="{at(high):.1f}" y1="{y + 25}" y2="{y + 25}" style="stroke:{colour}" '
            f'stroke-width="2"/>'
        )
        parts += [
            f'<line x1="{at(x):.1f}" x2="{at(x):.1f}" y1="{y + 21}" y2="{y + 29}" style="stroke:{colour}" '
            f'stroke-width="1.5"/>'
            for x in (low, high)
        ]
    parts.append(
        f'<path class="mark" style="fill:{colour}" d="{marker_path(style.marker, at(rank), y + 25, 4.5)}">'
        f"<title>{name}: {value}</title></path>"
    )
    return parts
