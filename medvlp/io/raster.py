"""PNG and JPEG files -> radiographs.

Guarantee: only complete files give an image. 8 bits and less are UNIT (value / full scale); 16 bits are kept as they
are and called STORED, since detectors fill 10, 12 or 16 of them and the file does not say which. Colour files pass only
if their channels are equal, or if the configuration asks for luminance or keeps colours.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile

from medvlp.errors import UserError
from medvlp.io.bitstream import BrokenStream, jpeg_layout, png_header, with_more_scan_data
from medvlp.io.limits import check_frame
from medvlp.types import Intensity, Radiograph

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

    from medvlp.config.preprocessing import StoredImageConfig

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue (ITU-R BT.601)."""

_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION_TAG = 0x0112
_PNG_COLOUR_TYPES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
_FIX = "Restore the file from its source, or leave it out."


def read_raster(data: bytes, path: Path, config: StoredImageConfig) -> Radiograph:
    """Read a PNG or JPEG file; see `medvlp.io.read_radiograph`.

    Args:
        data: The whole file.
        path: Where it came from, for provenance and errors.
        config: `colour` decides about coloured files; `frame` must be None or 0.

    Raises:
        UserError: The file is truncated or damaged, coloured, transparent, or of a kind that would lose bits.
    """
    if config.frame not in (None, 0):
        raise UserError(
            f"Frame {config.frame} was asked for, but the file holds one image.", path, "Set frame to null."
        )
    try:
        if data.startswith(b"\xff\xd8"):
            image, facts = _decode_jpeg(data)
        else:
            image, facts = _decode_png(data)
        orientation = int(image.getexif().get(_ORIENTATION_TAG, 1))
    except BrokenStream as error:
        raise UserError(f"The image is {error}.", path, _FIX) from None
    except Exception as error:  # whatever a decoder throws at a broken file
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"The image cannot be decoded ({type(error).__name__}: {reason}).", path, _FIX) from None
    values, full_scale, colour = _grey_values(image, config, path)
    values = _oriented(values, orientation, path)
    provenance: dict[str, Any] = {"path": str(path), **facts, "orientation": orientation, "colour": colour}
    if full_scale == 65535:
        array, intensity = values.astype(np.float32), Intensity.STORED
        provenance["range"] = (float(array.min()), float(array.max()))
    else:
        array, intensity = values.astype(np.float32) / np.float32(full_scale), Intensity.UNIT
        provenance["range"] = (0.0, 1.0)
    provenance |= {"spacing_tag": None, "inverted": False, "full_scale": full_scale}
    return Radiograph(array=np.ascontiguousarray(array), spacing_mm=None, intensity=intensity, provenance=provenance)


def read_values(path: Path) -> Shaped[np.ndarray, "h w"]:
    """Read the values of a mask as the file holds them: grey values or indices of a palette.

    Raises:
        UserError: The file is damaged, of more than one channel, or lossy, so that its values are not exact.
    """
    try:
        data = path.read_bytes()
        if data.startswith(b"\xff\xd8"):
            what = "The mask is a JPEG, whose values are not exact."
            raise UserError(what, path, "Convert it to PNG by the rule that its publisher gives.")
        image, _ = _decode_png(data)
    except BrokenStream as error:
        raise UserError(f"The mask is {error}.", path, _FIX) from None
    except (OSError, SyntaxError, ValueError, MemoryError, Image.DecompressionBombError) as error:
        raise UserError(f"The mask cannot be decoded ({type(error).__name__}).", path, _FIX) from None
    values = np.asarray(image)
    if values.ndim == 3:
        colours = values[..., : min(3, values.shape[2])] if values.shape[2] != 2 else values[..., :1]
        if (colours != colours[..., :1]).any():
            raise UserError("The mask is coloured.", path, "Convert it to grey values, one per structure.")
        values = colours[..., 0]
    return values.astype(np.uint16)


def _open(data: bytes) -> Image.Image:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError("PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on: truncated files would be read as grey")
    image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG"))
    image.load()
    return image


def _check_pixels(rows: int, columns: int) -> None:
    try:
        check_frame(rows, columns)
    except ValueError as error:
        raise BrokenStream(f"of an absurd size ({error})") from None


