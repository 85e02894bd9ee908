"""`medvlp explain`: heat maps of texts over radiographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medvlp.cli._common import print_table, say

EXAMPLE = 'Example: medvlp explain runs/medslip --image x.dcm --text "left pleural effusion" --out heat.png'


def explain(
    encoder: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME:FILE.")],
    image: Annotated[list[Path], typer.Option(help="Radiograph (DICOM, PNG, JPEG); once each.")],
    text: Annotated[list[str], typer.Option(help="What is looked for; once each, drawn side by side.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    values: Annotated[
        Path | None, typer.Option(help="Also write the maps on the pixels of the files, as .npz; NaN is not seen.")
    ] = None,
    scale: Annotated[
        Literal["shared", "each"], typer.Option(help="One colour scale for all panels, or one for each.")
    ] = "shared",
    pixels: Annotated[int, typer.Option(min=0, help="Longest side of a panel; 0 keeps the size of the file.")] = 768,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Show where in radiographs an encoder sees what texts say; the picture holds no name and no metadata."""
    from medvlp.infer.explain import explain as draw

    found = draw(encoder, image, text, out, values=values, scale=scale, pixels=pixels, device=device)
    rows = [
        (
            one.image,
            one.text,
            "–" if one.probability is None else one.probability,
            "no difference" if one.highest is None else f"row {one.highest[0]}, column {one.highest[1]}",
        )
        for one in found
    ]
    print_table("Evidence", ("image", "text", "probability", "most evidence at"), rows)
    say(f"The picture is in {out}" + (f", the values in {values}" if values else ""))
