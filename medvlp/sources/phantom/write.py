"""Writing of a phantom data set: many studies, over processes, one folder each.

Guarantee: the files depend on (seed, index, sizes) alone, whatever the number of workers. A study's folder appears
whole or not at all (it is renamed into place); a second run keeps the studies whose files are all there with the
recorded SHA-256 and makes the others again. `studies.jsonl` is written last.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import shutil
import struct
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from medvlp.errors import UserError
from medvlp.progress import progress_bar
from medvlp.sources.phantom.findings import CHEXPERT
from medvlp.sources.phantom.study import PhantomStudy, generate_study

FORMAT = 1
"""Version of the raw layout; the data card names the same."""
_CHUNK = 8


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a study besides its index."""

    seed: int
    size: int
    image_size: int
    volumes: bool
    format: int = FORMAT


def write_phantom(
    out: Path,
    studies: int,
    seed: int,
    size: int = 128,
    num_workers: int = 0,
    volumes: bool = False,
    image_size: int = 256,
) -> None:
    """Write a raw phantom data set, or finish one that was begun.

    Args:
        out: Folder of the data set; made if missing.
        studies: Number of studies.
        seed: Seed of the data set.
        size: Voxels per axis of the volumes.
        num_workers: Processes; 0 works in this one.
        volumes: Also write volumes and 3D masks as NIfTI.
        image_size: Pixels per side of a radiograph.

    Raises:
        UserError: `out` holds another data set, an argument is out of range, or the disk cannot be written.
    """
    for name, value, least in (
        ("studies", studies, 1),
        ("size", size, 32),
        ("image_size", image_size, 64),
        ("seed", seed, 0),
    ):
        if value < least:
            raise UserError(f"{name} is {value}, but at least {least} is needed.", name, f"Give {name} >= {least}.")
    settings = Settings(seed, size, image_size, volumes)
    out = Path(out)
    try:
        _begin(out, settings)
        _fill(out, studies, settings, num_workers)
        _finish(out, studies)
    except OSError as error:
        raise UserError(
            f"The phantom cannot be written: {error.strerror or error}.",
            error.filename or out,
            "Free space or choose a folder that can be written, then run the same command again: it goes on.",
        ) from error


def _begin(out: Path, settings: Settings) -> None:
    out.mkdir(parents=True, exist_ok=True)
    marker = out / "phantom.json"
    if marker.is_file():
        found = json.loads(marker.read_text(encoding="utf-8"))
        ours = asdict(settings)
        different = [k for k in ("seed", "size", "image_size", "format") if found.get(k) != ours[k]]
        if different:
            facts = ", ".join(f"{k} {found.get(k)} there, {ours[k]} asked for" for k in different)
            raise UserError(
                f"The folder holds another phantom: {facts}.", out, "Choose another folder, or delete this one."
            )
    elif any(out.iterdir()):
        raise UserError("The folder is not empty and holds no phantom.", out, "Choose an empty or new folder.")
    _write_atomic(marker, json.dumps(asdict(settings), indent=1).encode())


def _fill(out: Path, studies: int, settings: Settings, num_workers: int) -> None:
    chunks = [range(start, min(start + _CHUNK, studies)) for start in range(0, studies, _CHUNK)]
    with progress_bar("phantom", studies, "studies") as advance:
        if num_workers <= 0:
            for chunk in chunks:
                for index in chunk:
                    advance(1, kept=_one(out, index, settings))
            return
        context = get_context("spawn")
        with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker) as pool:
            futures = {pool.submit(_several, out, chunk, settings): len(chunk) for chunk in chunks}
            try:
                for future in as_completed(futures):
                    future.result()
                    advance(futures[future])
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise


def _start_worker() -> None:
    import threadpoolctl  # type: ignore[import-untyped]

    cv2.setNumThreads(1)
    threadpoolctl.threadpool_limits(1)


def _several(out: Path, indices: range, settings: Settings) -> None:
    for index in indices:
        _one(out, index, settings)


