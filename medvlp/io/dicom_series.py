"""One DICOM series -> one volume, each slice read straight to its place.

Guarantee: slices are ordered by position; a series whose slices are uneven, shifted or doubled is refused, or resampled
to a straight grid where the configuration says so. Slope and intercept are those of each slice; padding becomes air.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import uid

from medvlp.errors import UserError
from medvlp.io.dicom_file import one_line
from medvlp.io.grid import BadGeometry, Canvas
from medvlp.io.intensity import Meaning, dicom_meaning
from medvlp.io.limits import check_memory
from medvlp.io.series import Part, Slice, find_parts
from medvlp.io.slice_pixels import read_slice
from medvlp.io.stack import Stack, stack_slices
from medvlp.io.straighten import record_of, straight_grid, straighten
from medvlp.io.values import AIR_HU, BadValues, Converter
from medvlp.types import Intensity, Volume

if TYPE_CHECKING:
    from jaxtyping import Int16

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.types import VolumeFacts

Reader = Callable[[], tuple["Int16[np.ndarray, 'h w']", Converter]]
"""Returns the values of one slice, and what was counted."""
THREADS = 4
_FIX = "Restore the file from its source, or leave it out."
_MANY = 3


def read_series(
    files: Sequence[Path], where: Path, config: StoredVolumeConfig, facts: VolumeFacts | None, *, exact: bool
) -> Volume:
    """Read the one series among some DICOM files.

    Args:
        files: The files.
        where: Their folder, for provenance and errors.
        config: `irregular`, `tilt` and `intensity` are used.
        facts: What the data set says where the files do not.
        exact: Whether every file must be a slice; else localisers, masks, documents and files of other formats beside
            them are left out.

    Raises:
        UserError: There is no series or more than one, a file is broken, or the slices do not make a volume.
    """
    parts, problems = find_parts(files)
    for problem in problems:
        if problem.broken or exact:
            raise UserError(problem.reason, problem.files[0], problem.fix)
    found = {header.path for part in parts for header in part.headers}
    stranger = next((path for path in files if exact and path not in found), None)
    if stranger is not None:
        raise UserError("A file among the slices is no DICOM file.", stranger, "Leave it out.")
    volumes = [part for part in parts if part.kind == "volume"]
    if len(volumes) != 1:
        kinds = ", ".join(
            f"{part.headers[0].text('Modality')} of {len(part.headers)} files" for part in volumes[:_MANY]
        )
        more = f" and {len(volumes) - _MANY} more" if len(volumes) > _MANY else ""
        what = f"The files make {len(volumes)} volumes where one is needed{': ' + kinds + more if volumes else ''}."
        raise UserError(what, where, "Give the folder or the files of one series; find_series tells them apart.")
    if not volumes[0].slices:
        from medvlp.io.enhanced import read_enhanced

        return read_enhanced(volumes[0].headers[0], config, facts)
    return _read(volumes[0], where, config, facts)


def _read(part: Part, where: Path, config: StoredVolumeConfig, facts: VolumeFacts | None) -> Volume:
    slices = part.slices
    try:
        stack = stack_slices([one.plane for one in slices])
        photometric, modality = slices[0].pixels.photometric, part.headers[0].text("Modality")
        meaning = dicom_meaning([one.plane for one in slices], modality, photometric, config, facts, where)
    except ValueError as error:
        raise UserError(f"The series is no volume: {one_line(error)}.", where, _FIX) from None
    ordered = [slices[i] for i in stack.order]
    readers = [partial(_values, one, meaning) for one in ordered]
    first = ordered[0].pixels
    array, affine, record = assemble(stack, (first.rows, first.columns), readers, meaning, config, facts, where)
    syntaxes = sorted({uid.UID(one.pixels.transfer_syntax).name for one in slices})
    provenance = {
        "path": str(where),
        "format": "dicom series",
        "transfer_syntax": ", ".join(syntaxes),
        "modality": modality,
        "slices": len(slices),
        **meaning.record,
        **record,
    }
    return make_volume(array, affine, meaning.intensity, provenance)


def make_volume(
    array: Int16[np.ndarray, "d h w"], affine: Any, intensity: Intensity, provenance: dict[str, Any]
) -> Volume:
    """Return the volume of a filled canvas."""
    from medvlp.io.grid import spacing_of

    return Volume(array, affine, None if affine is None else spacing_of(affine), intensity, provenance)


def _values(one: Slice, meaning: Meaning) -> tuple[Int16[np.ndarray, "h w"], Converter]:
    """Return the values of one slice, and what was counted."""
    path = one.header.path
    converter = meaning.converter(one.plane, one.pixels.padding)
    try:
        stored = read_slice(path, one.pixels)
        if meaning.inverted:
            low, high = one.pixels.limits
            stored = (low + high) - stored.astype(np.int32)
        return converter.convert(stored), converter
    except BadValues as error:
        raise UserError(str(error), path, error.fix) from None
    except OSError as error:
        raise UserError(
            f"The file cannot be opened: {error.strerror}.", path, "Check path and access rights."
        ) from None
    except Exception as error:  # whatever a decoder throws at a broken file
        raise UserError(f"The slice cannot be read: {one_line(error)}.", path, _FIX) from None


def assemble(
    stack: Stack,
    size: tuple[int, int],
    readers: Sequence[Reader],
    meaning: Meaning,
    config: StoredVolumeConfig,
    facts: VolumeFacts | None,
    where: Path,
) -> tuple[Int16[np.ndarray, "d h w"], Any, dict[str, Any]]:
    """Read ordered slices into a canonical array; straighten them if they need it and the configuration allows it.

    Args:
        stack: Of the slices.
        size: Rows and columns.
        readers: One per slice, in the order of the stack.
        meaning: Of the values.
        config: `irregular` and `tilt`.
        facts: May replace the affine.
        where: For errors.

    Returns:
        The array, its affine, and the record for provenance.

    Raises:
        UserError: The geometry is refused, or a slice cannot be read.
    """
    crooked = check_stack(stack, config, where)
    shape = (len(readers), *size)
    check_memory(shape, where)
    try:
        if crooked:
            grid = straight_grid(stack, *size)
            slices = np.empty(shape, dtype=np.int16)
            record = _counts(_run(readers, slices.__setitem__), meaning)
            canvas = grid.canvas()
            fill = AIR_HU if meaning.intensity is Intensity.HU else int(slices.min())
            straighten(slices, grid, canvas, fill)
            record["straightened"] = {**record_of(grid), "fill": fill}
        else:
            affine = (
                stack.affine if facts is None or facts.affine is None else np.asarray(facts.affine)[:, [2, 1, 0, 3]]
            )
            canvas = Canvas(shape, affine)
            record = {**_counts(_run(readers, canvas.put), meaning), "straightened": None}
    except BadGeometry as error:
        raise UserError(f"The geometry is unusable: {error}.", where, _FIX) from None
    return canvas.array, canvas.affine, {**record, "grid": canvas.record}


def check_stack(stack: Stack, config: StoredVolumeConfig, where: Path) -> bool:
    """Return whether the slices must be resampled to a straight grid.

    Raises:
        UserError: Slices are doubled, or uneven or shifted and the configuration refuses that; all reasons are given.
    """
    if stack.doubled:
        raise UserError(f"The series is refused: {stack.doubled}.", where, "Give the files of one phase.")
    reasons, switches = [], []
    if stack.uneven and config.irregular == "refuse":
        reasons.append(stack.uneven)
        switches.append("volume.irregular")
    if stack.shifted and config.tilt == "refuse":
        reasons.append(stack.shifted)
        switches.append("volume.tilt")
    if reasons:
        fix = f"Set {' and '.join(switches)} to resample to interpolate a straight grid, or leave the series out."
        raise UserError(f"The series is refused: {'; '.join(reasons)}.", where, fix)
    return bool(stack.uneven or stack.shifted)


def _run(readers: Sequence[Reader], put: Callable[[int, Any], None]) -> list[Converter]:
    """Read all slices in a few threads and put each to its place; return what each counted."""

    def one(k: int) -> Converter:
        values, converter = readers[k]()
        put(k, values)
        return converter

    workers = min(THREADS, len(os.sched_getaffinity(0)) + 1, len(readers))
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(one, k) for k in range(len(readers))]
        try:
            return [future.result() for future in futures]
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _counts(converters: Sequence[Converter], meaning: Meaning) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for converter in converters:
        total.update(converter.counts)
    rounded = any(converter.rounded for converter in converters)
    return {**converters[0].record, **total, "rounded": rounded}
