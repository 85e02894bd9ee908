"""Methods: which towers, which objectives, how they are joined. One file and one YAML in `configs/methods` each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from medvlp.config import methods
from medvlp.registry import Registry

if TYPE_CHECKING:
    from medvlp.methods.base import Method

METHODS: Registry[Method] = methods.METHODS
