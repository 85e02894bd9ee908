"""Raw layouts: phantom examinations written as any data set would hold them, so that its pipeline can be tried.

Guarantee: importing this package imports no layout. `LAYOUTS.names()` lists them; a layout has the name of its data
set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.registry import Registry

if TYPE_CHECKING:
    from medvlp.sources.phantom.layouts.base import Layout

LAYOUTS: Registry[Layout] = Registry(
    "layout",
    "medvlp.sources.phantom.layouts",
    "medvlp.sources.phantom.layouts.base:Layout",
    "medvlp.layouts",
    helpers=("write",),
)
"""All raw layouts that the phantom can be written in."""
