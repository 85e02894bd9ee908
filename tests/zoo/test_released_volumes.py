"""Released checkpoints of volumes, rebuilt key by key: official features, and the same features from a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_files import folder_of, keys_of, tensor_of, wrap
from volume_outputs import VOLUMES

from medvlp.zoo.key_plan import expand_braces, strip_prefixes
from medvlp.zoo.release import Release, read_release
from medvlp.zoo.released import load_released

TOLERANCE = 1e-4
"""Of the largest absolute value of an array."""
SMALL = ("voco_b",)
"""Few numbers to draw, small volumes; the others are in the slow suite."""
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))


@dataclass
class Rebuilt:
    """A file made from a folder of reference values, and what the zoo makes of it."""

    name: str
    folder: Path
    file: Path
    model: Any


@pytest.fixture(
    scope="module", params=[name if name in SMALL else pytest.param(name, marks=SLOW) for name in sorted(VOLUMES)]
)
def rebuilt(
    request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rebuilt]:
    release = read_release(request.param)
    file = tmp_path_factory.mktemp("zoo") / f"{request.param}.pt"
    torch.save(wrap(volume_weights(oracles, release), release.container), file)
    model, _ = load_released(release, file)
    yield Rebuilt(request.param, folder_of(oracles, request.param), file, model)
    file.unlink()


def volume_weights(oracles: Path, release: Release) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by the weights rule; those that are ignored by name are zeros, without cost."""
    folder, keys = folder_of(oracles, release.name), keys_of(oracles, release.name)
    stored = dict(np.load(folder / "buffers.npz")) if (folder / "buffers.npz").is_file() else {}
    plain = {original: short for short, original in strip_prefixes(keys, release).items()}
    ignored = {name for rule in release.ignored for pattern in rule.keys for name in expand_braces(pattern)}
    state = {}
    for name, (shape, dtype) in keys.items():
        if plain[name] in ignored or 0 in shape:
            state[name] = torch.zeros(1).expand(shape) if shape and 0 not in shape else torch.zeros(shape)
        else:
            state[name] = tensor_of(name, shape, dtype, stored)
    return state


def difference(made: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value."""
    assert made.shape == reference.shape
    return float(np.abs(made - reference).max() / np.abs(reference).max())


def test_features_are_the_official_ones(rebuilt: Rebuilt) -> None:
    reference = dict(np.load(rebuilt.folder / "features.npz"))
    with torch.inference_mode():
        made = VOLUMES[rebuilt.name](rebuilt.model, rebuilt.folder, reference)
    wanted = {name for name in reference if not name.startswith("in_") and name != "image_head"}
    assert made.keys() == wanted, f"not the same: {sorted(wanted ^ made.keys())}"
    errors = {name: difference(made[name].numpy(), reference[name]) for name in sorted(wanted)}
    assert max(errors.values()) <= TOLERANCE, errors
