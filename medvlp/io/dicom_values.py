"""Stored DICOM values -> modality values -> display values, in plain numpy, after DICOM PS3.3 C.11.1 and C.11.2.

Guarantee: every transformation that is applied is one that the file states, and comes back as a record of plain numbers
for provenance. An unusable statement raises `ValueError`; nothing is guessed in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int, Integer

RESCALE_TYPES = frozenset({"HU", "OD", "US", "MGML", "Z_EFF", "ED", "EDW", "HU_MOD", "PCT", "NORMALIZED"})
"""Defined terms of Rescale Type; anything else is recorded as "other", since free text may name a patient."""


class NotOffered(ValueError):
    """The file does not have the VOI transformation that the configuration asks for."""


@dataclass(frozen=True)
class LookupTable:
    """One modality or VOI LUT: `table[0]` belongs to input `first`; values run from 0 to `2 ** bits - 1`."""

    table: Int[np.ndarray, " n"]
    first: int
    bits: int

    def __call__(self, values: Float[np.ndarray, "h w"]) -> Float[np.ndarray, "h w"]:
        """Return the table's values; inputs outside take the first or last entry (PS3.3 C.11.1.1.1)."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.table) - 1)
        return self.table[index].astype(np.float64)

    @property
    def full_scale(self) -> int:
        """Largest value that the declared bits can hold."""
        return 2**self.bits - 1


