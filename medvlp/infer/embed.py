"""Features of many files of images, volumes or clips in one Parquet table.

Guarantee: the table appears whole or not at all; it holds the paths as given, features and hashes, and nothing of a
file's headers. A file that cannot be read stands in `<out>.quarantine.jsonl` with reason and next step; the others
go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import medvlp
from medvlp.errors import UserError
from medvlp.infer.clips import list_clips
from medvlp.infer.images import Bad, list_files, read_ahead, told_by_name, whole_table, write_quarantine
from medvlp.infer.volumes import VolumeFiles, list_volumes
from medvlp.io.volume import read_volume
from medvlp.progress import progress_bar
from medvlp.store.manifest import UNITS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from medvlp.zoo.encoder import Encoder


IMAGES, VOLUMES, CLIPS = 32, 4, 8
"""At a time."""


@dataclass(frozen=True)
class EmbedSummary:
    """What `embed` did. `quarantine` is None where every file could be read."""

    out: Path
    encoder: str
    encoder_hash: str
    dim: int
    embedded: int
    quarantined: int
    quarantine: Path | None
    seconds: float
    unit: str = "images"

    @property
    def quarantined_share(self) -> float:
        """Share of the files that could not be read."""
        return self.quarantined / max(self.embedded + self.quarantined, 1)


def embed(
    encoder_spec: str,
    paths: Sequence[Path],
    out: Path,
    *,
    intensity: Literal["auto", "hu", "stored"] = "auto",
    device: str = "cpu",
    batch_size: int | None = None,
    num_workers: int = 2,
) -> EmbedSummary:
    """Encode files and write `path` and `embedding` (the pooled features, float32 [d]), one row per file.

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it.
        paths: Files and folders; folders are searched at any depth. For an encoder of volumes files of volumes and
            DICOM series, named by their folder (and `#1`, `#2`, ... where it holds several); for one of clips videos
            and folders of frames.
        out: Parquet file. Its schema metadata hold `medvlp.encoder`, `medvlp.encoder_hash`, `medvlp.preprocessing` and
            `medvlp.version`.
        intensity: What the numbers of files of volumes mean that do not say it.
        device: Where the encoder computes, as `medvlp.load_encoder` takes it.
        batch_size: Images, volumes or clips at a time; None is 32, 4 or 8.
        num_workers: Threads that read files.

    Raises:
        UserError: No file was given or found, or none of them could be read (the quarantine file says why).
    """
    from medvlp.zoo import load_encoder

    started = time.perf_counter()
    out = Path(out)
    encoder = load_encoder(encoder_spec, device=device)
    of_volumes = encoder.kind == "volume"
    files: Sequence[Path | VolumeFiles]
    of_clips = encoder.kind == "video"
    files, bad = list_volumes(paths) if of_volumes else list_clips(paths) if of_clips else list_files(paths)
    files, bad = told_by_name(files, bad)
    if not files and not bad:
        raise UserError("There is nothing to embed.", "", "Give files of what the encoder takes, or folders of them.")
    if intensity != "auto" and not of_volumes:
        raise UserError(f"intensity has no effect on {UNITS[encoder.kind]}.", encoder_spec, "Leave it out.")
    batch_size = batch_size or (VOLUMES if of_volumes else CLIPS if of_clips else IMAGES)
    read = partial(_voxels, encoder, intensity) if of_volumes else encoder.preprocess
    with whole_table(out) as part:
        embedded = _write(encoder, read, files, part, bad, batch_size, num_workers)
        quarantine = write_quarantine(out, bad)
        if not embedded:
            raise UserError(f"None of the {len(bad)} files could be read.", quarantine, "Read the reasons there.")
    return EmbedSummary(
        out=out,
        encoder=encoder.name,
        encoder_hash=encoder.hash,
        dim=encoder.dim,
        embedded=embedded,
        quarantined=len(bad),
        quarantine=quarantine,
        seconds=time.perf_counter() - started,
        unit=UNITS[encoder.kind],
    )


def _voxels(encoder: Encoder, intensity: str, scan: VolumeFiles) -> np.ndarray:
    """Return the voxels of the model input of a volume."""
    config = encoder.preprocessing.stored
    if intensity != "auto":
        config = config.model_copy(update={"intensity": intensity})
    return encoder.preprocess(read_volume(scan.path, config, files=scan.files))  # type: ignore[arg-type]


def _write(
    encoder: Encoder,
    read_one: Callable[[Any], np.ndarray],
    files: Sequence[Path | VolumeFiles],
    part: Path,
    bad: list[Bad],
    batch_size: int,
    num_workers: int,
) -> int:
    """Write the table batch by batch, add what cannot be read to `bad`, and return the number of rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(encoder)
    rows = 0
    with pq.ParquetWriter(part, schema) as writer, progress_bar("embed", len(files), UNITS[encoder.kind]) as advance:
        for read, failed in read_ahead(read_one, files, batch_size, num_workers):
            bad.extend(failed)
            names = [name for name, _ in read]
            if read:
                pooled = encoder.encode_stored(np.stack([square for _, square in read])).pooled.float().cpu().numpy()
                column = pa.FixedSizeListArray.from_arrays(pa.array(pooled.reshape(-1)), encoder.dim)
                writer.write_table(pa.table([pa.array(names), column], schema=schema))
                rows += len(names)
            advance(len(names) + len(failed), quarantined=len(bad))
    return rows


def _schema(encoder: Encoder) -> pa.Schema:
    import pyarrow as pa

    facts = {
        "medvlp.encoder": encoder.name,
        "medvlp.encoder_hash": encoder.hash,
        "medvlp.preprocessing": encoder.preprocessing.model_dump_json(),
        "medvlp.version": medvlp.__version__,
    }
    return pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), encoder.dim))], metadata=facts)
