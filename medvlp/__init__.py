"""medvlp: medical vision-language pre-training for radiographs and CT, judged by one unified benchmark.

Importing this package is light: torch and the other heavy libraries are imported on first use of a name below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvlp.io import read_radiograph, read_volume
    from medvlp.zoo import Encoder, load_encoder

__version__ = "0.1.0"

_LAZY = {
    "Encoder": "medvlp.zoo",
    "load_encoder": "medvlp.zoo",
    "read_radiograph": "medvlp.io",
    "read_volume": "medvlp.io",
}
__all__ = ["Encoder", "__version__", "load_encoder", "read_radiograph", "read_volume"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'medvlp' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
