"""DICOM files -> radiographs.

Guarantee: what the file does not say is not made up, and what it says twice is chosen by configuration and recorded. Of
the header only the attributes below are read, none of which identifies a patient. MONOCHROME1 is inverted after the
VOI, so large values are always bright; overlays are ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line, parse
from medvlp.io.dicom_pixels import decode, frame_values
from medvlp.io.dicom_values import ModalityResult, NotOffered, apply_modality, apply_voi
from medvlp.io.limits import check_frame
from medvlp.types import Intensity, Radiograph

if TYPE_CHECKING:
    from jaxtyping import Float
    from pydicom.dataset import Dataset

    from medvlp.config.preprocessing import StoredImageConfig

_PALETTE = [
    f"{prefix}{colour}PaletteColorLookupTable{suffix}"
    for colour in ("Red", "Green", "Blue")
    for prefix, suffix in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
_SPACING_TAGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")
READ_TAGS = [
    *("SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "NumberOfFrames", "SamplesPerPixel"),
    *("PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "PixelSpacingCalibrationType", "SharedFunctionalGroupsSequence"),
    *("PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
    *_SPACING_TAGS,
    *_PALETTE,
]
"""All that is ever read of a header."""

_NEEDED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored")
_GROUPS = {
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "PixelMeasuresSequence": ("PixelSpacing",),
}
_COLOUR = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_DELIMITER_BYTES = 8
_PROJECTION = frozenset({"CR", "DX", "MG", "IO", "PX", "RF", "XA", "RG"})
_CALIBRATIONS = frozenset({"GEOMETRY", "FIDUCIAL"})
_FIX = "Restore the file from its source, or leave it out."


def read_dicom(data: bytes, path: Path, config: StoredImageConfig) -> Radiograph:
    """Read one frame of a DICOM file; see `medvlp.io.read_radiograph`.

    With a VOI the intensity is UNIT, the VOI's declared output range scaled to [0, 1] and padding pixels 0. Without one
    it is HU where the file says so, else STORED (after the modality transformation), and `provenance["range"]` holds
    the smallest and largest value outside of padding. HU are never inverted.

    Args:
        data: The whole file.
        path: Where it came from, for provenance and errors.
        config: `voi`, `voi_index`, `frame` and `colour` are used.

    Raises:
        UserError: The file is truncated, damaged, without image, or ambiguous under `config`.
    """
    try:
        dataset = _parse(data)
        return _read(dataset, path, config)
    except UserError:
        raise
    except NotOffered as error:
        fix = "Choose another image.voi or image.voi_index in the configuration, or auto."
        raise UserError(f"The DICOM file has {error}.", path, fix) from None
    except ValueError as error:
        raise UserError(f"The DICOM file cannot be used: {one_line(error)}.", path, _FIX) from None
    except Exception as error:  # whatever a parser or decoder throws at a broken file
        what = f"The DICOM file is damaged or truncated ({type(error).__name__}: {one_line(error)})."
        raise UserError(what, path, _FIX) from None


def _parse(data: bytes) -> Dataset:
    dataset = parse(data, READ_TAGS)
    if "PixelData" not in dataset:
        raise ValueError("it has no integer pixel data, or ends before them")
    pixels = dataset["PixelData"]
    if pixels.is_undefined_length and int(pixels.file_tell or 0) + len(pixels.value) + _DELIMITER_BYTES > len(data):
        raise ValueError("truncated: the end of its pixel data is missing")
    missing = [name for name in _NEEDED if dataset.get(name) is None]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if int(dataset.SamplesPerPixel) == 1 and dataset.get("PixelRepresentation") is None:
        raise ValueError("it lacks PixelRepresentation")
    check_frame(int(dataset.Rows), int(dataset.Columns))
    return dataset


class _Frame:
    """Attributes of one frame: from its functional groups, the shared ones, else the data set itself."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        shared = dataset.get("SharedFunctionalGroupsSequence") or []
        self._groups = [*per_frame[index : index + 1], *shared[:1]]
        self._dataset = dataset

    def __call__(self, keyword: str) -> Any:
        for sequence, keywords in _GROUPS.items():
            if keyword in keywords:
                for group in self._groups:
                    items = group.get(sequence)
                    if items:
                        return items[0].get(keyword)
        return self._dataset.get(keyword)


