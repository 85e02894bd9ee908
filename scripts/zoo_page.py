"""Write the tables of docs/how-to/use-released-weights.md from the formats of the zoo."""

from __future__ import annotations

from pathlib import Path

from medvlp.config.preprocessing import StoredVideoConfig, StoredVolumeConfig
from medvlp.zoo.release import Release, read_release, release_names

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "use-released-weights.md"
MARK = "<!-- below: made by `python scripts/zoo_page.py` -->\n"


def page() -> str:
    """Return the whole page: what is written by hand, then the formats."""
    head, _, _ = PAGE.read_text(encoding="utf-8").partition(MARK)
    formats = [read_release(name) for name in release_names()]
    return "".join([head, MARK, _table(formats), *(_section(one) for one in formats)])


def _table(formats: list[Release]) -> str:
    lines = [
        "\n| name | method | backbone | size | mean / deviation | file to model | views | text |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in formats:
        norm = " / ".join(
            ", ".join(f"{value:.4g}" for value in dict.fromkeys(part)) for part in (one.input.mean, one.input.std)
        )
        text = f"with `{one.text_option}=FOLDER`" if one.text_option else "no"
        size = one.input.size if isinstance(one.input.size, int) else " x ".join(str(side) for side in one.input.size)
        cells = [f"[`{one.name}`](#{one.name})", one.title, one.image.name, str(size), norm, _road(one)]
        lines.append(f"| {' | '.join([*cells, ', '.join(one.image.views), text])} |")
    return "\n".join(lines) + "\n"


def _road(one: Release) -> str:
    """Return how a file becomes what the tower takes."""
    stored, taken = one.stored, one.input
    if isinstance(stored, StoredVolumeConfig):
        spacing = taken.spacing_mm and " x ".join(f"{mm:g}" for mm in taken.spacing_mm)
        values = ", ".join(f"{w.low:g} to {w.low + w.width:g} HU" for w in taken.windows) or "lowest to highest value"
        return f"{f'voxels of {spacing} mm' if spacing else 'stretched'}, {values}, axes {one.image.axes}"
    if isinstance(stored, StoredVideoConfig):
        return f"{stored.aspect}, {taken.frames} frames from the middle, {taken.every} apart"
    road = f"{stored.aspect}, {stored.interpolation}"
    return road + (f", centre of {stored.crop_from}" if stored.crop_from else "")


def _section(one: Release) -> str:
    lines = [f"\n### {one.name}\n", f"{one.title}. {one.paper}. From <{one.source}>: {one.file}\n"]
    lines += [f"- View `{name}`: {view.because}." for name, view in one.image.views.items()]
    lines += [f"- Left out: {rule.because}." for rule in one.ignored]
    lines += [f"- {note}" for note in one.notes]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
