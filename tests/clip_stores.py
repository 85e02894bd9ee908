"""Small prepared stores of synthetic clips: loops of the heart as videos, operations as single frames."""

from __future__ import annotations

from pathlib import Path

from medvlp.config.prepare import PrepareConfig
from medvlp.sources.phantom.layouts.write import write_layout
from medvlp.store.prepare import prepare


def make_echo(folder: Path, studies: int = 24, size: int = 32) -> Path:
    """Write `folder`/echo: one loop of 24 frames a study, in grey."""
    write_layout("echonet_dynamic", folder / "echo_raw", studies=studies, seed=3)
    prepare(
        PrepareConfig(
            source="echonet_dynamic", root=folder / "echo_raw", out=folder / "echo", video={"size": size}, num_workers=1
        )
    )
    return folder / "echo"


def make_operations(folder: Path, studies: int = 8, size: int = 32) -> Path:
    """Write `folder`/operations: 12 frames of an operation, in colour, one a second."""
    write_layout("cholec80", folder / "cholec_raw", studies=studies, seed=3, options={"edition": "frames"})
    prepare(
        PrepareConfig(
            source="cholec80",
            root=folder / "cholec_raw",
            out=folder / "operations",
            image={"size": size},
            options={"edition": "frames"},
            num_workers=1,
        )
    )
    return folder / "operations"
