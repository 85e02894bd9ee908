"""Data sets: one module (or package) per raw data set, each a `Source` that turns its files into `Study` records.

Guarantee: importing this package imports no data set. `SOURCES.names()` lists them, `SOURCES.get(name)` imports one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.registry import Registry

if TYPE_CHECKING:
    from medvlp.sources.base import Source

SOURCES: Registry[Source] = Registry(
    "data set", "medvlp.sources", "medvlp.sources.base:Source", "medvlp.sources", helpers=("cards", "splits")
)
"""All data sets that this installation knows."""
