"""Features of many image files in one Parquet table.

Guarantee: the table appears whole or not at all; it holds the paths as given, features and hashes, and nothing of a
file's headers. A file that cannot be read stands in `<out>.quarantine.jsonl` with reason and next step; the others
go on.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import medvlp
from medvlp.errors import UserError
from medvlp.io import find_images
from medvlp.progress import progress_bar

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from medvlp.zoo.encoder import Encoder

IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg"})
"""A file of a folder with such a name is expected to be an image: if it is none, it is reported, not passed over."""


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

    @property
    def quarantined_share(self) -> float:
        """Share of the files that could not be read."""
        return self.quarantined / max(self.embedded + self.quarantined, 1)


@dataclass(frozen=True)
class _Bad:
    path: str
    reason: str
    fix: str


def embed(
    encoder_spec: str,
    paths: Sequence[Path],
    out: Path,
    *,
    device: str = "cpu",
    batch_size: int = 64,
    num_workers: int = 2,
) -> EmbedSummary:
    """Encode image files and write `path` and `embedding` (the pooled features, float32 [d]), one row per file.

    Args:
        encoder_spec: As `medvlp.load_encoder` takes it.
        paths: Files and folders; folders are searched at any depth.
        out: Parquet file. Its schema metadata hold `medvlp.encoder`, `medvlp.encoder_hash`, `medvlp.preprocessing` and
            `medvlp.version`.
        device: Where the encoder computes, as `medvlp.load_encoder` takes it.
        batch_size: Images at a time.
        num_workers: Threads that read files.

    Raises:
        UserError: No file was given or found, or none of them could be read (the quarantine file says why).
    """
    from medvlp.zoo import load_encoder

    started = time.perf_counter()
    out = Path(out)
    files, bad = _list_files(paths)
    if not files and not bad:
        raise UserError("There is no image to embed.", "", "Give DICOM, PNG or JPEG files, or folders of them.")
    encoder = load_encoder(encoder_spec, device=device)
    quarantine = out.with_name(f"{out.name}.quarantine.jsonl")
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        embedded = _write(encoder, files, part, bad, batch_size, num_workers)
        quarantine.unlink(missing_ok=True)
        if bad:
            lines = [json.dumps(vars(b), ensure_ascii=False) for b in sorted(bad, key=lambda b: b.path)]
            quarantine.write_text("\n".join(lines) + "\n", encoding="utf-8")
        if not embedded:
            raise UserError(f"None of the {len(bad)} files could be read.", quarantine, "Read the reasons there.")
        part.replace(out)
    except OSError as error:
        raise UserError(
            f"The table cannot be written: {error.strerror or error}.", out, "Free space, or another place."
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return EmbedSummary(
        out=out,
        encoder=encoder.name,
        encoder_hash=encoder.hash,
        dim=encoder.dim,
        embedded=embedded,
        quarantined=len(bad),
        quarantine=quarantine if bad else None,
        seconds=time.perf_counter() - started,
    )


def _list_files(paths: Sequence[Path]) -> tuple[list[Path], list[_Bad]]:
    """Return the files to read, each once, in the order given (folders sorted), and what is no file at all."""
    files: dict[Path, None] = {}
    bad: list[_Bad] = []
    for path in map(Path, paths):
        if path.is_dir():
            named = {
                p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "." and p.is_file()
            }
            found = sorted(named | set(find_images(path)))
            files.update(dict.fromkeys(found))
            if not found:
                bad.append(_Bad(str(path), "The folder holds no DICOM, PNG or JPEG file.", "Check the path."))
        elif path.exists():
            files[path] = None
        else:
            bad.append(_Bad(str(path), "The file does not exist.", "Check the path."))
    return list(files), bad


def _write(encoder: Encoder, files: list[Path], part: Path, bad: list[_Bad], batch_size: int, num_workers: int) -> int:
    """Write the table batch by batch, add what cannot be read to `bad`, and return the number of rows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema(encoder)
    rows = 0
    with pq.ParquetWriter(part, schema) as writer, progress_bar("embed", len(files), "images") as advance:
        for names, squares, failed in _batches(encoder, files, batch_size, num_workers):
            bad.extend(failed)
            if squares:
                pooled = encoder.encode_stored(np.stack(squares)).pooled.float().cpu().numpy()
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


def _batches(
    encoder: Encoder, files: list[Path], batch_size: int, num_workers: int
) -> Iterator[tuple[list[str], list[np.ndarray], list[_Bad]]]:
    """Yield names and squares of readable files, and the others, in order; the next batch is read meanwhile."""
    with ThreadPoolExecutor(max(1, num_workers)) as pool:
        ahead: deque[Future[np.ndarray | _Bad]] = deque()
        submitted = 0
        for start in range(0, len(files), batch_size):
            while submitted < min(len(files), start + 2 * batch_size):
                ahead.append(pool.submit(_read, encoder, files[submitted]))
                submitted += 1
            chunk = files[start : start + batch_size]
            results = [(str(path), ahead.popleft().result()) for path in chunk]
            good = [(name, result) for name, result in results if not isinstance(result, _Bad)]
            failed = [result for _, result in results if isinstance(result, _Bad)]
            yield [name for name, _ in good], [square for _, square in good], failed


def _read(encoder: Encoder, path: Path) -> np.ndarray | _Bad:
    try:
        return encoder.preprocess(path)
    except UserError as error:
        return _Bad(str(path), error.what, error.fix)
    except Exception as error:  # one file must not end the work on the others, whatever a decoder does
        return _Bad(str(path), f"{type(error).__name__}: {error}", "Check the file; report the message if it is sound.")
