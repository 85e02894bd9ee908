"""Released checkpoints, rebuilt key by key: official features, and no name that is not accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from large_outputs import LARGE
from released_files import folder_of, image_of, keys_of, weights_of, wrap
from released_outputs import OWN, outputs
from volume_outputs import VOLUMES

from medvlp.errors import UserError
from medvlp.zoo import load_encoder
from medvlp.zoo.key_plan import KeyPlan, expand_braces, plan_keys, strip_prefixes
from medvlp.zoo.release import Release, read_release, release_names
from medvlp.zoo.released import build_released, load_released
from medvlp.zoo.released_encoder import released_encoder

OUTPUTS = {**OWN, **LARGE}
TOLERANCE = 1e-4
"""Of the largest absolute value of an array."""
LARGE_FILES = ("arl", "conceptclip", "keep", "llm2clip4cxr_visual", "m3ae", "ptunifier", "raddino")
"""More than 300 million numbers to draw, or images of 518 pixels: values in the slow suite, names always."""
WITHOUT_REFERENCE = ("radclip", "voco_h", "voco_l")
"""Nobody computed features: compared with transformers, or with the names of the smaller file."""
NAMES = [name for name in release_names() if name not in WITHOUT_REFERENCE]
CLIPS = ("echoprime",)
IMAGES = [name for name in NAMES if name not in VOLUMES and name not in CLIPS]
SLOW = (pytest.mark.slow, pytest.mark.timeout(1800))


@dataclass
class Rebuilt:
    """A file made from a folder of reference values, and what the zoo makes of it."""

    name: str
    folder: Path
    file: Path
    model: Any


@dataclass
class Names:
    """The names and shapes of a file, and the account of them; no value is needed."""

    release: Release
    own: dict[str, torch.Size]
    given: dict[str, torch.Size]
    plan: KeyPlan


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=SLOW) if name in LARGE_FILES else name for name in IMAGES],
)
def rebuilt(
    request: pytest.FixtureRequest, oracles: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Rebuilt]:
    folder = folder_of(oracles, request.param)
    file = tmp_path_factory.mktemp("zoo") / f"{request.param}.pt"
    release = read_release(request.param)
    torch.save(wrap(weights_of(oracles, request.param), release.container), file)
    model, _ = load_released(release, file)
    yield Rebuilt(request.param, folder, file, model)
    file.unlink()


@pytest.fixture(scope="module", params=NAMES)
def names(request: pytest.FixtureRequest, oracles: Path) -> Names:
    release = read_release(request.param)
    given = {name: torch.Size(shape) for name, (shape, _) in keys_of(oracles, request.param).items()}
    # MONAI's Swin reads numbers while it is built.
    with torch.device("cpu" if release.image.kind == "volume" and release.image.family == "swin" else "meta"):
        own = {name: value.shape for name, value in build_released(release).state_dict().items()}
    return Names(release, own, given, account(own, given, release))


def account(own: dict[str, torch.Size], given: dict[str, torch.Size], release: Release) -> KeyPlan:
    plain = {name: given[original] for name, original in strip_prefixes(given, release).items()}
    return plan_keys(own, plain, release, "FILE")


def test_features_are_the_official_ones(rebuilt: Rebuilt) -> None:
    reference = dict(np.load(rebuilt.folder / "features.npz"))
    with torch.inference_mode():
        made = OUTPUTS.get(rebuilt.name, outputs)(rebuilt.model, rebuilt.folder, reference)
    wanted = {name for name in reference if not name.startswith("in_") and name != "image_head"}
    if rebuilt.name == "arl":  # its fusion has no reference
        wanted = {name for name in wanted if name.startswith(("tokens", "pooled", "text"))}
    assert wanted <= made.keys(), f"not computed: {sorted(wanted - made.keys())}"
    errors = {name: difference(made[name].numpy(), reference[name]) for name in sorted(wanted)}
    assert max(errors.values()) <= TOLERANCE, errors


def test_rad_dino_of_small_images(oracles: Path, tmp_path: Path) -> None:
    torch.save(weights_of(oracles, "raddino"), tmp_path / "pytorch_model.bin")
    model, _ = load_released(read_release("raddino"), tmp_path)
    folder = folder_of(oracles, "raddino")
    reference, small = np.load(folder / "features.npz"), image_of(folder, [2, 3, 224, 224])
    with torch.inference_mode():
        by_size, by_factor = model.encode_image(small), model.encode_image(small, "dinov2")
    made = {"pooled_224_size": by_size.pooled, "tokens_224_size": by_size.tokens, "pooled_224_scale": by_factor.pooled}
    errors = {name: difference(values.numpy(), reference[name]) for name, values in made.items()}
    # The two ways to resize positions differ by 6e-5.
    assert max(errors.values()) <= 1e-5, errors


def difference(made: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference as a share of the largest value; references hold first rows, every n-th token."""
    made = made[: len(reference)] if made.ndim else made
    if made.ndim >= 3 and made.shape[1] != reference.shape[1]:
        step = next(n for n in range(1, made.shape[1]) if len(range(0, made.shape[1], n)) == reference.shape[1])
        made = made[:, ::step]
    assert made.shape == reference.shape
    return float(np.abs(made - reference).max() / np.abs(reference).max())


