"""Released checkpoints, rebuilt key by key: official features, and no name that is not accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from released_files import image_of, weights_of, wrap
from released_outputs import outputs

from medvlp.errors import UserError
from medvlp.zoo import load_encoder
from medvlp.zoo.key_plan import KeyPlan, plan_keys, strip_prefixes
from medvlp.zoo.release import read_release, release_names
from medvlp.zoo.released import load_released

TOLERANCE = 1e-4
"""Of the largest absolute value of an array."""


@dataclass
class Rebuilt:
    """A file made from a folder of reference values, and what the zoo makes of it."""

    folder: Path
    file: Path
    model: Any
    plan: KeyPlan

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Names and shapes of the file."""
        import json

        keys = json.loads((self.folder / "keys.json").read_text())["keys"]
        return {name: torch.Size(shape) for name, (shape, _) in keys.items()}


@pytest.fixture(scope="module", params=release_names())
def rebuilt(
    request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rebuilt]:
    name = request.param
    folder = oracles / "zoo" / name
    file = tmp_path_factory.mktemp("zoo") / f"{name}.pt"
    release = read_release(name)
    torch.save(wrap(weights_of(folder), release.container), file)
    model, plan = load_released(release, file)
    yield Rebuilt(folder, file, model, plan)
    file.unlink()


def test_features_are_the_official_ones(rebuilt: Rebuilt) -> None:
    reference = dict(np.load(rebuilt.folder / "features.npz"))
    made = outputs(rebuilt.model, rebuilt.folder, reference)
    wanted = {name for name in reference if not name.startswith("in_") and name != "image_head"}
    assert wanted <= made.keys(), f"not computed: {sorted(wanted - made.keys())}"
    errors = {name: difference(made[name].numpy(), reference[name]) for name in sorted(wanted)}
    assert max(errors.values()) <= TOLERANCE, errors


def difference(made: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value; references hold first rows, every n-th token."""
    made = made[: len(reference)] if made.ndim else made
    if made.ndim >= 3 and made.shape[1] != reference.shape[1]:
        step = next(n for n in range(1, made.shape[1]) if len(range(0, made.shape[1], n)) == reference.shape[1])
        made = made[:, ::step]
    assert made.shape == reference.shape
    return float(np.abs(made - reference).max() / np.abs(reference).max())


def test_the_encoder_gives_the_features_of_pixels_and_its_hash_follows_the_weights(rebuilt: Rebuilt) -> None:
    encoder = load_encoder(f"zoo:{rebuilt.folder.name}:{rebuilt.file}")
    pixels = image_of(rebuilt.folder)
    features = encoder(pixels)
    with torch.inference_mode():
        own = rebuilt.model.encode_image(pixels)
    assert torch.equal(features.pooled, own.pooled)
    assert torch.equal(features.tokens, own.tokens)
    assert encoder.dim == features.pooled.shape[1]
    assert encoder.preprocessing.input.size == pixels.shape[-1]
    assert features.grid[0] * features.grid[1] == features.tokens.shape[1]


def test_every_tensor_of_the_file_has_one_fate(rebuilt: Rebuilt) -> None:
    used = {key for source in rebuilt.plan.sources.values() for key in source.keys}
    names = set(strip_prefixes(rebuilt.shapes, rebuilt.model.release))
    assert used | rebuilt.plan.ignored.keys() == names
    assert not used & rebuilt.plan.ignored.keys()
    assert all(rebuilt.plan.ignored.values())
    assert sum(rebuilt.plan.counts.values()) == len(names)
    assert rebuilt.plan.sources.keys() == rebuilt.model.state_dict().keys()


def test_a_renamed_missing_or_extra_name_fails_and_is_named(rebuilt: Rebuilt) -> None:
    release, shapes = rebuilt.model.release, rebuilt.shapes
    own = {name: value.shape for name, value in rebuilt.model.state_dict().items()}
    names = list(shapes)
    prefix = next((p for p in release.strip if all(name.startswith(p) for name in names)), "")

    def refused(given: dict[str, torch.Size], *expected: str) -> None:
        plain = {name: given[original] for name, original in strip_prefixes(given, release).items()}
        with pytest.raises(UserError) as error:
            plan_keys(own, plain, release, "FILE")
        assert all(name.removeprefix(prefix) in error.value.what for name in expected), error.value.what

    for name in names[:: max(1, len(names) // 40)]:
        without = {key: shape for key, shape in shapes.items() if key != name}
        refused(without | {f"{name}_": shapes[name]}, f"{name}_")
        refused({**shapes, f"{name}_": shapes[name]}, f"{name}_")
        if not _may_be_missing(name.removeprefix(prefix), rebuilt):
            refused(without, name)


def _may_be_missing(name: str, rebuilt: Rebuilt) -> bool:
    """Return whether a rule that leaves the tensor out as a whole has no other tensor."""
    from medvlp.zoo.key_plan import expand_braces

    rules = [rule for rule in rebuilt.model.release.ignored if name in rebuilt.plan.ignored and rule.optional]
    return any([name] == [key for pattern in rule.keys for key in expand_braces(pattern)] for rule in rules) or any(
        rule.pattern is not None for rule in rules
    )


def test_another_shape_fails_and_is_named(rebuilt: Rebuilt) -> None:
    release, shapes = rebuilt.model.release, rebuilt.shapes
    own = {name: value.shape for name, value in rebuilt.model.state_dict().items()}
    plain = {name: shapes[original] for name, original in strip_prefixes(shapes, release).items()}
    victim = next(key for source in rebuilt.plan.sources.values() for key in source.keys)
    with pytest.raises(UserError, match="of another shape") as error:
        plan_keys(own, {**plain, victim: torch.Size([3, 5])}, release, "FILE")
    assert victim in error.value.what
