"""`medvlp explain`: heat maps of texts over radiographs, in volumes and in clips."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medvlp.cli._common import print_table, say
from medvlp.errors import UserError

EXAMPLE = (
    'Example: medvlp explain runs/medslip --image x.dcm --text "left pleural effusion" --out heat.png; of a CT: '
    'medvlp explain runs/ct_clip --volume x.nii.gz --text "pleural effusion" --out heat; of a '
    'clip: medvlp explain runs/echoprime --clip x.avi --text "severely reduced function" --out heat'
)


def explain(
    encoder: Annotated[str, typer.Argument(help="A run folder, or zoo:NAME:FILE.")],
    text: Annotated[list[str], typer.Option(help="What is looked for; once each, drawn side by side.")],
    out: Annotated[Path, typer.Option(help="PNG file to write; of volumes and clips a folder.")],
    image: Annotated[list[Path] | None, typer.Option(help="Radiograph (DICOM, PNG, JPEG); once each.")] = None,
    volume: Annotated[
        list[Path] | None, typer.Option(help="NIfTI, MHD or NRRD file, or the folder of a DICOM series; once each.")
    ] = None,
    clip: Annotated[
        list[Path] | None, typer.Option(help="Video (AVI, MP4, MKV) or folder of numbered frames; once each.")
    ] = None,
    values: Annotated[
        Path | None, typer.Option(help="Images: also write the maps on their pixels, as .npz; NaN is not seen.")
    ] = None,
    intensity: Annotated[
        Literal["auto", "hu", "stored"], typer.Option(help="Volumes: what numbers mean where the file does not say it.")
    ] = "auto",
    scale: Annotated[
        Literal["shared", "each"], typer.Option(help="One colour scale for all panels, or one for each.")
    ] = "shared",
    pixels: Annotated[
        int | None,
        typer.Option(min=0, help="Longest side of a panel: 768, of frames 384; 0 keeps the size of the file."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Show where radiographs, volumes or clips show what texts say; the pictures hold no name and no metadata."""
    if [bool(image), bool(volume), bool(clip)].count(True) != 1:
        raise UserError(
            "Either images, volumes or clips are explained.", "explain", "Give --image, or --volume, or --clip."
        )
    if values is not None and not image:
        kept = "as NIfTI" if volume else "as .npz"
        raise UserError(
            "--values is of images alone.", "--values", f"Leave it out: the maps are written {kept} anyway."
        )
    if intensity != "auto" and not volume:
        raise UserError("--intensity is of volumes alone.", "--intensity", "Leave it out.")
    if volume:
        _volumes(encoder, volume, text, out, intensity, scale, 768 if pixels is None else pixels, device)
        return
    if clip:
        _clips(encoder, clip, text, out, scale, 384 if pixels is None else pixels, device)
        return
    pixels = 768 if pixels is None else pixels
    from medvlp.infer.explain import explain as draw

    found = draw(encoder, image or [], text, out, values=values, scale=scale, pixels=pixels, device=device)
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


def _volumes(
    encoder: str,
    volumes: list[Path],
    texts: list[str],
    out: Path,
    intensity: Literal["auto", "hu", "stored"],
    scale: Literal["shared", "each"],
    pixels: int,
    device: str,
) -> None:
    from medvlp.infer.explain_volume import explain_volumes

    found = explain_volumes(
        encoder, volumes, texts, out, intensity=intensity, scale=scale, pixels=pixels, device=device
    )
    rows = [
        (
            one.volume,
            one.text,
            "–" if one.probability is None else one.probability,
            "no difference"
            if one.voxel is None
            else f"voxel {one.voxel}"
            if one.place_mm is None
            else "R {:.0f}, A {:.0f}, S {:.0f} mm".format(*one.place_mm),
        )
        for one in found
    ]
    print_table("Evidence", ("volume", "text", "probability", "most evidence at"), rows)
    kept = "pictures" if any(one.nifti is None for one in found) else "pictures and the maps as NIfTI files"
    say(f"The {kept} are in {out}")


def _clips(
    encoder: str,
    clips: list[Path],
    texts: list[str],
    out: Path,
    scale: Literal["shared", "each"],
    pixels: int,
    device: str,
) -> None:
    from medvlp.infer.explain_clip import explain_clips

    rows = []
    for one in explain_clips(encoder, clips, texts, out, scale=scale, pixels=pixels, device=device):
        place = "no difference"
        if one.place is not None:
            frame, row, column = one.place
            when = "" if one.second is None else f" ({one.second:.2f} s)"
            place = f"frame {frame}{when}, row {row}, column {column}"
        rows.append((one.clip, one.text, "–" if one.probability is None else one.probability, place))
    print_table("Evidence", ("clip", "text", "probability", "most evidence at (from 0)"), rows)
    say(f"The pictures and the maps are in {out}")
