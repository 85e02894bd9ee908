"""`medvlp read-study`: a study of clips, read by retrieval from known studies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import print_table, say

EXAMPLE = "Example: medvlp read-study runs/echoprime a4c.avi plax.avi --known stores/echo --out reading.json"


def read_study(
    encoder: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME:FILE: clips and texts in one space.")],
    clips: Annotated[
        list[Path], typer.Argument(help="All clips of one study: videos (AVI, MP4, MKV) or folders of numbered frames.")
    ],
    known: Annotated[Path, typer.Option(help="Prepared store of other studies, with reports or measurements.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    split: Annotated[str, typer.Option(help="Studies of the store that are known: train, val or test.")] = "train",
    neighbours: Annotated[int, typer.Option(min=1, help="Known studies that answer a question together.")] = 50,
    view: Annotated[
        list[str] | None, typer.Option(help="View of each clip, once each in their order; with --view-weights.")
    ] = None,
    view_weights: Annotated[
        Path | None, typer.Option(help="CSV with the columns view,weight: how much a clip of each view counts.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Read a study of clips from the known studies whose texts lie nearest to it; nothing is trained."""
    from medvlp.infer.read_study import RETRIEVED
    from medvlp.infer.read_study import read_study as read

    found = read(
        encoder,
        clips,
        known,
        out,
        split=split,
        neighbours=neighbours,
        views=view or (),
        weights=view_weights,
        device=device,
    )
    rows = [
        (one.question, *("–" if value is None else value for value in (one.value, one.of_all)), one.known, one.meaning)
        for one in found.answers
    ]
    columns = ("question", "this study", "all known studies", "known answers", "meaning")
    print_table(f"Mean of the {found.neighbours} nearest of {found.known} known studies", columns, rows)
    for section, text in found.texts.items():
        say(f"{section} ({RETRIEVED}):\n{text}")
    say(f"The reading is in {out}")