def _read(dataset: Dataset, path: Path, config: StoredImageConfig) -> Radiograph:
    frames = int(dataset.get("NumberOfFrames") or 1)
    frame = _choose_frame(frames, path, config)
    get = _Frame(dataset, frame)
    photometric = str(dataset.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2", *_COLOUR):
        raise ValueError("its photometric interpretation is unknown")
    spacing, spacing_facts = _spacing(get)
    modality = str(get("Modality") or "")
    facts: dict[str, Any] = {
        "path": str(path),
        "format": "dicom",
        "transfer_syntax": dataset.file_meta.TransferSyntaxUID.name,
        "modality": modality if len(modality) <= 4 and modality.isalnum() else None,
        "photometric": photometric,
        "bits": int(dataset.BitsStored),
        "frame": frame,
        "frames": frames,
        **spacing_facts,
    }
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        array = _coloured(dataset, frame, frames, path, config)
        facts |= {
            "colour": "kept" if array.ndim == 3 else "luminance",
            "voi": {"kind": "none"},
            "inverted": False,
            "range": (0.0, 1.0),
        }
        return Radiograph(array, spacing, Intensity.UNIT, facts)
    if int(dataset.SamplesPerPixel) != 1:
        raise ValueError(f"{dataset.SamplesPerPixel} samples per pixel in a grey image")
    stored = frame_values(dataset, frame, frames)
    signed = bool(int(dataset.PixelRepresentation))
    little = dataset.file_meta.TransferSyntaxUID != uid.ExplicitVRBigEndian
    result = apply_modality(stored, get, bits=int(dataset.BitsStored), signed=signed, little_endian=little)
    unit, voi = apply_voi(result, get, voi=config.voi, index=config.voi_index, little_endian=little)
    padded, padding = _padding(stored, result, get, signed)
    facts |= {"modality_transform": result.record, "voi": voi, "colour": "grey"}
    inverse = photometric == "MONOCHROME1"
    if unit is not None:
        unit = 1 - unit if inverse else unit
        unit[padded] = 0
        facts |= {"inverted": inverse, "range": (0.0, 1.0), "padding": padding}
        return Radiograph(unit.astype(np.float32), spacing, Intensity.UNIT, facts)
    return _without_voi(result, padded, padding, inverse, spacing, facts)


def _without_voi(
    result: ModalityResult,
    padded: np.ndarray,
    padding: dict[str, Any] | None,
    inverse: bool,
    spacing: tuple[float, float] | None,
    facts: dict[str, Any],
) -> Radiograph:
    """Return HU or stored values with the range they span; MONOCHROME1 is mirrored within what its bits allow."""
    values = result.values
    inverse = inverse and not result.hounsfield
    if inverse:
        values = result.low + result.high - values
        if padding:
            mirrored = sorted(result.low + result.high - padding[end] for end in ("low", "high"))
            padding = {**padding, "low": mirrored[0], "high": mirrored[1]}
    inside = values[~padded] if not padded.all() else values
    value_range = (float(inside.min()), float(inside.max()))
    intensity = Intensity.HU if result.hounsfield else Intensity.STORED
    facts |= {"inverted": inverse, "range": value_range, "padding": padding}
    return Radiograph(values.astype(np.float32), spacing, intensity, facts)


def _choose_frame(frames: int, path: Path, config: StoredImageConfig) -> int:
    if frames < 1:
        raise ValueError(f"it declares {frames} frames")
    if config.frame is None and frames > 1:
        raise UserError(
            f"The DICOM file has {frames} frames.",
            path,
            "Save the frame to use as a file of its own, or prepare a store with image.frame (0 is the first).",
        )
    if config.frame is not None and config.frame >= frames:
        what = f"Frame {config.frame} was asked for, but the DICOM file has {frames}."
        raise UserError(what, path, f"Set image.frame to null or to less than {frames}.")
    return config.frame or 0


def _padding(
    stored: np.ndarray, result: ModalityResult, get: Any, signed: bool
) -> tuple[np.ndarray, dict[str, Any] | None]:
    """Return where the padding pixels are, and their values after the modality transformation (PS3.3 C.7.5.1.1.2)."""
    ends = [get("PixelPaddingValue"), get("PixelPaddingRangeLimit")]
    if ends[0] is None or ends[0] == "":
        return np.zeros(stored.shape, dtype=bool), None
    # The VR of these two is often written without regard to the sign of the pixels.
    wrapped = [int(end) & 0xFFFF for end in ends if end not in (None, "")]
    low, high = min(found := [w - 65536 if signed and w > 32767 else w for w in wrapped]), max(found)
    padded = (stored >= low) & (stored <= high)
    count = int(padded.sum())
    if not count:
        return padded, None
    values = sorted(float(value) for value in result.apply(np.asarray([low, high], dtype=np.float64)))
    return padded, {"low": values[0], "high": values[1], "pixels": count}


def _spacing(get: Any) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """Choose the spacing in mm and say which attribute it is.

    In projection images PixelSpacing is at the patient only if a calibration says so; otherwise ImagerPixelSpacing, at
    the detector, is what was measured (PS3.3 10.7.1). In all others PixelSpacing comes first.
    """
    calibration = str(get("PixelSpacingCalibrationType") or "")
    calibration_fact = calibration if calibration in _CALIBRATIONS else None
    order = list(_SPACING_TAGS)
    if str(get("Modality") or "") in _PROJECTION and calibration_fact is None:
        order = ["ImagerPixelSpacing", "PixelSpacing", "NominalScannedPixelSpacing"]
    for tag in order:
        value = get(tag)
        try:
            row, column = (float(v) for v in value)
        except (TypeError, ValueError):
            continue
        if row > 0 and column > 0 and np.isfinite([row, column]).all():
            return (row, column), {"spacing_tag": tag, "spacing_calibration": calibration_fact}
    return None, {"spacing_tag": None, "spacing_calibration": None}


def _coloured(
    dataset: Dataset, frame: int, frames: int, path: Path, config: StoredImageConfig
) -> Float[np.ndarray, "h w *c"]:
    """Return a coloured frame in [0, 1] as it is, or as luminance (ITU-R BT.601), as the configuration says."""
    from medvlp.io.raster import LUMINANCE

    photometric = str(dataset.PhotometricInterpretation)
    if config.colour == "refuse":
        fix = "Set image.colour to luminance to convert it, or leave it out."
        raise UserError(f"The DICOM file is coloured ({photometric}), not a radiograph.", path, fix)
    if photometric == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        rgb = apply_color_lut(frame_values(dataset, frame, frames), dataset)
        full_scale = 2 ** (8 * rgb.dtype.itemsize) - 1
    else:
        rgb = decode(dataset, frame, frames, raw=False)
        full_scale = 2 ** int(dataset.BitsStored) - 1
    if rgb.ndim != 3 or rgb.shape[-1] != 3:
        raise ValueError(f"{rgb.shape[-1]} channels where colour has 3")
    unit = rgb.astype(np.float32) / np.float32(full_scale)
    return unit if config.colour == "keep" else unit @ np.asarray(LUMINANCE, dtype=np.float32)
