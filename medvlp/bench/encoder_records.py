"""What is known of encoders that were loaded before, so that a resumed run and a plan need not load them again.

Guarantee: a record is found again only while nothing has changed that decides an encoder: its files (size, date), the
libraries, and the code of medvlp. Nothing is computed on the word of a record: an encoder that is loaded for a cell
must have the hash that the cell is named after.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import medvlp
from medvlp.config.base import json_sha256
from medvlp.config.preprocessing import AnyStored
from medvlp.store.files import write_atomic

FOLDER = "encoders"
"""In the results: one file for each encoder and way of storing images."""
_DECIDING = ("config", "data", "io", "knowledge", "methods", "models", "text", "zoo")
"""Packages of medvlp that decide what an encoder is."""
_LIBRARIES = ("torch", "timm", "transformers", "torchvision", "safetensors")


class EncoderRecords:
    """Records in a folder of results.

    Args:
        out: The folder of results; None keeps nothing.
        scratch: Folder on the same disk.
    """

    def __init__(self, out: Path | None, scratch: Path | None = None) -> None:
        self.folder, self.scratch = None if out is None else out / FOLDER, scratch

    def get(self, spec: str, seed: int, stored: AnyStored) -> dict[str, Any] | None:
        """Return the record of an encoder as it is now, or None."""
        if self.folder is None:
            return None
        try:
            found = json.loads(self._file(self.folder, spec, seed, stored).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, spec: str, seed: int, stored: AnyStored, record: dict[str, Any]) -> None:
        """Keep the record of an encoder that was just loaded."""
        if self.folder is not None and self.scratch is not None:
            file = self._file(self.folder, spec, seed, stored)
            write_atomic(file, (json.dumps(record, indent=1) + "\n").encode(), self.scratch)

    @staticmethod
    def _file(folder: Path, spec: str, seed: int, stored: AnyStored) -> Path:
        files = [(str(path), stat.st_size, stat.st_mtime_ns) for path in _files(spec) for stat in [path.stat()]]
        return folder / f"{json_sha256([spec, seed, stored.resolved(), files, _code()])[:24]}.json"


def _files(spec: str) -> Iterator[Path]:
    """Yield every file that a spec names, in its folders too; a run counts by its model alone."""
    kind, colon, rest = spec.partition(":")
    named = [spec]
    if colon and kind in ("zoo", "timm", "hf"):
        rest = rest.partition(":")[2] if kind == "zoo" else rest
        file, _, options = rest.partition("?")
        named = [rest, file, *(value for _, value in parse_qsl(options))]
    for text in dict.fromkeys(named):
        path = Path(text)
        folder = path / "model" if (path / "model").is_dir() else path
        if folder.is_dir():
            yield from sorted(file for file in folder.rglob("*") if file.is_file())
        elif path.is_file():
            yield path
            # The preprocessing of some formats stands beside the weights.
            yield from sorted(path.parent.glob("*.json"))


@cache
def _code() -> str:
    """Return a hash over the dates of all code that decides an encoder, and the versions of the libraries."""
    root = Path(medvlp.__file__).parent
    digest = hashlib.sha256()
    for package in _DECIDING:
        for file in sorted((root / package).rglob("*")):
            if file.suffix in (".py", ".yaml"):
                stat = file.stat()
                digest.update(f"{file.relative_to(root)} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    for name in _LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()
