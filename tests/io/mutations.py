"""Broken and hostile files for every reader: the same 500 and more from a seed.

Guarantee: `cases(folder, seed)` writes sound files, then yields mutations of them. An array that is read from a mutated
file is right if it equals the sound file's; if it differs in no more voxels than bytes were changed; or if it is what
an independent reader (pydicom, nibabel) makes of the mutated file, for then a header says something else. Where a
format has neither plain pixels nor a checksum (JPEG, JPEG 2000, RLE, MJPEG), wrong pixels cannot be told.

Run as a program in a process of its own (`python mutations.py FOLDER FIRST COUNT`), it reads every COUNT-th case from
FIRST on with a limit on memory, and writes one JSON line before and one after each.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import resource
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from sound_files import Kind, dicom_bytes, kinds

SECONDS, MEMORY = 10.0, 2 * 2**30


@dataclass(frozen=True)
class Case:
    """One mutated input: `read` gives its array or raises UserError; `kind` names the reader, `how` the mutation."""

    kind: str
    how: str
    path: Path
    read: Callable[[], np.ndarray]
    sound: np.ndarray
    changed_bytes: int | None
    """At equal positions of the file; None where the file was cut, rewritten, or is compressed."""
    must_fail: bool
    checksum: bool
    reference: Callable[[Path], np.ndarray] | None
    opaque: bool


def cases(folder: Path, seed: int = 0) -> Iterator[Case]:
    """Yield all cases; each one's file is written when it is asked for."""
    rng = np.random.default_rng(seed)
    for kind in kinds(folder):
        path = folder / kind.file
        path.write_bytes(kind.data)
        sound = kind.read(path)
        for how, data, must_fail in _mutations(kind, rng):
            path.write_bytes(data)
            blind = not how.startswith(_BLIND)
            yield Case(
                kind.name, how, path, lambda k=kind, p=path: k.read(p), sound, _changed_bytes(kind, data), must_fail,
                kind.checksum and not blind, kind.reference, kind.opaque,
            )  # fmt: skip
        path.write_bytes(kind.data)


_BLIND = ("cut", "flip", "zeros", "noise", "hole", "empty tail")
"""Names of the mutations that know nothing of the format."""


def _changed_bytes(kind: Kind, data: bytes) -> int | None:
    if len(data) != len(kind.data) or kind.opaque or kind.name == "deflated":
        return None
    return int((np.frombuffer(data, np.uint8) != np.frombuffer(kind.data, np.uint8)).sum())


def _mutations(kind: Kind, rng: np.random.Generator) -> Iterator[tuple[str, bytes, bool]]:
    """Yield name, bytes, and whether an array would be wrong whatever it holds."""
    data = kind.data
    for length in sorted({0, 1, len(data) - 1, len(data) - 2, *rng.integers(2, len(data), 4).tolist()}):
        yield f"cut to {length}", data[:length], True
    head = min(len(data), 1500)
    for number in range(9):
        broken = bytearray(data)
        for position in rng.integers(0, head if number % 3 else len(data), 1 + number % 3):
            broken[position] ^= 1 << int(rng.integers(8))
        yield f"flip {number}", bytes(broken), False
    for number in range(3):
        start = int(rng.integers(0, len(data) - 8))
        length = min(int(rng.integers(4, 400)), len(data) - start)
        yield f"zeros {number}", data[:start] + bytes(length) + data[start + length :], False
        yield f"noise {number}", data[:start] + rng.bytes(length) + data[start + length :], False
        yield f"hole {number}", data[:start] + data[start + length :], True
    yield "empty tail", data + bytes(4096), False
    if kind.file.endswith(".dcm"):
        yield from _dicom_mutations(kind)
    elif "nifti" in kind.name or "label" in kind.name:
        yield from _nifti_mutations(kind)
    elif kind.name == "npz":
        yield from _npz_bombs()
    elif kind.name == "png":
        yield from _png_bombs()
    elif "compressed" not in kind.name and kind.name in ("mha", "nrrd"):
        yield from _text_mutations(kind)


_ABSURD: tuple[tuple[str, Any, bool], ...] = (
    ("Rows", 65535, True), ("Columns", 65535, True), ("Rows", 0, True), ("BitsAllocated", 64, True),
    ("BitsStored", 99, True), ("HighBit", 40000, True), ("PixelRepresentation", 7, False), ("SamplesPerPixel", 9, True),
    ("NumberOfFrames", 2000000000, True), ("NumberOfFrames", -3, True), ("PixelSpacing", [-1, 1], False),
    ("PixelSpacing", [0, 0], False), ("PixelSpacing", ["nan", "nan"], False), ("RescaleSlope", "nan", False),
    ("RescaleSlope", "1e300", False), ("RescaleIntercept", "inf", False), ("ImagePositionPatient", ["nan"] * 3, False),
    ("ImagePositionPatient", ["1e30", 0, 0], False), ("ImageOrientationPatient", [0] * 6, False),
    ("ImageOrientationPatient", ["nan"] * 6, False), ("Modality", "??", False),
    ("PhotometricInterpretation", "X", True),
)  # fmt: skip


