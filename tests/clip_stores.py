"""Small prepared stores of synthetic clips, loops of the heart as videos, operations as single frames; and models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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


MVIT: dict[str, Any] = {"family": "mvit", "args": {"stages": [[8, 1, 1], [16, 2, 1]]}}
RESNET: dict[str, Any] = {"family": "frames", "name": "resnet10t"}


def make_model(
    folder: Path,
    stored: dict[str, Any],
    taken: dict[str, Any],
    method: str = "echoprime",
    tower: dict[str, Any] = MVIT,
    options: dict[str, Any] | None = None,
) -> str:
    """Save an untrained model of clips under `folder`, which is returned."""
    import torch

    from medvlp.config.methods import MethodConfig
    from medvlp.config.preprocessing import ClipPreprocessing
    from medvlp.methods import METHODS
    from medvlp.methods._artifact import save_model
    from medvlp.methods.context import MethodContext
    from medvlp.text.tokenizer import Tokenizer

    said = [f"the left ventricular ejection fraction is {n} percent, the volume is {2 * n}" for n in range(100)]
    tokenizer = Tokenizer.train(said, 256)
    config = MethodConfig.model_validate(
        {
            "name": method,
            "image": {"kind": "video", **tower, "input": taken},
            "text": {"hidden": 16, "layers": 4, "heads": 2, "max_tokens": 48, "vocab_size": 256, "pool": "mean"},
            "projection": {"dim": 8},
            "options": options or {},
        }
    )
    torch.manual_seed(0)
    made = METHODS.get(method)(config, MethodContext.of(tokenizer, []))
    preprocessing = ClipPreprocessing.model_validate({"stored": stored, "input": config.image.input})
    save_model(folder / "model", made, preprocessing=preprocessing, tokenizer=tokenizer, record={})
    return str(folder)
