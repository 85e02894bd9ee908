"""Where in a radiograph does an encoder see what a text says?

Guarantee: maps lie on the pixels of the file. The picture holds pixels and the given texts alone: no path, nothing of a
file's headers, no metadata. All panels share one colour scale that begins at 0 (or the lowest value below it), unless
each is asked to have its own; every scale names its values.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from medvlp.errors import UserError
from medvlp.infer.picture import Panel, picture
from medvlp.io import read_radiograph
from medvlp.io.stored import unit_range

if TYPE_CHECKING:
    from jaxtyping import Float32

    from medvlp.types import Radiograph
    from medvlp.zoo.encoder import Encoder


@dataclass(frozen=True)
class Explained:
    """One image and one text.

    Args:
        image: Path as given.
        text: What was looked for.
        probability: That of the text against its opposite; None where the encoder gives none.
        highest: Row and column, from 0, of the pixel of the file with most evidence, of equal ones that nearest to the
            middle of the image; None where there is no difference in the map.
    """

    image: Path
    text: str
    probability: float | None
    highest: tuple[int, int] | None


def explain(
    encoder_spec: str,
    images: Sequence[Path],
    texts: Sequence[str],
    out: Path,
    *,
    values: Path | None = None,
    scale: Literal["shared", "each"] = "shared",
    pixels: int = 768,
    device: str = "auto",
) -> list[Explained]:
    """Draw heat maps of texts over radiographs into one PNG: a row for each image, a panel for each text.

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it.
        images: DICOM, PNG or JPEG files.
        texts: What is looked for.
        out: PNG file to write.
        values: Also write the maps, on the pixels of the files: `.npz` with `texts`, and `image_0` [t h w], `image_1`
            and so on in the order of `images`; NaN where the encoder does not see the image.
        scale: One colour scale for all panels, or one for each.
        pixels: Longest side of a panel; larger images are drawn smaller. 0 draws each image at its own size.
        device: Where the encoder computes.

    Raises:
        UserError: No image or text, the encoder has no heat maps, a file cannot be read, or `out` cannot be written.
    """
    from medvlp.zoo import load_encoder

    _check(images, out, values)
    encoder = load_encoder(encoder_spec, device=device)
    texts = [text.strip() for text in texts]
    encoder.check_heat_maps(texts)
    radiographs = [read_radiograph(path, encoder.preprocessing.stored) for path in images]
    maps = encoder.heat_maps(radiographs, texts)
    probabilities = _probabilities(encoder, radiographs, texts)
    rows = [
        [Panel(_grey(radiograph), None, f"image {number}" if len(images) > 1 else "image")]
        + [
            Panel(_grey(radiograph), own, text, None if chance is None else f"p = {chance:.2f}")
            for own, text, chance in zip(shown, texts, chances, strict=True)
        ]
        for number, (radiograph, shown, chances) in enumerate(zip(radiographs, maps, probabilities, strict=True), 1)
    ]
    notes = ['p: against the text with "no" before it'] if encoder.scores_text else []
    drawn = picture(rows, f"evidence by {encoder.heat_map_kind}", scale, pixels, notes)
    try:
        _replace(out, lambda part: drawn.save(part, format="PNG"))
        if values is not None:
            arrays = {f"image_{number}": own for number, own in enumerate(maps)}
            _replace(values, lambda part: _save(part, {"texts": np.array(texts), **arrays}))
    except OSError as error:
        raise UserError(
            f"The picture cannot be written: {error.strerror or error}.", out, "Free space, or another place."
        ) from error
    return [
        Explained(path, text, chance, _highest(own))
        for path, shown, chances in zip(images, maps, probabilities, strict=True)
        for own, text, chance in zip(shown, texts, chances, strict=True)
    ]


def _check(images: Sequence[Path], out: Path, values: Path | None) -> None:
    if not images:
        raise UserError("There is no image to explain.", "--image", "Give DICOM, PNG or JPEG files.")
    for path, suffix in ((out, ".png"), (values, ".npz")):
        if path is not None and path.suffix.lower() != suffix:
            raise UserError(f"'{path.name}' is no name for a {suffix[1:].upper()} file.", path, f"End it in {suffix}.")


def _probabilities(
    encoder: Encoder, radiographs: Sequence[Radiograph], texts: Sequence[str]
) -> Sequence[Sequence[float | None]]:
    if not encoder.scores_text:
        return [[None] * len(texts)] * len(radiographs)
    found: list[list[float | None]] = encoder.zero_shot(radiographs, texts).double().cpu().tolist()
    return found


def _grey(radiograph: Radiograph) -> Float32[np.ndarray, "h w"]:
    """Return an image from 0, black, to 1, white."""
    unit = unit_range(radiograph)
    return unit.mean(axis=-1) if unit.ndim == 3 else unit


def _highest(own: Float32[np.ndarray, "h w"]) -> tuple[int, int] | None:
    if not np.nanmax(own) > np.nanmin(own):
        return None
    rows, columns = np.nonzero(own == np.nanmax(own))
    height, width = own.shape
    nearest = np.argmin((rows + 0.5 - height / 2) ** 2 + (columns + 0.5 - width / 2) ** 2)
    return int(rows[nearest]), int(columns[nearest])


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file beside its place and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
