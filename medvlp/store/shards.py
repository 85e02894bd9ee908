"""One shard of a store: raw files -> arrays and facts -> files of Zarr v3 arrays.

Guarantee: the bytes of a shard and its record depend on the raw files and the preprocessing alone. A shard is finished
when its record exists; the record is written after the files. What cannot be read leaves its place empty and is
recorded with the reason.

A shard is a fixed number of images, one volume, or one clip. Images are rows of one array, one Zarr shard for each
shard; volumes and clips are arrays of their own, each one file. The masks of an image shard or a clip are one Zarr
shard of `masks.zarr`, the label map of a volume is an array like the volume's own.

Images are not compressed. Measured on 2 busy cores with 9,060 radiographs at 256² (bytes an image; images a second in
random batches of 64 by tensorstore): none 65,552 and 67,000; LZ4 58,274 and 34,000; Zstandard -5 57,754 and 30,000; bit
shuffle with LZ4 51,683 and 18,000; bit shuffle with Zstandard 42,733 and 9,000.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.preprocessing import AnyStored, StoredImageConfig, StoredVideoConfig, StoredVolumeConfig
from medvlp.store.files import atomic_file, write_atomic, write_json, writing
from medvlp.store.identifiers import without_values
from medvlp.store.raw_items import Item, Kind, read_item
from medvlp.store.zarr_files import (
    Layout,
    array_metadata,
    encoded_chunks,
    group_metadata,
    one_shard,
    write_shard_file,
)

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

    from medvlp.types import ImageRef, Mask

IMAGES_ARRAY, MASKS_ARRAY = "images.zarr", "masks.zarr"
VOLUMES, LABELS, CLIPS = "volumes.zarr", "labels.zarr", "clips.zarr"
PROGRESS = ".progress"

FRAMES_PER_CHUNK = 16
_AXES = ("depth", "height", "width")


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Shard `number` of the store at `out`, with images, relative to `root`, in the order of their array rows.

    Args:
        out: Folder of the store.
        root: Of the raw data set.
        kind: What the store holds.
        number: Of the shard.
        shard_images: Images of a whole shard; 1 for volumes and clips.
        images: Those of this shard.
        masks: Those of each image.
        shard_masks: Rows of `masks.zarr` that belong to one shard: the most masks that any shard has.
        config: How images, volumes or clips are stored.
        private: Take values and paths out of the reasons that are recorded.
        threads: Threads that encode; they change no byte.
    """

    out: Path
    root: Path
    kind: Kind
    number: int
    shard_images: int
    images: tuple[ImageRef, ...]
    masks: tuple[tuple[Mask, ...], ...]
    shard_masks: int
    config: AnyStored
    private: bool = False
    threads: int = 1

    @property
    def first(self) -> int:
        """Index of the first image."""
        return self.number * self.shard_images

    @property
    def record(self) -> Path:
        """File that says that this shard is finished."""
        return self.out / PROGRESS / "shards" / f"{self.number:06d}.json"

    @property
    def files(self) -> tuple[Path, ...]:
        """Files that the shard can have."""
        if self.kind == "volume":
            arrays = [array_folder(self.out / name, self.number) for name in (VOLUMES, LABELS)]
            return tuple(file for array in arrays for file in _files_of(array))
        masks = shard_file(self.out / MASKS_ARRAY, self.number, 3)
        if self.kind == "video":
            array = array_folder(self.out / CLIPS, self.number)
            return (array / "zarr.json", shard_file(array, 0, clip_axes(self.config)), masks)
        return (shard_file(self.out / IMAGES_ARRAY, self.number, len(image_layout(1, 1, self.config).shape)), masks)


def array_folder(group: Path, index: int) -> Path:
    """Return the folder of the array of one volume or clip."""
    return group / f"{index:06d}"


def shard_file(array: Path, number: int, dimensions: int) -> Path:
    """Return the file of shard `number` along the first axis of an array."""
    return array.joinpath("c", str(number), *["0"] * (dimensions - 1))


def _files_of(volume: Path) -> tuple[Path, Path]:
    return volume / "zarr.json", shard_file(volume, 0, 3)