def read_table(item: Any, signed_input: bool, little_endian: bool) -> LookupTable:
    """Read a LUT sequence item.

    Args:
        item: Dataset with LUTDescriptor and LUTData.
        signed_input: Whether the input values can be negative; the VR of the descriptor is not reliable.
        little_endian: Byte order of LUTData where it comes as bytes.

    Raises:
        ValueError: Descriptor or data are missing or contradict each other.
    """
    descriptor, data = item.get("LUTDescriptor"), item.get("LUTData")
    if descriptor is None or data is None or len(descriptor) != 3:
        raise ValueError("a LUT without descriptor or data")
    entries, first, bits = (int(value) for value in descriptor)
    entries = (entries & 0xFFFF) or 65536
    if signed_input and first > 32767:
        first -= 65536
    elif not signed_input and first < 0:
        first += 65536
    if not 8 <= bits <= 16:
        raise ValueError(f"a LUT of {bits} bits per entry; 8 to 16 are defined")
    if isinstance(data, bytes):
        wide = len(data) >= 2 * entries
        dtype = np.dtype("u1") if not wide else np.dtype("<u2" if little_endian else ">u2")
        table = np.frombuffer(data[: entries * dtype.itemsize], dtype=dtype)
    else:
        table = np.atleast_1d(np.asarray(data)) & 0xFFFF
        if bits == 8 and len(table) in (entries // 2, (entries + 1) // 2) and entries > 1:
            table = table.astype("<u2").view("u1")
    if len(table) < entries:
        raise ValueError(f"a LUT of {len(table)} entries where its descriptor says {entries}")
    table = table[:entries].astype(np.int64)
    if table.max(initial=0) > 2**bits - 1:
        raise ValueError(f"a LUT value of {table.max()} where its descriptor says {bits} bits")
    return LookupTable(table, first, bits)


@dataclass(frozen=True)
class ModalityResult:
    """Values after the modality transformation, the range that stored bits allow there, and what was done."""

    values: Float[np.ndarray, "h w"]
    low: float
    high: float
    hounsfield: bool
    apply: Callable[[Float[np.ndarray, " n"]], Float[np.ndarray, " n"]]
    record: dict[str, Any]


def apply_modality(
    stored: Integer[np.ndarray, "h w"], get: Any, *, bits: int, signed: bool, little_endian: bool
) -> ModalityResult:
    """Apply the modality LUT, else rescale slope and intercept, else nothing.

    Args:
        stored: Stored values of one frame, sign extended.
        get: Attribute of the frame by keyword, or None.
        bits: Bits stored.
        signed: Whether stored values are two's complement.
        little_endian: Byte order of the file.

    Raises:
        ValueError: The LUT or the rescale is unusable.
    """
    limits = np.asarray((-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1), dtype=np.float64)
    modality = str(get("Modality") or "")
    sequence = get("ModalityLUTSequence")
    if sequence:
        table = read_table(sequence[0], signed, little_endian)
        kind = str(sequence[0].get("ModalityLUTType", "") or "")
        record = {"kind": "lut", "entries": len(table.table), "bits": table.bits, "type": _rescale_type(kind)}
        values = table(stored.astype(np.float64))
        return ModalityResult(values, 0.0, float(table.full_scale), kind == "HU", table, record)
    slope, intercept = get("RescaleSlope"), get("RescaleIntercept")
    if slope is None and intercept is None:
        record = {"kind": "none"}
        return ModalityResult(stored.astype(np.float64), limits[0], limits[1], False, lambda v: v, record)
    if slope is None or intercept is None:
        raise ValueError("rescale slope and intercept must come together")
    a, b = float(slope), float(intercept)
    if a == 0 or not np.isfinite([a, b]).all():
        raise ValueError(f"a rescale slope of {a} and intercept of {b}")
    kind = str(get("RescaleType") or "")
    image_type = [str(value) for value in (get("ImageType") or [])]
    # Rescale Type may be left out for HU, but not in localizers (PS3.3 C.8.2.1.1.2).
    hounsfield = kind == "HU" or (not kind and modality == "CT" and "LOCALIZER" not in image_type)
    low, high = sorted((limits * a + b).tolist())
    record = {"kind": "rescale", "slope": a, "intercept": b, "type": _rescale_type(kind)}
    return ModalityResult(stored * a + b, low, high, hounsfield, lambda v: v * a + b, record)


def _rescale_type(text: str) -> str | None:
    if not text:
        return None
    return text if text in RESCALE_TYPES else "other"


def apply_voi(
    modality: ModalityResult, get: Any, *, voi: str, index: int, little_endian: bool
) -> tuple[Float[np.ndarray, "h w"] | None, dict[str, Any]]:
    """Apply the VOI transformation that the configuration chooses.

    Returns:
        Values in [0, 1] by the declared output range (None where no VOI applies), and the record for provenance.

    Raises:
        NotOffered: The chosen kind or index is not in the file.
        ValueError: The file's VOI is unusable.
    """
    luts, centres, widths = get("VOILUTSequence"), _numbers(get("WindowCenter")), _numbers(get("WindowWidth"))
    if voi == "lut" and not luts:
        raise NotOffered("no VOI LUT")
    if voi == "window" and not centres:
        raise NotOffered("no window")
    if luts and voi in ("auto", "lut"):
        item = _choose(list(luts), index, "VOI LUTs")
        table = read_table(item, modality.low < 0, little_endian)
        record = {"kind": "lut", "index": index, "entries": len(table.table), "bits": table.bits, "first": table.first}
        return table(modality.values) / table.full_scale, record
    if centres and voi in ("auto", "window"):
        if len(centres) != len(widths):
            raise ValueError(f"{len(centres)} window centres and {len(widths)} widths")
        centre, width = _choose(list(zip(centres, widths, strict=True)), index, "windows")
        function = str(get("VOILUTFunction") or "LINEAR")
        values = window(modality.values, centre, width, function)
        return values, {"kind": "window", "index": index, "function": function, "centre": centre, "width": width}
    return None, {"kind": "none"}


def window(values: Float[np.ndarray, "h w"], centre: float, width: float, function: str) -> Float[np.ndarray, "h w"]:
    """Map values to [0, 1] by a window (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Raises:
        ValueError: The function is not LINEAR, LINEAR_EXACT or SIGMOID, or the width is not allowed for it.
    """
    if not np.isfinite([centre, width]).all() or (width < 1 if function == "LINEAR" else width <= 0):
        raise ValueError(f"a window of centre {centre} and width {width}")
    if function == "LINEAR":
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
        if width == 1:
            return (values > high).astype(np.float64)
        return np.clip((values - low) / (width - 1), 0, 1)
    if function == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values - centre) / width))
    raise ValueError("a VOI LUT function that is not LINEAR, LINEAR_EXACT or SIGMOID")


def _numbers(value: Any) -> list[float]:
    if value is None or value == "":
        return []
    return [float(v) for v in value] if not isinstance(value, (str, int, float)) else [float(value)]


def _choose(options: list[Any], index: int, name: str) -> Any:
    if index >= len(options):
        raise NotOffered(f"{len(options)} {name}, so none of index {index}")
    return options[index]
