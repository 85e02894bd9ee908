"""One image, volume or clip of a raw data set -> what a store keeps of it, in memory.

Guarantee: an item depends on its raw files and the configuration alone. What cannot be read becomes a problem with
reason and next step, without a path of the machine; a mask that cannot be read does not cost the image.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvlp.config.preprocessing import AnyStored, StoredImageConfig, StoredVideoConfig, StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.store.digests import file_sha256_once, files_sha256, perceptual_hash, pixels_sha256, source_files, stretched

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Bool, Shaped, UInt8

    from medvlp.types import ImageRef, Mask

Kind = Literal["image", "volume", "video"]

_TWO_DIMENSIONAL = ("CR", "DX", "MG", "RG", "RF", "PX", "IO", "XA")


@dataclass(slots=True)
class Item:
    """What was read: `array` is None where the image cannot be used, and then nothing else is there but `problems`.

    Args:
        array: Stored pixels `[s s]` or `[s s 3]`, voxels `[d h w]`, or frames `[f s s]` or `[f s s 3]`.
        facts: Columns of `images.parquet`.
        later: Further columns, whose computation can run beside the writing of a volume.
        masks: Masks of an image or clip `[s s]` (0 and 1), each with its columns of `masks.parquet`, under the number
            of the mask among those of the image.
        labels: Label map of a volume `[d h w]`.
        structures: Columns of `masks.parquet` of the structures in `labels`.
        problems: `reason`, `fix`, and `part`: image or masks; for a mask its `path`, where it has one.
    """

    array: Shaped[np.ndarray, " ..."] | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    later: dict[str, Callable[[], Any]] = field(default_factory=dict)
    masks: dict[int, tuple[dict[str, Any], UInt8[np.ndarray, "s s"]]] = field(default_factory=dict)
    labels: Shaped[np.ndarray, "d h w"] | None = None
    structures: list[dict[str, Any]] = field(default_factory=list)
    problems: list[dict[str, Any]] = field(default_factory=list)


def read_item(root: Path, kind: Kind, image: ImageRef, masks: Sequence[Mask], config: AnyStored) -> Item:
    """Read one image, volume or clip with its masks; never raises for what is wrong with the raw data."""
    item = Item()
    try:
        with _named_errors(root, image.path):
            _refuse_other_kind(image, kind)
            _READERS[kind](item, root, image, masks, config)
    except UserError as error:
        return Item(problems=[{"part": "image", "reason": error.what, "fix": error.fix}])
    return item


def _refuse_other_kind(image: ImageRef, kind: Kind) -> None:
    what = ""
    if kind == "image" and (len(image.files) > 1 or image.facts is not None):
        what = f"This is a volume ({image.modality}), and the store holds images."
    elif kind == "volume" and image.frame is not None:
        what = "This is one frame of a clip, and the store holds volumes."
    elif kind == "volume" and image.modality in _TWO_DIMENSIONAL:
        what = f"This is an image ({image.modality}), and the store holds volumes."
    elif kind == "video" and (image.facts is not None or image.frame is not None):
        what = f"This is no clip ({image.modality}), and the store holds clips."
    if what:
        raise UserError(what, fix="Prepare images, volumes and clips into stores of their own, as the card says.")


def _read_image(item: Item, root: Path, image: ImageRef, masks: Sequence[Mask], config: StoredImageConfig) -> None:
    import numpy as np

    from medvlp.io import read_radiograph
    from medvlp.io.stored import to_stored

    file = root / image.path
    sha256 = files_sha256([file]) if image.frame is None else file_sha256_once(file)
    frame = {} if image.frame is None else {"frame": image.frame}
    radiograph = read_radiograph(file, config, **frame)
    stored = to_stored(radiograph, config)
    height, width = radiograph.array.shape[:2]
    row_mm, column_mm = radiograph.spacing_mm or (float("nan"), float("nan"))
    full = int(np.iinfo(stored.dtype).max)
    item.array = stored
    item.facts = {
        "height": int(height),
        "width": int(width),
        "spacing_row_mm": float(row_mm),
        "spacing_col_mm": float(column_mm),
        "sha256": sha256,
        "pixels_sha256": pixels_sha256(stored),
        "phash": perceptual_hash(stored),
        "mean": int(stored.sum(dtype=np.uint64)) / (stored.size * full),
    }
    _add_masks(item, root, masks, int(height), int(width), config, {None: None})


def _read_volume(item: Item, root: Path, image: ImageRef, masks: Sequence[Mask], config: StoredVolumeConfig) -> None:
    import cv2
    import numpy as np

    from medvlp.io import read_volume

    files = [root / name for name in image.files]
    volume = read_volume(root / image.path, config, facts=image.facts, files=files)
    array = np.ascontiguousarray(volume.array, dtype=np.int16)
    depth, height, width = array.shape
    slice_mm, row_mm, column_mm = volume.spacing_mm or (float("nan"),) * 3
    item.array = array
    item.facts = {
        "depth": depth,
        "height": height,
        "width": width,
        "spacing_slice_mm": float(slice_mm),
        "spacing_row_mm": float(row_mm),
        "spacing_col_mm": float(column_mm),
        "affine": None if volume.affine is None else json.dumps(np.asarray(volume.affine, dtype=float).tolist()),
        "intensity": str(volume.intensity),
        "hu_applied": _flag(volume.provenance.get("hu_applied")),
        "phash": perceptual_hash(stretched(array[depth // 2])),
        "mean": int(cv2.sumElems(array.reshape(-1, width))[0]) / array.size,  # exact: whole numbers below 2**53
    }
    item.later = {
        "sha256": partial(files_sha256, files or source_files(root / image.path)),
        "pixels_sha256": partial(pixels_sha256, array),
    }
    if not masks:
        return
    from medvlp.io.label_map import count_values
    from medvlp.io.masks import read_volume_labels

    known = image.facts.label_values if image.facts else ()
    try:
        with _named_errors(root, image.path):
            labels, names = read_volume_labels(root, masks, volume, known_values=known)
            if labels.shape != array.shape:
                raise UserError(f"The masks are {labels.shape}, the volume is {array.shape}.", fix="Check the masks.")
    except UserError as error:
        path = next((mask.path for mask in masks if mask.path), None)
        item.problems.append({"part": "masks", "reason": error.what, "fix": error.fix, "path": path})
        return
    item.labels = np.ascontiguousarray(labels)
    voxels = count_values(item.labels, max(names, default=0) + 1)
    digest_of_labels = pixels_sha256(item.labels)
    item.structures = [
        {"label": name, "value": int(value), "voxels": int(voxels[value]), "sha256": digest_of_labels}
        for value, name in sorted(names.items())
    ]


def _read_clip(item: Item, root: Path, image: ImageRef, masks: Sequence[Mask], config: StoredVideoConfig) -> None:
    import numpy as np

    from medvlp.io import read_clip

    files = [root / name for name in image.files]
    sha256 = files_sha256(files or source_files(root / image.path))
    clip = read_clip(root / image.path, config)
    item.array = np.ascontiguousarray(clip.array, dtype=np.uint8)
    frames = len(item.array)
    middle = item.array[frames // 2]
    height, width = int(clip.provenance["height"]), int(clip.provenance["width"])
    item.facts = {
        "height": height,
        "width": width,
        "frames": frames,
        "fps": float("nan") if clip.fps is None else float(clip.fps),
        "sha256": sha256,
        "pixels_sha256": pixels_sha256(item.array),
        "phash": perceptual_hash(middle),
        "mean": int(item.array.sum(dtype=np.uint64)) / (item.array.size * 255),
    }
    kept: dict[int | None, int | None] = {number * config.every: number for number in range(frames)}
    square = StoredImageConfig(size=config.size, aspect=config.aspect)
    _add_masks(item, root, masks, height, width, square, kept)


_READERS: dict[str, Callable[..., None]] = {"image": _read_image, "volume": _read_volume, "video": _read_clip}


def _add_masks(
    item: Item,
    root: Path,
    masks: Sequence[Mask],
    height: int,
    width: int,
    config: StoredImageConfig,
    frames: dict[int | None, int | None],
) -> None:
    """Add masks to an image or clip; `frames` says which frame of the file is which of the store."""
    if not masks:
        return
    from medvlp.io.masks import to_stored_mask

    for number, (mask, read) in enumerate(zip(masks, _each_mask(root, masks, height, width), strict=True)):
        frame = None if None in frames else mask.frame
        if isinstance(read, UserError) or frame not in frames:
            reason, fix = f"Frame {mask.frame} of the mask is not in the clip.", "Set video.every=1, or mend the mask."
            if isinstance(read, UserError):
                reason, fix = read.what, read.fix
            item.problems.append({"part": "masks", "reason": reason, "fix": fix, "path": mask.path})
            continue
        stored = to_stored_mask(read, config)
        facts = {"label": mask.label, "frame": frames[frame], "pixels": int(stored.sum())}
        item.masks[number] = (facts | {"sha256": pixels_sha256(stored)}, stored)


def _each_mask(
    root: Path, masks: Sequence[Mask], height: int, width: int
) -> list[Bool[np.ndarray, "h w"]] | list[Bool[np.ndarray, "h w"] | UserError]:
    """Read masks together, for several can stand in one file; where that fails one by one, to keep the good ones."""
    from medvlp.io.masks import read_image_masks

    try:
        with _named_errors(root, masks[0].path or ""):
            return read_image_masks(root, masks, height, width)
    except UserError:
        pass
    found: list[Any] = []
    for mask in masks:
        try:
            with _named_errors(root, mask.path or ""):
                found += read_image_masks(root, [mask], height, width)
        except UserError as error:
            found.append(error)
    return found


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)


@contextmanager
def _named_errors(root: Path, path: str) -> Iterator[None]:
    """Turn whatever a reader raises into a `UserError` without a path of the machine."""
    try:
        yield
    except UserError as error:
        raise UserError(_relative(error.what, root), path, _relative(error.fix, root)) from error
    except FileNotFoundError:
        raise UserError("The file is missing.", path, "Download it again and run the same command.") from None
    except MemoryError:
        raise
    except Exception as error:
        what = _relative(f"The file cannot be read: {type(error).__name__}: {error}", root)
        raise UserError(what, path, "Look whether the file opens in a viewer; download it again.") from error


def _relative(text: str, root: Path) -> str:
    """Take the root of the raw data set out of a message: a store names no absolute path."""
    for folder in (root.resolve(), root.absolute(), root):
        if str(folder) not in (".", "/"):
            text = re.sub(rf"{re.escape(str(folder))}(?:/|(?![\w.-]))", "", text)
    return text
