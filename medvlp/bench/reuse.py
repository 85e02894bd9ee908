"""Kept predictions of a cell that differs in its statistics alone: they are scored again, and nothing is trained.

Guarantee: predictions are taken over only where everything that decides them is equal (task, settings of the protocol,
code version, store, samples, encoder, seed, draw) and their file says that it is whole and of this version.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.bench.cells import CELL, OK, PREDICTIONS, VALIDATION, Finished
from medvlp.bench.kept import read_predictions
from medvlp.bench.schedule import STATISTICS
from medvlp.config.base import json_sha256
from medvlp.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

    from medvlp.bench.plan import Cell


class KeptPredictions:
    """Predictions of the cells that a folder of results held when they were first asked for.

    Args:
        out: Folder of the results.
    """

    def __init__(self, out: Path) -> None:
        self.out = out

    def of(self, cell: Cell, settings: Mapping[str, Any]) -> tuple[Finished, dict[str, pd.DataFrame]] | None:
        """Return a cell of other statistics, and its predictions by the names of their files; None without one.

        Args:
            cell: What is to be run.
            settings: Settings of its protocol and intervals.
        """
        for found in self.donors(cell, settings):
            with contextlib.suppress(UserError, OSError, ValueError, KeyError, TypeError):
                return found, {name: read_predictions(found, name) for name in (VALIDATION, PREDICTIONS)}
        return None

    def donors(self, cell: Cell, settings: Mapping[str, Any]) -> Iterator[Finished]:
        """Yield the cells of other statistics whose predictions a cell may take over; arguments as for `of`."""
        for folder in self._by_record.get(_about(cell.record()), ()):
            with contextlib.suppress(UserError, KeyError, TypeError):
                found = Finished.read(folder)
                if found.result["status"] == OK and _deciding(found.result["config"]["settings"]) == _deciding(
                    settings
                ):
                    yield found

    @cached_property
    def _by_record(self) -> defaultdict[str, list[Path]]:
        found: defaultdict[str, list[Path]] = defaultdict(list)
        for path in sorted(self.out.glob(f"cells/*/{CELL}")):
            with contextlib.suppress(OSError, ValueError, KeyError):
                found[_about(json.loads(path.read_text(encoding="utf-8")))].append(path.parent)
        return found


def _about(record: Mapping[str, Any]) -> str:
    """Return a hash of all that names a cell but its settings."""
    hashes = {name: value for name, value in record["hashes"].items() if name != "config"}
    return json_sha256({**record, "hashes": hashes})


def _deciding(settings: Mapping[str, Any]) -> str:
    """Return a hash of the settings that decide predictions, as they are on record."""
    return json_sha256(json.loads(json.dumps({key: settings[key] for key in settings if key not in STATISTICS})))