def _dicom_mutations(kind: Kind) -> Iterator[tuple[str, bytes, bool]]:
    """Absurd values, missing attributes, wrong value representations, and bombs."""
    import warnings

    import pydicom
    from pydicom.dataelem import DataElement

    warnings.simplefilter("ignore")
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE

    def changed(change: Callable[[Any], None]) -> bytes | None:
        ds = pydicom.dcmread(io.BytesIO(kind.data))
        try:
            change(ds)
            return dicom_bytes(ds)
        except (AttributeError, KeyError, ValueError, TypeError, OverflowError, NotImplementedError):
            return None

    for keyword, value, must_fail in _ABSURD:
        data = changed(lambda ds, k=keyword, v=value: setattr(ds, k, v))
        if data is not None:
            yield f"{keyword} = {value}", data, must_fail and _matters(kind, keyword)
    for keyword in ("Rows", "BitsAllocated", "PixelData", "ImagePositionPatient", "PixelSpacing", "SeriesInstanceUID"):
        data = changed(lambda ds, k=keyword: delattr(ds, k))
        if data is not None:
            yield f"no {keyword}", data, keyword in ("Rows", "BitsAllocated", "PixelData")
    for keyword in ("Rows", "PixelSpacing", "ImagePositionPatient"):
        tag = pydicom.datadict.tag_for_keyword(keyword)
        data = changed(lambda ds, t=tag: ds.__setitem__(t, DataElement(t, "LO", "Doe^Jane")))
        if data is not None:
            yield f"wrong VR of {keyword}", data, keyword == "Rows"
    if kind.name in ("radiograph", "deflated", "series"):
        meta = kind.data[: 144 + int.from_bytes(kind.data[140:144], "little")]
        plain, deflated = b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99"
        if plain in meta:
            meta = meta.replace(b"\x02\0\x10\0UI\x14\0" + plain, b"\x02\0\x10\0UI\x16\0" + deflated)
        yield "bomb in deflated syntax", meta + _deflated_zeros(), True