def clip_axes(config: AnyStored) -> int:
    """Return the number of axes of a stored clip."""
    return 4 if isinstance(config, StoredVideoConfig) and config.colour == "keep" else 3


def image_layout(rows: int, shard_images: int, config: AnyStored) -> Layout:
    """Return the layout of the array of images, `[rows s s]` or `[rows s s 3]`."""
    assert isinstance(config, StoredImageConfig)
    square: tuple[int, ...] = (config.size, config.size)
    names: tuple[str, ...] = ("image", "row", "column")
    if config.colour == "keep":
        square, names = (*square, 3), (*names, "channel")
    return Layout((rows, *square), (1, *square), (shard_images, *square), config.dtype, "none", names)


def mask_layout(shards: int, shard_masks: int, config: AnyStored) -> Layout:
    """Return the layout of the array of masks, `[rows s s]`."""
    assert not isinstance(config, StoredVolumeConfig)
    square = (config.size, config.size)
    shape = (shards * shard_masks, *square)
    return Layout(shape, (1, *square), (shard_masks, *square), "uint8", "zstd", ("mask", "row", "column"))


def volume_layout(shape: tuple[int, ...], dtype: str, config: AnyStored) -> Layout:
    """Return the layout of a volume or its label map, `[d h w]`."""
    assert isinstance(config, StoredVolumeConfig)
    return one_shard(shape, (config.chunk,) * 3, dtype, config.compressor, _AXES)


def clip_layout(shape: tuple[int, ...]) -> Layout:
    """Return the layout of a clip, `[f s s]` or `[f s s 3]`."""
    names = ("frame", "row", "column", "channel")[: len(shape)]
    return one_shard(shape, (min(FRAMES_PER_CHUNK, shape[0]), *shape[1:]), "uint8", "lz4", names)


