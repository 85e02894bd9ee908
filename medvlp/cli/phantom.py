"""`medvlp phantom`: a synthetic thorax with reports, to try every pipeline without any patient's data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import Overrides, say, say_next
from medvlp.errors import UserError

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
    layout: Annotated[
        str | None, typer.Option(help="Write the raw layout of this data set instead (`medvlp data cards` lists them).")
    ] = None,
    image_size: Annotated[int, typer.Option(min=64, max=4096, help="Pixels along each side of a radiograph.")] = 256,
    overrides: Overrides = None,
) -> None:
    """Write a phantom data set; studies that are already complete are kept.

    With --layout the same patients are written as another data set would hold them, so that its whole pipeline can be
    tried before access is granted; options.NAME=VALUE then chooses an edition, as its card says.
    """
    if layout not in (None, "phantom"):
        _write_layout(layout, out, studies, seed, size, image_size, overrides or [])
        return
    if overrides:
        raise UserError(
            f"{overrides[0]} has no effect without --layout.", "--layout", "Name a layout, or leave it out."
        )
    from medvlp.cluster import cpu_count
    from medvlp.sources.phantom.write import write_phantom

    write_phantom(
        out, studies, seed, size=size, num_workers=workers or cpu_count(), volumes=volumes, image_size=image_size
    )
    say(f"{studies} phantom studies are in {out}")
    say_next(["medvlp", "data", "prepare", "phantom", "--root", out, "--out", f"{out}-store"])


def _write_layout(
    name: str, out: Path, studies: int, seed: int, size: int, image_size: int, overrides: list[str]
) -> None:
    from medvlp.sources.phantom.layouts.write import parse_options, write_layout

    given = parse_options(overrides)
    written = write_layout(name, out, studies, seed, size=size, image_size=image_size, options=given)
    say(f"{written} studies are in {out}, as {name} holds them")
    options = [f"options.{key}={value}" for key, value in given.items()]
    say_next(["medvlp", "data", "prepare", name, "--root", out, "--out", f"{out}-store", *options])
