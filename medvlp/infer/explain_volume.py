"""Where in a volume does an encoder see what a text says?

Guarantee: maps lie on the voxels of the file and are saved in the patient's coordinates. Pictures and files hold
voxels, maps and the given texts alone: no path, nothing of a file's headers. All planes of a picture share one colour
scale, unless each is asked to have its own.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from medvlp.errors import UserError
from medvlp.infer.picture import Panel, picture
from medvlp.io import read_volume
from medvlp.io.nifti_writer import write_on_volume
from medvlp.store.files import writing

if TYPE_CHECKING:
    from jaxtyping import Float32, Shaped

    from medvlp.types import Volume
    from medvlp.zoo.volume_encoder import VolumeEncoder

PLANES = (("axial", 0), ("coronal", 1), ("sagittal", 2))
LONGEST_NAME = 40


@dataclass(frozen=True)
class ExplainedVolume:
    """One volume and one text.

    Args:
        volume: Path as given.
        text: What was looked for.
        probability: That of the text against its opposite; None where the encoder gives none.
        voxel: Index (d, h, w) of the voxel of the volume in RAS with most evidence, of equal ones that nearest to the
            middle; None where there is no difference in the map.
        place_mm: Where it lies: right, anterior, superior; None without geometry.
        nifti: The map; None without geometry.
    """

    volume: Path
    text: str
    probability: float | None
    voxel: tuple[int, int, int] | None
    place_mm: tuple[float, float, float] | None
    nifti: Path | None


def explain_volumes(
    encoder_spec: str,
    volumes: Sequence[Path],
    texts: Sequence[str],
    out: Path,
    *,
    intensity: Literal["auto", "hu", "stored"] = "auto",
    scale: Literal["shared", "each"] = "shared",
    pixels: int = 512,
    device: str = "auto",
) -> list[ExplainedVolume]:
    """Write heat maps of texts in volumes: a picture of each volume, and a NIfTI file of each volume and text.

    `out` gets `volume_1.png` (a row for each text: the axial, coronal and sagittal plane through the voxel with most
    evidence) and `volume_1_TEXT.nii.gz` (float32 on the grid of the file; NaN where the encoder saw nothing), and so on
    in the order of `volumes`.

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it; an encoder of volumes.
        volumes: NIfTI, MHD, NRRD, or the folder of a DICOM series.
        texts: What is looked for.
        out: Folder.
        intensity: What the numbers of files mean that do not say it.
        scale: One colour scale for all planes of a picture, or one for each.
        pixels: Longest side of a plane.
        device: Where the encoder computes.

    Raises:
        UserError: No volume or text, the encoder has no heat maps or takes no volumes, a file cannot be read, or `out`
            cannot be written.
    """
    from medvlp.zoo import load_encoder
    from medvlp.zoo.volume_encoder import VolumeEncoder

    if not volumes:
        raise UserError("There is no volume to explain.", "--volume", "Give NIfTI files or folders of DICOM series.")
    encoder = load_encoder(encoder_spec, device=device)
    if not isinstance(encoder, VolumeEncoder):
        raise UserError(
            f"The encoder '{encoder.name}' takes no volumes.",
            "--volume",
            "Give --image or --clip, or an encoder of volumes.",
        )
    texts = [text.strip() for text in texts]
    encoder.check_heat_maps(texts)
    names = file_names(texts)
    stored = encoder.preprocessing.stored
    if intensity != "auto":
        stored = stored.model_copy(update={"intensity": intensity})
    found = []
    for number, path in enumerate(volumes, 1):
        volume = encoder.read(read_volume(path, stored))
        (maps,) = encoder.heat_maps([volume], texts)
        chances: Sequence[float | None] = [None] * len(texts)
        if encoder.scores_text:
            chances = encoder.zero_shot([volume], texts)[0].double().cpu().tolist()
        peaks = [highest(own) for own in maps]
        rows = [_planes(encoder, volume, *row) for row in zip(maps, texts, chances, peaks, strict=True)]
        drawn = picture(rows, f"evidence by {encoder.heat_map_kind}", scale, pixels, _notes(volume))
        file = out / f"volume_{number}.png"
        with writing(file):
            out.mkdir(parents=True, exist_ok=True)
            drawn.save(file, format="PNG")
        for own, text, name, chance, peak in zip(maps, texts, names, chances, peaks, strict=True):
            nifti = None
            if volume.affine is not None:
                nifti = out / f"volume_{number}_{name}.nii.gz"
                write_on_volume(nifti, own, volume)
            found.append(ExplainedVolume(path, text, chance, peak, _place(volume, peak), nifti))
    return found


def file_names(texts: Sequence[str]) -> list[str]:
    """Return a file name for each text; a number tells apart those that would be alike."""
    plain = [re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")[:LONGEST_NAME] or "text" for text in texts]
    return [f"{name}_{number}" if plain.count(name) > 1 else name for number, name in enumerate(plain, 1)]


def _planes(
    encoder: VolumeEncoder,
    volume: Volume,
    heat: Float32[np.ndarray, "d h w"],
    text: str,
    chance: float | None,
    peak: tuple[int, int, int] | None,
) -> list[Panel]:
    at = peak or tuple(side // 2 for side in heat.shape)
    spacing = volume.spacing_mm or (1.0, 1.0, 1.0)
    panels = []
    for name, axis in PLANES:
        shown = [_plane(array, axis, at[axis], spacing) for array in (volume.array, heat)]
        where = f"{name}, slice {at[axis] + 1} of {heat.shape[axis]}"
        note = where if chance is None or axis else f"{where}, p = {chance:.2f}"
        panels.append(Panel(_grey(encoder, volume, shown[0]), shown[1], text if axis == 0 else "", note))
    return panels


def _plane(
    array: Shaped[np.ndarray, "d h w"], axis: int, at: int, spacing_mm: Sequence[float]
) -> Shaped[np.ndarray, "rows columns"]:
    """Return a plane as radiologists show it, its pixels square: every axis runs to the left, or downwards."""
    plane = np.take(array, at, axis=axis)[::-1, ::-1]
    vertical, horizontal = (spacing_mm[other] for other in range(3) if other != axis)
    side = min(vertical, horizontal)
    rows, columns = (
        np.minimum(((np.arange(max(1, round(n * mm / side))) + 0.5) * side / mm).astype(np.intp), n - 1)
        for n, mm in zip(plane.shape, (vertical, horizontal), strict=True)
    )
    return plane[np.ix_(rows, columns)]


def _grey(encoder: VolumeEncoder, volume: Volume, plane: Shaped[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Return a plane in the first window of the encoder, or in the range of the volume, from 0 to 1."""
    windows = encoder.preprocessing.input.windows
    low, width = (windows[0].low, windows[0].width) if windows else (volume.array.min(), np.ptp(volume.array))
    return np.clip((plane.astype(np.float32) - low) / max(float(width), 1e-6), 0, 1)


def highest(own: Float32[np.ndarray, "d h w"]) -> tuple[int, int, int] | None:
    """Return the place of the highest value, of equal ones that nearest to the middle; None where none is higher."""
    if np.isnan(own).all() or not np.nanmax(own) > np.nanmin(own):
        return None
    places = np.argwhere(own == np.nanmax(own))
    nearest = np.argmin(((places + 0.5 - np.array(own.shape) / 2) ** 2).sum(1))
    d, h, w = (int(place) for place in places[nearest])
    return d, h, w


def _place(volume: Volume, voxel: tuple[int, int, int] | None) -> tuple[float, float, float] | None:
    if voxel is None or volume.affine is None:
        return None
    right, anterior, superior = (float(mm) for mm in (volume.affine @ [*voxel, 1])[:3])
    return right, anterior, superior


def _notes(volume: Volume) -> list[str]:
    shown = "axial and coronal: the patient's right is on the left; sagittal: anterior is on the left"
    return ['p: against the text with "no" before it', shown if volume.affine is not None else "sides are not stated"]
