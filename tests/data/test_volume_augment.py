"""Changes of volumes against numpy, SciPy and MONAI; the affine leads every changed voxel to where it came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import volume_source as raw
from monai.transforms import Affine, RandFlip
from pydantic import ValidationError
from scipy.ndimage import map_coordinates
from volume_source import SPACING_MM, affine, voxels

from medvlp.config.data import VolumeAugmentConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.demands import VolumeView
from medvlp.data.volume_augment import GRID, NUMBERS, changed, draw_changes, flips, on_device
from medvlp.data.volume_loader import VolumeLoader
from medvlp.errors import UserError
from medvlp.store.array_store import Store

SIZE = (9, 14, 14)
AIR = -1024
RNG = np.random.default_rng(4)
VOLUMES = RNG.integers(-1000, 1500, (5, 1, *SIZE)).astype(np.int16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("volumes")
    raw.run(raw.write(folder / "raw"), folder / "store")
    return Store.open(folder / "store")


def drawn(spacing: tuple[float, ...] = SPACING_MM, n: int = 5, **changes: Any) -> tuple[np.ndarray, np.ndarray]:
    u = np.random.default_rng(1).random((n, NUMBERS))
    config = VolumeAugmentConfig.model_validate(changes)
    return draw_changes(config, u, SIZE, np.tile(spacing, (n, 1)), AIR)


def applied(matrices: np.ndarray, values: np.ndarray) -> np.ndarray:
    return changed(torch.from_numpy(VOLUMES), torch.from_numpy(matrices), torch.from_numpy(values)).numpy()


def test_flips_and_quarter_turns_are_exact() -> None:
    matrices, values = drawn(flip=("d", "h", "w"), rot90=True, n=5)
    out = applied(matrices, values)
    kinds = set()
    for i in range(5):
        places = np.indices(SIZE).reshape(3, -1)
        d, h, w = np.rint(matrices[i, :3, :3] @ places + matrices[i, :3, 3:]).astype(int)
        assert np.array_equal(out[i, 0].ravel(), VOLUMES[i, 0][d, h, w])
        kinds.add(matrices[i].tobytes())
    assert len(kinds) > 3
    u = np.zeros((1, NUMBERS))
    one, values = draw_changes(VolumeAugmentConfig(flip=("w",)), u, SIZE, np.ones((1, 3)), AIR)
    mirrored = applied(np.repeat(one, 5, 0), np.repeat(values, 5, 0))
    assert np.array_equal(mirrored, VOLUMES[..., ::-1])
    assert np.array_equal(mirrored[0], RandFlip(prob=1, spatial_axis=2)(VOLUMES[0]))
    u[0, 3] = 0.3
    one, values = draw_changes(VolumeAugmentConfig(rot90=True), u, SIZE, np.ones((1, 3)), AIR)
    turned = applied(np.repeat(one, 5, 0), np.repeat(values, 5, 0))
    assert np.array_equal(turned, np.rot90(VOLUMES, -1, (3, 4))) or np.array_equal(turned, np.rot90(VOLUMES, 1, (3, 4)))


@pytest.mark.parametrize(
    "how",
    [{"rotate_degrees": (20, 5, 10)}, {"zoom": 0.3}, {"rotate_degrees": (30, 0, 0), "zoom": 0.1, "flip": ("h",)}],
)
def test_turning_and_enlarging_against_scipy_and_monai(how: dict[str, Any]) -> None:
    matrices, values = drawn(**how)
    out = applied(matrices, values)
    for i in range(5):
        places = np.indices(SIZE).reshape(3, -1)
        places = matrices[i, :3, :3] @ places + matrices[i, :3, 3:]
        wide = np.pad(VOLUMES[i, 0].astype(np.float64), 20, constant_values=AIR)
        wanted = map_coordinates(wide, places + 20, order=1).reshape(SIZE)
        assert np.abs(out[i, 0] - wanted).max() <= 0.51
        centred = np.eye(4)
        centred[:3, :3] = matrices[i, :3, :3]
        monai = Affine(affine=centred, padding_mode="zeros", image_only=True)
        theirs = monai(torch.from_numpy(VOLUMES[i].astype(np.float32) - AIR)) + AIR
        assert np.abs(out[i] - np.asarray(theirs)).max() <= 0.6


def test_a_rotation_is_one_of_the_patient_in_millimetres() -> None:
    matrices, _ = drawn(rotate_degrees=(25, 12, 40))
    scale = np.diag(SPACING_MM)
    for matrix in matrices:
        in_mm = scale @ matrix[:3, :3] @ np.linalg.inv(scale)
        assert np.allclose(in_mm @ in_mm.T, np.eye(3))
        assert np.linalg.det(in_mm) == pytest.approx(1)
    about_d, _ = drawn(rotate_degrees=(25, 0, 0))
    assert np.allclose(about_d[:, 0, 1:3], 0)
    assert np.allclose(about_d[:, 1:3, 0], 0)
    unknown, _ = drawn(spacing=(np.nan,) * 3, rotate_degrees=(25, 0, 0))
    assert np.allclose(unknown[:, :3, :3] @ unknown[:, :3, :3].transpose(0, 2, 1), np.eye(3))


def test_values_are_scaled_shifted_and_noisy_as_drawn() -> None:
    matrices, values = drawn(scale=0.2, shift=50)
    wanted = np.rint(VOLUMES * values[:, 0].reshape(-1, 1, 1, 1, 1) + values[:, 1].reshape(-1, 1, 1, 1, 1))
    assert np.abs(applied(matrices, values) - wanted).max() <= 1
    assert (np.abs(values[:, 0] - 1) <= 0.2).all()
    assert (np.abs(values[:, 1]) <= 50).all()
    matrices, values = drawn(noise=40)
    noisy = applied(matrices, values)
    assert np.array_equal(noisy, applied(matrices, values))
    spread = (noisy.astype(float) - VOLUMES).std(axis=(1, 2, 3, 4))
    assert np.allclose(spread, values[:, 2], rtol=0.1, atol=0.4)
    assert len(np.unique(values[:, 3])) == 5
    nothing, values = drawn()
    assert np.array_equal(applied(nothing, values), VOLUMES)


def loader(store: Store, **changes: Any) -> VolumeLoader:
    options: dict[str, Any] = {
        "config": VolumeInputConfig(size=(10, 16, 16), spacing_mm=SPACING_MM),
        "seed": 3,
        "batch_size": 3,
        "augment": VolumeAugmentConfig(),
    }
    return VolumeLoader(store, np.arange(3), **(options | changes))


EXACT = VolumeAugmentConfig(flip=("d", "h", "w"), rot90=True)


def test_every_voxel_of_an_augmented_batch_is_where_its_affine_says(store: Store) -> None:
    views = (VolumeView("inside", (5, 8, 8), 2), VolumeView("local", (8, 12, 12), 2))
    for batch in loader(store, augment=EXACT, views=views, organs=("liver", "spleen")).epoch(1):
        assert GRID in batch.extra
        made = on_device(batch, "cpu")
        assert not [name for name in made.extra if name.startswith("augment")]
        for i, row in enumerate(batch.index.tolist()):
            check_places(row, made.pixels[i, 0], made.extra["affine"][i], voxels(row), AIR)
            check_places(row, made.extra["organs"][i], made.extra["affine"][i], raw.label_map(row), 0)
            for number in (0, 1):
                for k in range(2):
                    place = made.extra[f"affine_{number}"][i, k]
                    check_places(row, made.views[number][i, k, 0], place, voxels(row), AIR)
            d, h, w = made.extra["start_0"][i, 0].tolist()
            assert torch.equal(made.views[0][i, 0, 0], made.pixels[i, 0, d : d + 5, h : h + 8, w : w + 8])


def check_places(row: int, got: torch.Tensor, of_got: torch.Tensor, whole: np.ndarray, outside: int) -> None:
    index = np.stack([*np.indices(tuple(got.shape)).reshape(3, -1), np.ones(got.numel())])
    places = np.rint(np.linalg.solve(affine(row), of_got.numpy() @ index)[:3]).astype(int)
    wide = np.pad(whole.astype(int), 60, constant_values=outside)
    assert np.array_equal(got.numpy().ravel(), wide[tuple(places + 60)])


def test_all_views_of_a_volume_are_mirrored_together_and_the_loader_says_so(store: Store) -> None:
    one = loader(store, augment=VolumeAugmentConfig(flip=("h", "w")), views=(VolumeView("local", (8, 12, 12), 3),))
    seen = set()
    for epoch in range(8):
        batch, mirrored = one.made(epoch, np.arange(3))
        for i in range(3):
            sides = torch.linalg.det(batch.extra[GRID][i]) < 0
            assert bool(sides) == mirrored[i]
            assert ((torch.linalg.det(batch.extra[f"{GRID}_0"][i]) < 0) == sides).all()
            seen.add(bool(sides))
    assert seen == {True, False}


def test_organs_of_a_mirrored_patient_swap_their_sides(tmp_path: Any) -> None:
    class Sided(raw.Volumes):
        name = "phantom"

        def studies(self):  # type: ignore[no-untyped-def]
            for study in super().studies():
                sides = {"liver": "kidney_left", "spleen": "kidney_right"}
                masks = tuple(raw.Mask(m.image_id, sides[m.label], m.path, m.values) for m in study.masks)
                yield raw.Study(study.study_id, study.patient_id, study.images, masks=masks, split="train")

    raw.run(raw.write(tmp_path / "raw"), tmp_path / "store", Sided)
    store = Store.open(tmp_path / "store")
    one = loader(store, augment=VolumeAugmentConfig(flip=("w",)), organs=("kidney_left",))
    plain = loader(store, organs=("kidney_left", "kidney_right"))
    alone = Store.open(tmp_path / "store")
    alone.__dict__["masks"] = alone.masks[alone.masks["label"] != "kidney_right"]
    with pytest.raises(UserError, match="The mirrored label map of volume 0 does not name kidney_left"):
        loader(alone, augment=VolumeAugmentConfig(flip=("w",)), organs=("kidney_left",))
    for epoch in range(4):
        batch, mirrored = one.made(epoch, np.arange(3))
        organs = on_device(batch, "cpu").extra["organs"]
        usual = plain.made(epoch, np.arange(3))[0].extra["organs"]
        for i in range(3):
            wanted = (usual[i] == 2).flip(2) if mirrored[i] else usual[i] == 1
            assert torch.equal(organs[i] == 1, wanted)


def test_a_batch_without_draws_is_only_moved(store: Store) -> None:
    (batch,) = loader(store, augment=None).epoch(0)
    made = on_device(batch, "cpu")
    assert torch.equal(made.pixels, batch.pixels)
    assert made.extra.keys() == batch.extra.keys() == {"affine"}


def test_interpolated_batches_keep_a_spot_in_its_place(store: Store) -> None:
    augment = VolumeAugmentConfig(rotate_degrees=(20, 10, 10), zoom=0.1, flip=("w",))
    batch, _ = loader(store, augment=augment).made(0, np.array([0]))
    d, h, w = np.indices((10, 16, 16))
    spot = 1000 * np.exp(-(((d - 5) * 2.5) ** 2 + ((h - 7) * 0.75) ** 2 + ((w - 8) * 0.5) ** 2) / (2 * 2.0**2))
    batch.pixels[0, 0] = torch.from_numpy(spot.astype(np.int16))
    where = batch.extra["affine"][0].numpy() @ [5, 7, 8, 1.0]
    made = on_device(batch, "cpu")
    weights = made.pixels[0, 0].clamp(min=500).numpy().astype(float) - 500
    centre = [(weights * index).sum() / weights.sum() for index in np.indices(weights.shape)]
    assert np.linalg.norm(made.extra["affine"][0].numpy() @ [*centre, 1.0] - where) < 0.4


def test_mistakes_in_the_section_are_named() -> None:
    with pytest.raises(ValidationError, match="named twice"):
        VolumeAugmentConfig(flip=("w", "w"))
    with pytest.raises(ValidationError):
        VolumeAugmentConfig(rotate_degrees=(90, 0, 0))
    assert not flips(VolumeAugmentConfig(), np.zeros((2, NUMBERS))).any()
