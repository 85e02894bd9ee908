"""An audit as one self-contained HTML page: what was found, the pictures that prove it, and every table.

Guarantee: the page asks the network for nothing and names no machine path; pairs and candidates are shown as stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvlp.html import data_uri, render_page, write_page
from medvlp.html.private import scrub
from medvlp.store.array_store import Store
from medvlp.store.audit_report import KINDS
from medvlp.store.manifest import UNITS

if TYPE_CHECKING:
    from jaxtyping import UInt8

    from medvlp.store.audit_report import AuditReport, Table

PAIRS, CANDIDATES = 8, 12
TILE_PIXELS = 224
_NAME = re.compile(r"(?P<store>[^/]+)/(?P<image>.+) \([^()]*\)")


def write_audit_page(report: AuditReport, stores: Sequence[Path], html: Path) -> None:
    """Write the page of an audit.

    Args:
        report: What was found.
        stores: The stores that were examined, for their pictures.
        html: The page to write.

    Raises:
        UserError: The page cannot be written.
    """
    import medvlp

    opened = {Path(path).name: Store.open(path) for path in stores}
    sections = [(_anchor(table.title), table.title.split(":")[0]) for table in report.to_tables()]
    head = [("findings", "Findings")]
    pairs = list(_pairs(report, opened))
    candidates = list(_candidates(report, opened))
    if pairs:
        head.append(("pairs", "Pairs"))
    if candidates:
        head.append(("burnt-in", "Burnt-in text"))
    write_page(
        Path(html),
        render_page(
            "medvlp.store",
            "audit.html.j2",
            made_by=f"medvlp {medvlp.__version__}",
            stores=[{**row, "unit": UNITS[opened[row["store"]].kind]} for row in report.stores],
            leaks=report.has_leaks,
            findings=[finding(text) for text in report.findings],
            pairs=pairs,
            candidates=candidates,
            tables=[_table(table) for table in report.to_tables()],
            sections=[*head, *sections],
        ),
    )


def finding(text: str) -> dict[str, str]:
    """Return the kind of a sentence (leak, conflict, ...; empty where it names none) and what follows."""
    kind, _, rest = text.partition(": ")
    return {"kind": kind, "text": scrub(rest)} if kind in KINDS else {"kind": "", "text": scrub(text)}


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.split(":")[0].lower()).strip("-")


def _table(table: Table) -> dict[str, Any]:
    numeric = [
        bool(table.rows) and all(isinstance(row[at], int | float) for row in table.rows)
        for at in range(len(table.columns))
    ]
    rows = [[f"{cell:.3f}" if isinstance(cell, float) else scrub(str(cell)) for cell in row] for row in table.rows]
    return {
        "id": _anchor(table.title),
        "title": table.title,
        "columns": table.columns,
        "numeric": numeric,
        "rows": rows,
    }


def _pairs(report: AuditReport, stores: dict[str, Store]) -> Iterator[dict[str, Any]]:
    for kind, pairs in (("identical", report.identical), ("near-identical", report.near_duplicates)):
        for pair in pairs[:PAIRS]:
            sides = [_tile(pair[side], stores) for side in ("a", "b")]
            if None not in sides:
                about = f"{kind} {pair['kind']}, correlation {pair['correlation']:.3f}"
                yield {"about": about, "sides": list(zip((pair["a"], pair["b"]), sides, strict=True))}


def _tile(name: str, stores: dict[str, Store]) -> str | None:
    match = _NAME.fullmatch(name)
    store = stores.get(match["store"]) if match else None
    return None if match is None or store is None else _picture(store, match["image"])


def _picture(store: Store, image_id: str) -> str | None:
    if store.kind != "image":
        return None
    rows = store.images.loc[store.images["image_id"] == image_id, "index"].to_numpy()
    return data_uri(_small(store.read(rows[:1])[0]))


def _small(image: np.ndarray) -> UInt8[np.ndarray, "h w"]:
    from PIL import Image

    grey = image if image.dtype == np.uint8 else (image >> 8).astype(np.uint8)
    tile = Image.fromarray(grey)
    tile.thumbnail((TILE_PIXELS, TILE_PIXELS), Image.Resampling.LANCZOS)
    return np.asarray(tile)


def _candidates(report: AuditReport, stores: dict[str, Store]) -> Iterator[dict[str, Any]]:
    for row in report.burnt_in[:CANDIDATES]:
        store = stores[row["store"]]
        picture = _picture(store, row["image"])
        if picture is not None:
            boxes = [[100 * value / store.size for value in box] for box in row["boxes"]]
            yield {"name": f"{row['store']}/{row['image']}", "image": picture, "boxes": boxes}