def create_arrays(out: Path, kind: Kind, images: int, shard_images: int, shard_masks: int, config: AnyStored) -> None:
    """Write the metadata that all shards share, unless it is there."""
    files: dict[str, bytes] = {}
    if kind == "image":
        files[IMAGES_ARRAY] = array_metadata(image_layout(images, shard_images, config))
    elif kind == "video":
        files[CLIPS] = group_metadata()
    else:
        files[VOLUMES] = group_metadata()
        if shard_masks:
            files[LABELS] = group_metadata()
    if shard_masks and kind != "volume":
        files[MASKS_ARRAY] = array_metadata(mask_layout(-(-images // shard_images), shard_masks, config))
    for name, data in files.items():
        if not (out / name / "zarr.json").exists():
            write_atomic(out / name / "zarr.json", data, out / PROGRESS / "tmp")


def finished(task: ShardTask) -> dict[str, Any] | None:
    """Return the record of a shard, or None if the shard has to be written."""
    try:
        record = json.loads(task.record.read_bytes())
        sizes = record["bytes"]
    except (OSError, ValueError, KeyError):
        return None
    return record if sizes == file_sizes(task) else None


def file_sizes(task: ShardTask) -> list[int]:
    """Return the size of each of the shard's files in bytes, 0 for one that is not there."""
    return [file.stat().st_size if file.exists() else 0 for file in task.files]


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Read the images of a shard, write its files and its record, and return the record.

    The record holds `rows` (facts of each good image, `index` = its place), `masks` (facts of each good mask, `image` =
    the index of its image), `problems` (`index`, `part`, `reason`, `fix`) and `bytes` (size of each file).

    Raises:
        UserError: The shard cannot be written.
    """
    record: dict[str, Any] = {"rows": [], "masks": [], "problems": []}
    written = _WRITERS[task.kind](task, record)
    for file in set(task.files) - written:
        with writing(file):
            file.unlink(missing_ok=True)
    record["bytes"] = file_sizes(task)
    write_json(task.record, record, task.out / PROGRESS / "tmp", indent=None)
    return record


def read_image(task: ShardTask, offset: int) -> Item:
    """Read one image, volume or clip of a shard, and write nothing."""
    return read_item(task.root, task.kind, task.images[offset], task.masks[offset], task.config)


def _write_images(task: ShardTask, record: dict[str, Any]) -> set[Path]:
    layout = image_layout(1, task.shard_images, task.config)
    pixels: list[bytes | None] = []
    masks: list[bytes | None] = []
    for offset in range(len(task.images)):
        item = read_image(task, offset)
        pixels += [None] if item.array is None else encoded_chunks(item.array[None], layout, 1)
        masks += _note(task, record, offset, item, len(masks))
    return _write_chunks(task.files[0], task, pixels, task.shard_images) | _write_masks(task, task.files[1], masks)


def _write_volume(task: ShardTask, record: dict[str, Any]) -> set[Path]:
    item = read_image(task, 0)
    written: set[Path] = set()
    if item.array is not None:
        with ThreadPoolExecutor(len(item.later), thread_name_prefix="medvlp-hash") as pool:
            later = {name: pool.submit(compute) for name, compute in item.later.items()}
            written |= _write_array(task, array_folder(task.out / VOLUMES, task.number), item.array)
            item.facts |= {name: future.result() for name, future in later.items()}
    if item.labels is not None:
        written |= _write_array(task, array_folder(task.out / LABELS, task.number), item.labels)
    _note(task, record, 0, item, 0)
    return written


def _write_clip(task: ShardTask, record: dict[str, Any]) -> set[Path]:
    item = read_image(task, 0)
    written: set[Path] = set()
    if item.array is not None:
        written |= _write_array(task, array_folder(task.out / CLIPS, task.number), item.array)
    return written | _write_masks(task, task.files[2], _note(task, record, 0, item, 0))


_WRITERS = {"image": _write_images, "volume": _write_volume, "video": _write_clip}


def _note(task: ShardTask, record: dict[str, Any], offset: int, item: Item, taken: int) -> list[bytes | None]:
    """Record an item, and return its encoded masks: one for each planned row, None where a mask is bad.

    Args:
        task: The shard.
        record: Gets the facts and problems.
        offset: Place of the item in the shard.
        item: What was read.
        taken: Rows of the shard's masks that earlier items have.
    """
    index = task.first + offset
    problems = map(_anonymous, item.problems) if task.private else item.problems
    record["problems"] += [{"index": index, **problem} for problem in problems]
    if item.array is not None:
        record["rows"].append({"index": index, **item.facts})
    record["masks"] += [{"image": index, "index": index, **facts} for facts in item.structures]
    if task.kind == "volume":
        return []
    masks: list[bytes | None] = [None] * len(task.masks[offset])
    for number, (facts, mask) in item.masks.items():
        row = task.number * task.shard_masks + taken + number
        record["masks"].append({"image": index, "index": row, **facts})
        (masks[number],) = encoded_chunks(mask[None], mask_layout(1, task.shard_masks, task.config), 1)
    return masks


def _anonymous(problem: dict[str, Any]) -> dict[str, Any]:
    kept = {"part": problem["part"], "reason": without_values(problem["reason"])}
    return kept | {"fix": without_values(problem["fix"])}


def _write_masks(task: ShardTask, file: Path, masks: list[bytes | None]) -> set[Path]:
    return _write_chunks(file, task, masks, task.shard_masks)


def _write_chunks(path: Path, task: ShardTask, chunks: list[bytes | None], cells: int) -> set[Path]:
    """Write a shard of ready chunks; none at all need no file."""
    if all(chunk is None for chunk in chunks):
        return set()
    with atomic_file(path, task.out / PROGRESS / "tmp") as file:
        write_shard_file(file, chunks, cells)
    return {path}


def _write_array(task: ShardTask, folder: Path, array: Shaped[np.ndarray, " ..."]) -> set[Path]:
    """Write a volume, label map or clip: its metadata and its one file."""
    layout = (
        clip_layout(array.shape) if task.kind == "video" else volume_layout(array.shape, array.dtype.name, task.config)
    )
    scratch = task.out / PROGRESS / "tmp"
    path = shard_file(folder, 0, array.ndim)
    with atomic_file(path, scratch) as file:
        write_shard_file(file, encoded_chunks(array, layout, task.threads), layout.cells)
    write_atomic(folder / "zarr.json", array_metadata(layout), scratch)
    return {path, folder / "zarr.json"}
