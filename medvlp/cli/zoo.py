"""`medvlp zoo`: released checkpoints of others, what they are and whether a file is one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medvlp.cli._common import print_table, say, say_next

app = typer.Typer(help="Released checkpoints of others: list the known formats, check a file.", no_args_is_help=True)


@app.command("list", epilog="Example: medvlp zoo list")
def list_formats() -> None:
    """Print the checkpoint formats that load as `zoo:NAME:FILE`."""
    from medvlp.zoo.release import read_release, release_names

    rows = []
    for name in release_names():
        release = read_release(name)
        views = ", ".join(release.image.views)
        text = f"with {release.text_option}=FOLDER" if release.text_option else "no"
        size = release.input.size
        shown = size if isinstance(size, int) else " x ".join(str(side) for side in size)
        rows.append([name, release.title, release.image.name, shown, views, text, release.file])
    print_table("Released checkpoints", ["name", "method", "backbone", "size", "views", "text", "file"], rows)
    say_next(["medvlp", "zoo", "check", "NAME", "FILE"])


@app.command("check", epilog="Example: medvlp zoo check mgca_vit vit_base.ckpt")
def check(
    name: Annotated[str, typer.Argument(help="A format of `medvlp zoo list`, or a YAML file of the same form.")],
    file: Annotated[Path, typer.Argument(help="The checkpoint, or a folder with model.safetensors.")],
) -> None:
    """Account for every tensor of a file; one that is missing, left over or of another shape is an error."""
    from medvlp.zoo.release import read_release
    from medvlp.zoo.released import load_released

    release = read_release(name)
    model, plan = load_released(release, file)
    rows = [[line.fate, line.count, line.names, line.detail] for line in plan.lines]
    print_table(
        f"{release.title}: {file.name}", ["fate", "tensors", "names in the file", "our part, or the reason"], rows
    )
    counts = ", ".join(f"{count} {fate}" for fate, count in sorted(plan.counts.items()) if count)
    say(f"Every tensor is explained: {counts}.")
    grid = getattr(getattr(model.image.backbone, "patch_embed", None), "grid_size", None)
    if grid is not None and hasattr(model.image.backbone, "pos_embed"):
        patches = " x ".join(str(side) for side in grid)
        say(f"The position table is that of {patches} patches; ?size= behind the file resizes it.")
    say_next(["medvlp", "embed", f"zoo:{name}:{file}", release.image.kind.upper() + "S", "--out", "features.parquet"])