def test_the_encoder_gives_the_features_of_pixels(rebuilt: Rebuilt) -> None:
    encoder = released_encoder(rebuilt.model)
    pixels = image_of(rebuilt.folder)[:1]
    features = encoder(pixels)
    with torch.inference_mode():
        own = rebuilt.model.encode_image(pixels)
    assert torch.equal(features.pooled, own.pooled)
    assert torch.equal(features.tokens, own.tokens)
    assert encoder.dim == features.pooled.shape[1]
    assert encoder.preprocessing.input.size == pixels.shape[-1]
    assert features.grid[0] * features.grid[1] == features.tokens.shape[1]


@pytest.mark.parametrize(("name", "prefix"), [("mflag", "encoder."), ("refers", "visual.vit.")])
def test_a_file_of_the_image_tower_alone_is_the_same_encoder(
    oracles: Path, tmp_path: Path, name: str, prefix: str
) -> None:
    state = {key.removeprefix(prefix): value for key, value in weights_of(oracles, name, prefix).items()}
    if name == "refers":  # the rest of the whole model, whose names nobody published
        state |= {"textual.embedding.words.weight": torch.ones(3, 2), "fusion.layers.0.bias": torch.ones(2)}
    torch.save(state, tmp_path / "x.pth")
    encoder = load_encoder(f"zoo:{name}:{tmp_path / 'x.pth'}")
    features = encoder(image_of(folder_of(oracles, name)))
    reference = np.load(folder_of(oracles, name) / "features.npz")
    assert difference(features.tokens.numpy(), reference["tokens"]) <= TOLERANCE
    assert difference(features.pooled.numpy(), reference["pooled"]) <= TOLERANCE
    assert not encoder.has_text


def test_every_tensor_of_the_file_has_one_fate(names: Names) -> None:
    plan = names.plan
    used = {key for source in plan.sources.values() for key in source.keys}
    plain = set(strip_prefixes(names.given, names.release))
    assert used | plan.ignored.keys() == plain
    assert not used & plan.ignored.keys()
    assert all(plan.ignored.values())
    assert sum(plan.counts.values()) == len(plain)
    assert plan.sources.keys() == names.own.keys()


def test_a_renamed_missing_or_extra_name_fails_and_is_named(names: Names) -> None:
    shapes = names.given
    prefix = next((p for p in names.release.strip if all(name.startswith(p) for name in shapes)), "")

    def refused(given: dict[str, torch.Size], expected: str) -> None:
        with pytest.raises(UserError) as error:
            account(names.own, given, names.release)
        assert expected.removeprefix(prefix) in error.value.what

    for name in list(shapes)[:: max(1, len(shapes) // 40)]:
        without = {key: shape for key, shape in shapes.items() if key != name}
        refused(without | {f"{name}_": shapes[name]}, f"{name}_")
        refused({**shapes, f"{name}_": shapes[name]}, f"{name}_")
        if not _may_be_missing(name.removeprefix(prefix), names):
            refused(without, name)


def _may_be_missing(name: str, names: Names) -> bool:
    """Return whether no rule can tell that the tensor is not there: a pattern, or one name that files may lack."""
    if any(rule.optional and rule.ours in names.own and name in rule.file for rule in names.release.keys):
        return True
    return any(
        (rule.pattern is not None and re.fullmatch(rule.pattern, name))
        or (rule.optional and [name] == [key for pattern in rule.keys for key in expand_braces(pattern)])
        for rule in names.release.ignored
    )


def test_another_shape_fails_and_is_named(names: Names) -> None:
    victim = next(key for source in names.plan.sources.values() for key in source.keys)
    plain = strip_prefixes(names.given, names.release)
    with pytest.raises(UserError, match="of another shape") as error:
        account(names.own, {**names.given, plain[victim]: torch.Size([3, 5])}, names.release)
    assert victim in error.value.what
