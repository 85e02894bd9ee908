"""Batches that tasks train on from a store of volumes: what is drawn for them, and what the device makes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import volume_source as raw
from volume_source import SHAPES, SPACING_MM

from medvlp.config.data import AugmentConfig, VolumeAugmentConfig
from medvlp.config.preprocessing import ModelInputConfig
from medvlp.config.volumes import VolumeInputConfig
from medvlp.data.inputs import InputLoader, read_inputs
from medvlp.data.volume_augment import GRID, on_device
from medvlp.data.volume_rows import CLASSES, VolumeRowLoader
from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.tasks._answerer import QuestionLoader
from medvlp.tasks._study_images import REAL, StudyImages, StudyLoader

ROWS = np.arange(len(SHAPES))
TAKEN = VolumeInputConfig(size=(10, 16, 16))
EXACT = VolumeAugmentConfig(flip=("d", "w"), rot90=True)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("inputs")
    raw.run(raw.write(folder / "raw"), folder / "store")
    return Store.open(folder / "store")


def loader(store: Store, **changes: Any) -> InputLoader:
    options: dict[str, Any] = {"taken": TAKEN, "augment": EXACT, "batch_size": 4, "seed": 3, "num_workers": 0}
    return InputLoader(store, ROWS, **(options | changes))


def shown(given: Any, epochs: int = 4) -> dict[tuple[int, int], np.ndarray]:
    """Voxels as the tower gets them, by epoch and row."""
    found = {}
    for epoch in range(epochs):
        for batch in given.epoch(epoch):
            rows = batch.index.tolist()
            pixels = on_device(batch, "cpu").pixels.numpy()[:, 0]
            found |= {(epoch, row): own for row, own in zip(rows, pixels, strict=True)}
    return found


def exact_readings(voxels: np.ndarray) -> list[bytes]:
    """All that flips along d and w and quarter turns in the axial plane make of a volume."""
    turned = [np.rot90(voxels, number, (1, 2)) for number in range(4)]
    return [one[::d, :, ::w].tobytes() for one in turned for d in (1, -1) for w in (1, -1)]


def test_every_volume_is_changed_as_asked_and_again_the_same(store: Store) -> None:
    plain = read_inputs(store, ROWS, TAKEN).numpy()[:, 0]
    found = shown(loader(store))
    assert all(own.tobytes() in exact_readings(plain[row]) for (_, row), own in found.items())
    for row in ROWS.tolist():
        assert len({found[epoch, row].tobytes() for epoch in range(4)}) > 1
    again = shown(loader(store, batch_size=3, num_workers=2, keep_last=True))
    assert found.keys() == again.keys()
    assert all(np.array_equal(found[key], again[key]) for key in found)
    other = shown(loader(store, seed=4))
    assert not all(np.array_equal(found[key], other[key]) for key in found)


def test_without_augmentation_and_in_evaluation_nothing_is_changed(store: Store) -> None:
    plain = read_inputs(store, ROWS, TAKEN).numpy()[:, 0]
    for augment in (None, AugmentConfig(), VolumeAugmentConfig()):
        given = loader(store, augment=augment)
        assert given.training == (augment is not None)
        assert all(not batch.extra for batch in given.epoch(0))
        assert all(np.array_equal(own, plain[row]) for (_, row), own in shown(given, 1).items())


@pytest.mark.parametrize("spacing", [None, (2.0, 1.5, 1.0)])
def test_a_turn_is_one_of_the_patient_at_the_spacing_of_the_input(store: Store, spacing: Any) -> None:
    taken = VolumeInputConfig(size=(10, 16, 16), spacing_mm=spacing)
    given = loader(store, taken=taken, augment=VolumeAugmentConfig(rotate_degrees=(30, 10, 10)))
    (batch,) = given.epoch(0)
    for row, matrix in zip(batch.index.tolist(), batch.extra[GRID].numpy(), strict=True):
        stretched = np.array(SPACING_MM) * np.array(SHAPES[row]) / np.array(taken.size)
        scale = np.diag(stretched if spacing is None else spacing)
        turn = scale @ matrix[:3, :3] @ np.linalg.inv(scale)
        assert np.allclose(turn @ turn.T, np.eye(3))
        assert not np.allclose(turn, np.eye(3), atol=0.01)


def test_an_augmentation_of_the_other_kind_is_refused(store: Store) -> None:
    with pytest.raises(UserError, match="augment is of pictures, and the store holds volumes") as caught:
        loader(store, augment=AugmentConfig(flip=True))
    assert "kind=volume" in caught.value.fix
    with pytest.raises(UserError, match="augment is of volumes, and the store holds pictures"):
        loader(store, taken=ModelInputConfig(size=16))
    with pytest.raises(UserError, match="Quarter turns need squares"):
        loader(store, taken=VolumeInputConfig(size=(10, 16, 18)))


def test_studies_and_questions_draw_for_each_volume_that_they_show(store: Store) -> None:
    plain = read_inputs(store, ROWS, TAKEN).numpy()[:, 0]
    options: dict[str, Any] = {"taken": TAKEN, "augment": EXACT, "batch_size": 4, "seed": 3, "num_workers": 0}
    studies = StudyImages(store, (), 2)
    (batch,) = StudyLoader(store, studies.first, images=studies, with_pixels=True, **options).epoch(0)
    each = studies.of(batch.index.numpy())[batch.extra[REAL].numpy()]
    made = on_device(batch, "cpu").pixels.numpy()[:, 0]
    assert all(own.tobytes() in exact_readings(plain[row]) for row, own in zip(each, made, strict=True))
    assert any(not np.array_equal(own, plain[row]) for row, own in zip(each, made, strict=True))
    images = np.array([1, 1, 1, 2, 0, 3])
    (batch, *_) = QuestionLoader(store, images, with_pixels=True, **options | {"batch_size": 6}).epoch(0)
    made = dict(zip(batch.index.tolist(), on_device(batch, "cpu").pixels.numpy()[:, 0], strict=True))
    assert all(own.tobytes() in exact_readings(plain[images[at]]) for at, own in made.items())
    assert len({made[at].tobytes() for at in range(3)}) > 1, "questions of one volume are drawn for on their own"
    (empty,) = StudyLoader(store, studies.first, images=studies, with_pixels=False, **options).epoch(0)
    assert list(empty.extra) == [REAL]


def test_classes_follow_their_voxels() -> None:
    rng = np.random.default_rng(0)
    volumes = rng.integers(-900, 900, (6, 8, 12, 12)).astype(np.int16)
    blobs = np.full((6, 8, 12, 12), -1000, np.int16)
    blobs[:, 2:6, 3:9, 5:8] = 1000

    def rows(voxels: np.ndarray, augment: VolumeAugmentConfig) -> Any:
        def read(epoch: int, row: int) -> Any:
            return voxels[row], (voxels[row] > 0).astype(np.uint8), np.ones(3)

        options: dict[str, Any] = {"batch_size": 6, "seed": 1, "num_workers": 0, "taken": VolumeInputConfig()}
        (batch,) = VolumeRowLoader(np.arange(6), read=read, augment=augment, **options).epoch(0)
        return on_device(batch, "cpu"), batch.index

    changed, index = rows(volumes, EXACT)
    assert torch.equal(changed.extra[CLASSES], (changed.pixels[:, 0] > 0).to(torch.uint8))
    assert not torch.equal(changed.pixels[:, 0], torch.from_numpy(volumes)[index])
    turned, index = rows(blobs, VolumeAugmentConfig(rotate_degrees=(20, 20, 20), zoom=0.1))
    classes, wanted = turned.extra[CLASSES] == 1, turned.pixels[:, 0] > 0
    assert (classes & wanted).sum() * 2 / (classes.sum() + wanted.sum()) > 0.95
    assert not torch.equal(classes, torch.from_numpy(blobs > 0)[index])
    same, index = rows(volumes, VolumeAugmentConfig())
    assert torch.equal(same.pixels[:, 0], torch.from_numpy(volumes)[index])
    brighter, index = rows(volumes, VolumeAugmentConfig(shift=50, noise=10))
    assert torch.equal(brighter.extra[CLASSES], torch.from_numpy(volumes > 0)[index].to(torch.uint8))