def _decode_png(data: bytes) -> tuple[Image.Image, dict[str, Any]]:
    header = png_header(data)
    _check_pixels(header["height"], header["width"])
    kind = _PNG_COLOUR_TYPES.get(header["colour_type"], "unknown")
    if header["bits"] == 16 and kind != "grey":
        raise BrokenStream(f"of a kind that cannot be read without losing bits (16-bit {kind} PNG)")
    return _open(data), {"format": "png", "bits": header["bits"], "pixel_kind": kind}


def _decode_jpeg(data: bytes) -> tuple[Image.Image, dict[str, Any]]:
    layout = jpeg_layout(data)
    if layout.bits != 8 or layout.lossless:
        raise BrokenStream(f"of a kind that cannot be read here ({layout.bits}-bit or lossless JPEG outside DICOM)")
    _check_pixels(layout.rows or 1, layout.columns)
    image = _open(data)
    if (layout.columns, layout.rows) != image.size and layout.rows:
        raise BrokenStream("damaged: two sizes in one JPEG")
    corner = np.asarray(image)[-8:, -8:]
    # A decoder that runs out of data leaves exact mid-grey, which real images hardly ever end with.
    if np.ptp(corner) <= 2 and abs(int(corner.flat[0]) - 128) <= 1:
        longer = np.asarray(_open(with_more_scan_data(data, layout)))
        if not np.array_equal(np.asarray(image), longer):
            raise BrokenStream("truncated: coded data end before the image does")
    return image, {"format": "jpeg", "bits": 8, "pixel_kind": image.mode}


def _grey_values(
    image: Image.Image, config: StoredImageConfig, path: Path
) -> tuple[Shaped[np.ndarray, "h w *c"], int, str]:
    """Return grey values or colours, their full scale, and how colour was dealt with."""
    if image.mode in _GREY_16:
        if "transparency" in image.info:
            raise UserError(
                "The image has transparent pixels, whose grey value is unknown.", path, "Flatten the image."
            )
        return np.asarray(image).astype(np.uint16), 65535, "grey"
    if image.mode == "1":
        return np.asarray(image).astype(np.uint8), 1, "grey"
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        pixels = np.asarray(image.convert("RGBA"))
        if not (pixels[..., 3] == 255).all():
            raise UserError(
                "The image has transparent pixels, whose grey value is unknown.", path, "Flatten the image."
            )
    elif image.mode == "L":
        return np.asarray(image), 255, "grey"
    else:
        pixels = np.asarray(image.convert("RGB"))
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return red, 255, "grey" if image.mode == "LA" else f"equal channels of {image.mode}"
    values, colour = colour_values(pixels[..., :3], config, path)
    return values, 255, colour


def colour_values(
    pixels: Shaped[np.ndarray, "h w 3"], config: StoredImageConfig, path: Path
) -> tuple[Float[np.ndarray, "h w *c"], str]:
    """Return red, green and blue, or their luminance, as the configuration says, and which of the two.

    Raises:
        UserError: The configuration refuses colour.
    """
    if config.colour == "refuse":
        fix = "Set colour to luminance to convert it, or leave it out."
        raise UserError("The image is truly coloured, not a radiograph.", path, fix)
    values = pixels.astype(np.float32)
    if config.colour == "keep":
        return values, "kept"
    return values @ np.asarray(LUMINANCE, dtype=np.float32), "luminance"


def read_pixels(path: Path) -> Shaped[np.ndarray, "h w *c"]:
    """Read the 8-bit frame of a video that was saved as a picture: grey, or red, green and blue.

    Raises:
        UserError: The picture is damaged, or has more than 8 bits.
    """
    from medvlp.config.preprocessing import StoredImageConfig

    radiograph = read_raster(path.read_bytes(), path, StoredImageConfig(colour="keep"))
    if radiograph.intensity is not Intensity.UNIT:
        raise UserError("The frame has more than 8 bits.", path, "Convert the frames to 8 bits.")
    return np.rint(radiograph.array * 255).astype(np.uint8)


def _oriented(values: Shaped[np.ndarray, "h w *c"], orientation: int, path: Path) -> Shaped[np.ndarray, "h w *c"]:
    """Turn the image as its EXIF orientation (1 to 8) says it is to be seen."""
    if not 1 <= orientation <= 8:
        raise UserError(
            f"The EXIF orientation is {orientation}; 1 to 8 are defined.", path, "Correct the file's EXIF data."
        )
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
