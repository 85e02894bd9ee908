"""One shard of a store: image files -> pixels and facts -> one Zarr v3 shard file.

Guarantee: the bytes of a shard and its record depend on the raw files and the preprocessing alone. A shard is finished
when its record exists; the record is written after the shard. An image that cannot be read leaves its row empty and is
recorded with the reason.

Shards are not compressed. Measured on 2 busy cores with 9,060 radiographs at 256² (bytes an image; images a second in
random batches of 64 by tensorstore): none 65,552 and 67,000; LZ4 58,274 and 34,000; Zstandard -5 57,754 and 30,000; bit
shuffle with LZ4 51,683 and 18,000; bit shuffle with Zstandard 42,733 and 9,000.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.config.preprocessing import StoredImageConfig
from medvlp.errors import UserError
from medvlp.store.files import write_atomic, write_json

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

ARRAY = "images.zarr"
PROGRESS = ".progress"


@dataclass(frozen=True, slots=True)
class ShardTask:
    """Shard `number` of the store at `out`: image files, relative to `root`, in the order of their array rows."""

    out: Path
    root: Path
    number: int
    shard_images: int
    paths: tuple[str, ...]
    image: StoredImageConfig

    @property
    def record(self) -> Path:
        """File that says that this shard is finished."""
        return self.out / PROGRESS / "shards" / f"{self.number:06d}.json"

    @property
    def file(self) -> Path:
        """The shard itself."""
        return shard_file(self.out, self.number)


def shard_file(store: Path, number: int) -> Path:
    """Return the file of a shard."""
    return store / ARRAY / "c" / str(number) / "0" / "0"


def create_array(out: Path, rows: int, shard_images: int, image: StoredImageConfig) -> None:
    """Write the metadata of the array `[rows size size]`, unless it is there."""
    import zarr

    if (out / ARRAY / "zarr.json").exists():
        return
    memory: dict[str, Any] = {}
    _array(zarr.storage.MemoryStore(memory), rows, shard_images, image)
    write_atomic(out / ARRAY / "zarr.json", memory["zarr.json"].to_bytes(), out / PROGRESS / "tmp")


def _array(store: Any, rows: int, shard_images: int, image: StoredImageConfig) -> Any:
    import zarr

    return zarr.create_array(
        store,
        shape=(rows, image.size, image.size),
        chunks=(1, image.size, image.size),
        shards=(shard_images, image.size, image.size),
        dtype=image.dtype,
        compressors=None,
        fill_value=0,
        dimension_names=("image", "row", "column"),
        zarr_format=3,
    )


def finished(task: ShardTask) -> dict[str, Any] | None:
    """Return the record of a shard, or None if the shard has to be written."""
    try:
        record = json.loads(task.record.read_bytes())
        size = task.file.stat().st_size if record["bytes"] else 0
    except (OSError, ValueError, KeyError):
        return None
    return record if size == record["bytes"] else None


def write_shard(task: ShardTask) -> dict[str, Any]:
    """Read the images of a shard, write the shard and its record, and return the record.

    The record holds `rows` (facts of each good image, `index` = array row), `problems` (index, reason, fix) and
    `bytes`.

    Raises:
        UserError: The shard cannot be written.
    """
    import numpy as np

    size = task.image.size
    pixels = np.zeros((len(task.paths), size, size), dtype=task.image.dtype)
    first = task.number * task.shard_images
    rows, problems = [], []
    for offset, path in enumerate(task.paths):
        try:
            stored, facts = read_image(task.root, path, task.image)
        except UserError as error:
            problems.append({"index": first + offset, "reason": error.what, "fix": error.fix})
            continue
        pixels[offset] = stored
        rows.append({"index": first + offset, **facts})
    data = encode(pixels, task)
    scratch = task.out / PROGRESS / "tmp"
    if data:
        write_atomic(task.file, data, scratch)
    record = {"rows": rows, "problems": problems, "bytes": len(data)}
    write_json(task.record, record, scratch, indent=None)
    return record


def encode(pixels: Shaped[np.ndarray, "n h w"], task: ShardTask) -> bytes:
    """Return the bytes of the shard file; none if every pixel is 0, as Zarr leaves out what equals the fill value."""
    import zarr

    memory: dict[str, Any] = {}
    array = _array(zarr.storage.MemoryStore(memory), len(pixels), task.shard_images, task.image)
    array[:] = pixels
    return memory["c/0/0/0"].to_bytes() if "c/0/0/0" in memory else b""


def read_image(root: Path, path: str, image: StoredImageConfig) -> tuple[Shaped[np.ndarray, "h w"], dict[str, Any]]:
    """Return the stored pixels of one file and its facts: geometry, hashes and mean.

    `sha256` is that of the file, `pixels_sha256` that of the stored pixels (little-endian), `phash` the 64-bit
    perceptual hash of the stored pixels (ImageHash, DCT), `mean` their mean over full scale. Height, width and spacing
    are the file's.

    Raises:
        UserError: The file is missing, broken or refused by the preprocessing.
    """
    import numpy as np

    from medvlp.io import read_radiograph
    from medvlp.io.stored import to_stored

    file = root / path
    try:
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        radiograph = read_radiograph(file, image)
        stored = to_stored(radiograph, image)
    except UserError as error:
        raise UserError(_relative(error.what, root), path, _relative(error.fix, root)) from error
    except FileNotFoundError:
        raise UserError("The file is missing.", path, "Download it again and run the same command.") from None
    except MemoryError:
        raise
    except Exception as error:
        what = _relative(f"The file cannot be read: {type(error).__name__}: {error}", root)
        raise UserError(what, path, "Look whether the file opens in a viewer; download it again.") from error
    full = int(np.iinfo(stored.dtype).max)
    height, width = radiograph.array.shape
    row_mm, column_mm = radiograph.spacing_mm or (float("nan"), float("nan"))
    little = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("<"))
    facts = {
        "height": int(height),
        "width": int(width),
        "spacing_row_mm": float(row_mm),
        "spacing_col_mm": float(column_mm),
        "sha256": sha256,
        "pixels_sha256": hashlib.sha256(little.tobytes()).hexdigest(),
        "phash": perceptual_hash(stored),
        "mean": int(stored.sum(dtype=np.uint64)) / (stored.size * full),
    }
    return stored, facts


def perceptual_hash(pixels: Shaped[np.ndarray, "h w"]) -> str:
    """Return the 64-bit perceptual hash of uint8 or uint16 pixels as 16 hex digits (ImageHash `phash`)."""
    import imagehash
    import numpy as np
    from PIL import Image

    grey = pixels if pixels.dtype == np.uint8 else (pixels >> 8).astype(np.uint8)
    return str(imagehash.phash(Image.fromarray(grey)))


def _relative(text: str, root: Path) -> str:
    """Take the root of the raw data set out of a message: a store names no absolute path."""
    for folder in (root.resolve(), root.absolute(), root):
        if str(folder) not in (".", "/"):
            text = text.replace(f"{folder}/", "")
    return text
