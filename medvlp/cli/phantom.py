"""`medvlp phantom`: a synthetic thorax with reports, to try every pipeline without any patient's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import say, say_next

app = typer.Typer(
    help="Synthetic chest studies: volumes, radiographs, masks, boxes and reports that agree.", no_args_is_help=True
)


@app.command("write", epilog="Example: medvlp phantom write --studies 64 --seed 0 --out phantom")
def write(
    out: Annotated[Path, typer.Option(help="Folder to write the raw data set into.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 64,
    seed: Annotated[int, typer.Option(min=0, help="Study i depends on this seed and i alone.")] = 0,
    size: Annotated[int, typer.Option(min=32, max=512, help="Voxels along each side of the volume.")] = 128,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 takes one per core.")] = 0,
    volumes: Annotated[bool, typer.Option(help="Write the CT volumes and masks too.")] = False,
) -> None:
    """Write a phantom data set; studies that are already complete are kept."""
    from medvlp.sources.phantom.write import write_phantom
    from medvlp.store.workers import cpu_count

    write_phantom(out, studies, seed, size=size, num_workers=workers or cpu_count(), volumes=volumes)
    say(f"{studies} phantom studies are in {out}")
    say_next(["medvlp", "data", "prepare", "phantom", "--root", out, "--out", f"{out}-store"])
