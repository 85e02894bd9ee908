"""What an adapter says of a volume (scale, geometry, files) makes the reader give the phantom's own HU, in RAS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.sources import SOURCES
from medvlp.sources.phantom.examples import Example, ExampleVolume
from medvlp.sources.phantom.layouts import LAYOUTS
from medvlp.types import Intensity, Study, Volume, VolumeFacts

SPACING = 1.25
SETS: list[tuple[str, dict[str, Any]]] = [
    ("ct_rate", {"version": "v1"}),
    ("ct_rate", {"version": "v2"}),
    ("inspect", {}),
    ("luna16", {}),
    ("merlin", {}),
    ("rad_chestct", {}),
]


def example_volume() -> ExampleVolume:
    """Noise, so that a flip or a swap of axes shows."""
    affine = np.array([[0, 0, SPACING, -120.5], [0, SPACING, 0, 33.25], [SPACING, 0, 0, -700], [0, 0, 0, 1]])
    array = np.random.default_rng(0).integers(-1000, 1500, (6, 7, 8)).astype(np.int16)
    return ExampleVolume(array, affine, np.zeros_like(array, np.uint8))


def write_and_read(name: str, options: dict[str, Any], root: Path) -> tuple[ExampleVolume, Study]:
    volume = example_volume()
    examples = [
        Example(number, number, split=split, sections={"findings": "A mass is seen."}, volume=volume)
        for number, split in enumerate(("train", "val", "test"))
    ]
    LAYOUTS.get(name)(root, options).write(examples)
    return volume, next(iter(SOURCES.get(name)(root, options).studies()))


def read(root: Path, study: Study, place: int = 0) -> Volume:
    image = study.images[place]
    return read_volume(root / image.path, facts=image.facts, files=[root / file for file in image.files])


@pytest.mark.parametrize(("name", "options"), SETS, ids=lambda part: str(part))
def test_hu_and_geometry(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    wanted, study = write_and_read(name, options, tmp_path)
    found = read(tmp_path, study)
    assert found.intensity == "hu"
    assert np.array_equal(found.array, wanted.array)
    assert found.affine is not None
    assert np.allclose(found.affine[:3, :3], wanted.affine[:3, :3])
    assert found.spacing_mm == pytest.approx((SPACING,) * 3)
    if name != "rad_chestct":  # which does not say where a volume lies
        assert np.allclose(found.affine, wanted.affine, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "options"), [("cc_ccii", {}), ("m3d_cap", {"edition": "raw"}), ("m3d_cap", {"edition": "prepared"})]
)
def test_pictures_have_neither_hu_nor_geometry(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    _, study = write_and_read(name, options, tmp_path)
    found = read(tmp_path, study)
    assert (found.intensity, found.affine, found.spacing_mm) == ("stored", None, None)
    assert found.array.shape == (6, 7, 8)
    assert found.array.max() == 255


def test_prepared_arrays_become_grey_values_by_rounding(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([[[[0.0, 0.25], [0.5, 1.0]]]], np.float32))
    facts = VolumeFacts(Intensity.STORED, slope=255.0, intercept=0.0)
    found = read_volume(tmp_path / "x.npy", facts=facts)
    assert found.array.tolist() == [[[0, 64], [128, 255]]]
    assert found.provenance["rounded"] is True
    with pytest.raises(UserError, match="fractions"):
        read_volume(tmp_path / "x.npy", facts=VolumeFacts(Intensity.STORED))
    np.save(tmp_path / "two.npy", np.zeros((2, 1, 2, 2), np.float32))
    with pytest.raises(UserError, match="4 dimensions"):
        read_volume(tmp_path / "two.npy", facts=facts)