@functools.cache
def _deflated_zeros() -> bytes:
    """Return a deflated stream of 2 GiB of zeros: one block of 16 MiB, 128 times."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(b"\x08\0\x60\0CS\x02\0DX") + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + 128 * block + packer.flush()


def _matters(kind: Kind, keyword: str) -> bool:
    """Tell whether a reader of this kind must refuse the absurd value."""
    if keyword in ("PhotometricInterpretation", "HighBit", "BitsStored", "SamplesPerPixel") and kind.name == "seg":
        return False
    return keyword != "NumberOfFrames" or kind.name in ("enhanced", "seg")


def _nifti_mutations(kind: Kind) -> Iterator[tuple[str, bytes, bool]]:
    packed = kind.data.startswith(b"\x1f\x8b")
    plain = gzip.decompress(kind.data) if packed else kind.data
    close = gzip.compress if packed else bytes

    def put(at: int, values: np.ndarray) -> bytes:
        return close(plain[:at] + values.tobytes() + plain[at + values.nbytes :])

    for name, shape in (
        ("huge", [3, 32767, 32767, 32767]), ("long", [3, 1000000 % 32768, 30000, 2000]), ("negative", [3, -5, 24, 5]),
        ("none", [3, 0, 0, 0]), ("many", [7, 2, 2, 2]), ("absurd count", [99, 1, 1, 1]),
    ):  # fmt: skip
        yield f"{name} dims", put(40, np.array(shape, "<i2")), True
    for name, value in (("complex", 32), ("rgb", 128), ("unknown", 7777), ("double", 64)):
        yield f"{name} type", put(70, np.array([value], "<i2")), name != "double"
    nan, infinite = np.float32("nan"), np.float32("inf")
    yield "NaN sform", put(280, np.full(12, nan, "<f4")), True
    yield "infinite spacing", put(76, np.full(8, infinite, "<f4")), False
    yield "negative spacing", put(280, np.array([-0.7, 0, 0, 0, 0, -0.8, 0, 0, 0, 0, -2.5, 0], "<f4")), False
    yield "NaN slope", put(112, np.array([nan, nan], "<f4")), False
    yield "infinite slope", put(112, np.array([infinite, 0], "<f4")), False
    yield "huge slope", put(112, np.array([1e30, 0], "<f4")), False
    yield "offset beyond", put(108, np.array([1e9], "<f4")), True
    yield "negative offset", put(108, np.array([-352], "<f4")), False
    header = bytearray(plain[:352])
    header[40:56] = np.array([3, 8000, 8000, 60, 1, 1, 1, 1], "<i2").tobytes()
    yield "bomb", gzip.compress(bytes(header) + bytes(2**24)), True


def _npz_bombs() -> Iterator[tuple[str, bytes, bool]]:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("ct.npy", "w") as member:
        np.lib.format.write_array_header_1_0(
            member, {"descr": "<i2", "fortran_order": False, "shape": (4000, 16000, 16000)}
        )
        for _ in range(16):
            member.write(bytes(2**22))
    yield "bomb", buffer.getvalue(), True
    for name, header in (
        ("pickle", {"descr": "|O", "fortran_order": False, "shape": (5, 24, 20)}),
        ("negative", {"descr": "<i2", "fortran_order": False, "shape": (-5, 24, 20)}),
        ("long", {"descr": "<i2", "fortran_order": False, "shape": (10**12, 1, 1)}),
        ("NaN", {"descr": "<f4", "fortran_order": False, "shape": (5, 24, 20)}),
    ):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive, archive.open("ct.npy", "w") as member:
            np.lib.format.write_array_header_1_0(member, header)
            member.write(np.full(2400, np.nan, "<f4").tobytes())
        yield name, buffer.getvalue(), True


def _png_bombs() -> Iterator[tuple[str, bytes, bool]]:
    def chunk(name: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")

    body = chunk(b"IDAT", zlib.compress(bytes(2**24), 9))
    for side in (60000, 9000, 2**31 - 1):
        header = chunk(b"IHDR", side.to_bytes(4, "big") * 2 + b"\x08\0\0\0\0")
        yield f"bomb of {side}", b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""), True


def _text_mutations(kind: Kind) -> Iterator[tuple[str, bytes, bool]]:
    old, forms = (b"DimSize = 20 24 5", b"DimSize = %s") if kind.name == "mha" else (b"sizes: 20 24 5", b"sizes: %s")
    assert old in kind.data
    for sizes in (
        b"1000000 24 5",
        b"-20 24 5",
        b"0 24 5",
        b"20 24",
        b"20 24 5 7",
        b"9999999999999999999 1 1",
        b"x y z",
    ):
        yield f"sizes {sizes.decode()}", kind.data.replace(old, forms % sizes), True
    for name in (b"ElementSpacing = 0.7", b"space directions: (0.7"):
        for value in (b"nan", b"-1", b"0", b"1e99", b"inf"):
            if name in kind.data:
                new = name.replace(b"0.7", value)
                wrong = value not in (b"-1",) or kind.name == "mha"
                yield f"spacing {value.decode()}", kind.data.replace(name, new), wrong


def judge(case: Case) -> dict[str, Any]:
    """Read one case and say what came of it: right, changed, refused, or what must never be."""
    from medvlp.errors import UserError

    started = time.perf_counter()
    try:
        verdict = _verdict(case, case.read())
    except UserError as error:
        verdict = "refused" if error.what and error.where and error.fix else "refused without a reason"
        if "Doe" in str(error):
            verdict = "quotes a value of the file"
    except Exception as error:
        verdict = f"raised {type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    return {"kind": case.kind, "how": case.how, "verdict": verdict, "seconds": round(seconds, 3)}


def _verdict(case: Case, array: np.ndarray) -> str:
    if array.shape == case.sound.shape and np.array_equal(array, case.sound):
        return "same"
    if case.must_fail and not case.opaque:
        return "accepted what is no image"
    if case.checksum:
        return "changed in spite of a checksum"
    if case.opaque:
        return "changed, which cannot be told"
    if array.shape == case.sound.shape and case.changed_bytes is not None:
        wide = 8 if case.kind == "seg" else 1
        if (array != case.sound).sum() <= wide * case.changed_bytes:
            return "changed where bytes were"
    return "as another reader reads it" if _agrees(case, array) else "changed without a reason"


def _agrees(case: Case, array: np.ndarray) -> bool:
    if case.reference is None:
        return False
    try:
        return np.array_equal(case.reference(case.path), array)
    except Exception:  # the other reader gives up on the file
        return False


def write(line: dict[str, Any]) -> None:
    """Write one line of the report."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Judge every COUNT-th case from FIRST on, with a limit on memory."""
    folder, first, count = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    folder.mkdir(parents=True, exist_ok=True)
    import cv2  # noqa: F401
    import nibabel  # noqa: F401

    import medvlp.io.masks  # noqa: F401

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for number, case in enumerate(cases(folder)):
        if number == 0:
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
        if number % count == first:
            write({"begun": number, "kind": case.kind, "how": case.how})
            write({"number": number, **judge(case)})
    # ru_maxrss of a process counts what its parent held before the exec; VmHWM is its own.
    own = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    peaks = [int(own[1]) if own else 0, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]
    write({"done": True, "peak": max(peaks) * 1024})


if __name__ == "__main__":
    main()