def _one(out: Path, index: int, settings: Settings) -> bool:
    """Make one study unless it is complete; return whether it was kept."""
    folder = out / "studies" / f"s{index:06d}"
    if _complete(folder, settings):
        return True
    study = generate_study(settings.seed, index, settings.size, settings.image_size)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    row = _write_study(study, part, settings)
    (part / "study.json").write_text(json.dumps(row, allow_nan=False), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return False


def _complete(folder: Path, settings: Settings) -> bool:
    try:
        row = json.loads((folder / "study.json").read_text(encoding="utf-8"))
        same = {k: v for k, v in row["settings"].items() if k != "volumes"} == {
            k: v for k, v in asdict(settings).items() if k != "volumes"
        }
        if not same or (settings.volumes and not row["settings"]["volumes"]):
            return False
        return all(_sha256((folder / name).read_bytes()) == digest for name, digest in row["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_atomic(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(data)
    part.replace(path)


def _png(image: np.ndarray) -> bytes:
    good, data = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 4])
    if not good:
        raise OSError("OpenCV could not encode a PNG")
    return data.tobytes()


def _known(labels: dict[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(value) else value for name, value in labels.items()}


def _write_study(study: PhantomStudy, folder: Path, settings: Settings) -> dict[str, Any]:
    """Write the files of a study; return its row of `studies.jsonl`."""
    files: dict[str, str] = {}

    def put(name: str, data: bytes) -> str:
        (folder / name).write_bytes(data)
        files[name] = _sha256(data)
        return f"studies/{study.visit.study_id}/{name}"

    images, boxes = [], []
    for image in study.images:
        view = image.view.lower()
        image_id = f"{study.visit.study_id}_{view}"
        height, width = image.pixels.shape
        path = put(f"{view}.png", _png(image.pixels))
        images.append(
            {"image_id": image_id, "path": path, "view": image.view, "height": height, "width": width,
             "spacing_mm": image.spacing_mm}
        )  # fmt: skip
        for number, (finding, mask, box) in enumerate(zip(study.findings, image.masks, image.boxes, strict=True)):
            if box is None:
                continue
            x, y, w, h = box
            mask_path = put(f"mask_{view}_{number}_{finding.name}.png", _png(mask.astype(np.uint8) * 255))
            label = (*CHEXPERT[finding.name], finding.name)[0]
            boxes.append(
                {"image_id": image_id, "number": number, "finding": finding.name, "label": label, "x": x, "y": y,
                 "width": w, "height": h, "mask": mask_path}
            )  # fmt: skip
    put("report.txt", study.report.text.encode())
    volume = _write_volume(study, put) if settings.volumes else None
    return {
        "study_id": study.visit.study_id,
        "patient_id": study.visit.patient_id,
        "visit": study.visit.number,
        "split": study.visit.split,
        "age": study.patient.age,
        "sex": study.patient.sex,
        "view": study.posture.view,
        "images": images,
        "report": study.report.text,
        "style": study.report.style,
        "sections": study.report.sections,
        "triplets": [asdict(triplet) for triplet in study.triplets],
        "labels": study.labels,
        "report_labels": _known(study.report.labels),
        "findings": [{**asdict(finding), "anatomy": finding.anatomy} for finding in study.findings],
        "boxes": boxes,
        "volume": volume,
        "settings": asdict(settings),
        "files": files,
    }


def _write_volume(study: PhantomStudy, put: Any) -> dict[str, Any]:
    bits = np.zeros(study.volume.shape, np.uint16)
    for number, mask in enumerate(study.masks):
        bits[mask.box] |= np.where(mask.inside, np.uint16(1 << number), np.uint16(0))
    return {
        "path": put("volume.nii.gz", nifti(study.volume, study.affine)),
        "masks": put("masks.nii.gz", nifti(bits, study.affine)),
        "lobes": put("lobes.nii.gz", nifti(study.lobes, study.affine)),
        "spacing_mm": list(study.spacing_mm),
        "affine": study.affine.tolist(),
    }


def nifti(volume: np.ndarray, affine: Float[np.ndarray, "4 4"]) -> bytes:
    """Return a gzipped NIfTI-1 file of a volume `[d h w]`.

    Args:
        volume: int16, uint8 or uint16.
        affine: From the array index (d, h, w, 1) to RAS in mm; the file gets it for its own order (w, h, d).
    """
    code, bits = {"int16": (4, 16), "uint8": (2, 8), "uint16": (512, 16)}[volume.dtype.name]
    depth, height, width = volume.shape
    own = affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(own[:3, :3], axis=0)
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, width, height, depth, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, 1.0, *spacing, 1.0, 1.0, 1.0, 1.0)
    struct.pack_into("<3f", header, 108, 352.0, 1.0, 0.0)
    header[123] = 2  # millimetres
    struct.pack_into("<2h", header, 252, 0, 2)  # no qform; the sform is the position in the aligned frame
    struct.pack_into("<12f", header, 280, *own[:3].ravel())
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + np.ascontiguousarray(volume).tobytes(), compresslevel=1, mtime=0)


def _finish(out: Path, studies: int) -> None:
    rows = []
    for index in range(studies):
        row = json.loads((out / "studies" / f"s{index:06d}" / "study.json").read_text(encoding="utf-8"))
        row.pop("settings")
        row.pop("files")
        rows.append(json.dumps(row, allow_nan=False))
    _write_atomic(out / "studies.jsonl", ("\n".join(rows) + "\n").encode())
