"""Zarr arrays of a store, opened on first use and kept open.

Guarantee: reads may come from many threads and after a fork. At most `MOST_OPEN` handles are kept, the last used ones.
A volume or clip whose file is missing is an error, while Zarr would read it as 0.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.store.remote import is_remote, kvstore, reaching

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

INDEX_CACHE_BYTES = 32 << 20
"""Room for the indices of some thousand shards, so that an image or chunk costs one read and not two."""
MOST_OPEN = 1024

_inherited_by_fork = False


def _note_fork() -> None:
    global _inherited_by_fork
    _inherited_by_fork = "tensorstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class OpenArrays:
    """The arrays below a folder.

    Args:
        root: Folder of the store.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._context: Any = None
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._forked: dict[str, Any] = {}
        self._foreign = kvstore(root) is None

    @property
    def _by_zarr(self) -> bool:
        """Whether tensorstore cannot be used: it aborts a forked child of a process that has used it."""
        return _inherited_by_fork or self._foreign

    def rows(self, name: str, rows: np.ndarray) -> Shaped[np.ndarray, "b ..."]:
        """Return rows of an array, in their order, repeats allowed.

        Raises:
            ValueError, OSError: The array cannot be opened or read.
        """
        if self._by_zarr:
            import numpy as np

            with reaching(self.root):
                return np.asarray(self._zarr(name).oindex[rows])
        return self._tensorstore(name)[rows].read().result()

    def region(self, name: str, region: tuple[slice, ...], file: Path | None = None) -> Shaped[np.ndarray, " ..."]:
        """Return a region of an array.

        Args:
            name: Folder of the array, relative to the root.
            region: A slice for each axis, inside the array.
            file: The one file that holds the array's elements; it is looked for when the array is opened.

        Raises:
            ValueError, OSError: The array cannot be opened or read.
        """
        if self._by_zarr:
            with reaching(self.root):
                return self._zarr(name, file)[region]
        return self._tensorstore(name, file)[region].read().result()

    def _tensorstore(self, name: str, file: Path | None = None) -> Any:
        import tensorstore as ts

        with self._lock:
            handle = self._handles.get(name)
            if handle is not None:
                self._handles.move_to_end(name)
                return handle
            if self._context is None:
                self._context = ts.Context({"cache_pool": {"total_bytes_limit": INDEX_CACHE_BYTES}})
        _check(file)
        spec = {
            "driver": "zarr3",
            "kvstore": kvstore(self.root / name),
            "recheck_cached_metadata": "open",
            "recheck_cached_data": "open",
        }
        handle = ts.open(spec, open=True, read=True, context=self._context).result()
        with self._lock:
            self._handles[name] = handle
            if len(self._handles) > MOST_OPEN:
                self._handles.popitem(last=False)
        return handle

    def _zarr(self, name: str, file: Path | None = None) -> Any:
        """Return the array by zarr-python, without the lock: a fork may have copied it as held."""
        import zarr

        handle = self._forked.get(name)
        if handle is None:
            _check(file)
            array = self.root / name
            handle = self._forked[name] = zarr.open_array(str(array) if is_remote(array) else array, mode="r")
            if len(self._forked) > MOST_OPEN:
                self._forked.pop(next(iter(self._forked)), None)
        return handle


def _check(file: Path | None) -> None:
    if file is None:
        return
    with reaching(file):
        there = file.exists()
    if not there:
        raise FileNotFoundError(f"{file.name} of {file.parent.name} is missing: {file}")
