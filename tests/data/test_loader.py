"""The loader: the same pixels whatever the workers and ranks, against plain numpy and torchvision."""

from __future__ import annotations

import threading

import numpy as np
import pandas as pd
import pytest
import torch

from medvlp.config.data import AugmentConfig
from medvlp.data import ImageLoader, normalise, resize_pixels
from medvlp.data.augment import ImageChanges, apply, draw
from medvlp.data.counter import permutation, uniforms


class ArrayStore:
    """A store in memory whose array order differs from the table order."""

    def __init__(self, n: int = 30, size: int = 48, dtype: type = np.uint8, fail_at: int | None = None) -> None:
        rng = np.random.default_rng(0)
        self.array = rng.integers(0, np.iinfo(dtype).max + 1, (n, size, size), dtype=dtype)
        self.images = pd.DataFrame({"index": rng.permutation(n)})
        self.fail_at = fail_at

    def read(self, indices: np.ndarray) -> np.ndarray:
        if self.fail_at in indices:
            raise OSError("unreadable shard")
        return self.array[indices]


AUGMENT = AugmentConfig(rotate_degrees=10, invert=0.3)


def batches(store=None, *, augment=AUGMENT, epoch=0, start=0, rows=None, **options):
    store = store or ArrayStore()
    rows = np.arange(len(store.images)) if rows is None else rows
    settings = {"batch_size": 8, "input_size": 32, "seed": 3} | options
    return list(ImageLoader(store, rows, augment=augment, **settings).epoch(epoch, start))


def assert_same(one, two):
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.pixels, b.pixels)


def test_workers_and_prefetch_change_no_pixel():
    plain = batches(num_workers=0)
    assert_same(plain, batches(num_workers=4, prefetch=1))
    assert_same(plain, batches(num_workers=1, prefetch=7))


def test_epoch_covers_each_sample_once_and_order_depends_on_seed_and_epoch():
    first, second, other = batches(batch_size=10), batches(batch_size=10, epoch=1), batches(batch_size=10, seed=4)
    orders = [torch.cat([b.index for b in run]).tolist() for run in (first, second, other)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_training_drops_the_short_batch_and_evaluation_keeps_it_in_order():
    assert [len(b.index) for b in batches()] == [8, 8, 8]
    rows = np.array([5, 3, 9, 1, 0])
    kept = batches(augment=None, rows=rows, batch_size=2)
    assert torch.cat([b.index for b in kept]).tolist() == rows.tolist()
    store = ArrayStore()
    expected = resize_pixels(store.array[store.images["index"].to_numpy()[rows]], 32)
    assert np.array_equal(torch.cat([b.pixels for b in kept])[:, 0].numpy(), expected)


def test_a_data_set_smaller_than_the_batch_makes_one_batch():
    assert [len(b.index) for b in batches(rows=np.arange(5))] == [5]


def test_start_in_the_middle_of_an_epoch_continues_it():
    assert_same(batches(epoch=2)[1:], batches(epoch=2, start=1))


@pytest.mark.parametrize("workers", [0, 3])
def test_the_stream_is_the_epochs_in_a_row_from_any_batch_on(workers):
    loader = ImageLoader(
        ArrayStore(), np.arange(30), batch_size=8, input_size=32, seed=3, augment=AUGMENT, num_workers=workers
    )
    run = loader.stream(2)
    assert_same([next(run) for _ in range(5)], [*batches()[2:], *batches(epoch=1), *batches(epoch=2)[:1]])
    run.close()
    assert not loader_threads()


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch(world_size):
    parts = [batches(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, whole in enumerate(batches()):
        assert torch.equal(torch.cat([part[step].index for part in parts]), whole.index)
        assert torch.equal(torch.cat([part[step].pixels for part in parts]), whole.pixels)


def test_a_batch_that_does_not_split_is_refused():
    with pytest.raises(ValueError, match="8 does not split over 3"):
        batches(world_size=3)


def test_augmentation_belongs_to_the_sample_not_to_its_place():
    whole = {int(i): p for b in batches(batch_size=1) for i, p in zip(b.index, b.pixels, strict=True)}
    for batch in batches(rows=np.array([7, 2, 11]), batch_size=3):
        for i, pixels in zip(batch.index, batch.pixels, strict=True):
            assert torch.equal(pixels, whole[int(i)])
    again = {int(i): p for b in batches(batch_size=1, epoch=1) for i, p in zip(b.index, b.pixels, strict=True)}
    assert not torch.equal(whole[2], again[2])


def loader_threads():
    return [t for t in threading.enumerate() if t.name.startswith("medvlp-loader")]


def test_an_error_in_a_worker_reaches_the_caller_and_leaves_no_thread():
    with pytest.raises(OSError, match="unreadable shard"):
        batches(ArrayStore(fail_at=4), num_workers=3)
    assert not loader_threads()


def test_leaving_early_leaves_no_thread():
    loader = ImageLoader(
        ArrayStore(), np.arange(30), batch_size=2, input_size=32, seed=0, augment=AUGMENT, num_workers=3
    )
    run = loader.epoch(0)
    next(run)
    assert loader_threads()
    run.close()
    assert not loader_threads()


def test_uint16_stores_keep_all_grey_values():
    batch = batches(ArrayStore(dtype=np.uint16), augment=None, input_size=48)[0]
    store = ArrayStore(dtype=np.uint16)
    assert batch.pixels.dtype == torch.int32
    assert np.array_equal(batch.pixels[:, 0].numpy(), store.array[store.images["index"].to_numpy()[:8]])
    assert batches(ArrayStore(dtype=np.uint16))[0].pixels.max() > 255


def test_normalise_is_the_formula_for_both_depths():
    from medvlp.config.preprocessing import ModelInputConfig

    config = ModelInputConfig(size=32, channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    eight = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    expected = (eight.numpy() / 255.0 - np.array(config.mean).reshape(1, 3, 1, 1)) / np.array(config.std).reshape(
        1, 3, 1, 1
    )
    assert np.allclose(normalise(eight, config).numpy(), expected, atol=1e-5)
    assert np.allclose(normalise(eight.to(torch.int32) * 257, config).numpy(), expected, atol=1e-5)
    with pytest.raises(TypeError, match="stored integers"):
        normalise(eight.float(), config)


def changes(n=1, size=48, **given):
    values = {"top": 0, "left": 0, "height": size, "width": size, "degrees": 0.0, "flip": False}
    values |= {"brightness": 1.0, "contrast": 1.0, "invert": False} | given
    return ImageChanges(**{name: np.full(n, value) for name, value in values.items()})


def applied(image, out_size=48, **given):
    out = np.empty((out_size, out_size), image.dtype)
    apply(image, changes(size=image.shape[0], **given), 0, out)
    return out


IMAGE = ArrayStore().array[0]


def test_neutral_changes_change_nothing():
    assert np.array_equal(applied(IMAGE), IMAGE)
    off = AugmentConfig(crop_scale=(1, 1), crop_ratio=(1, 1), brightness=0, contrast=0)
    drawn = draw(off, 0, 0, np.arange(4), 48)
    for i in range(4):
        out = np.empty_like(IMAGE)
        apply(IMAGE, drawn, i, out)
        assert np.array_equal(out, IMAGE)


def test_brightness_then_contrast_as_torchvision():
    from torchvision.transforms.v2 import functional as F

    image = (IMAGE // 3 + 40).astype(np.uint8)  # no value saturates, where the two would differ
    expected = F.adjust_contrast(F.adjust_brightness(torch.from_numpy(image)[None], 1.15), 0.85)[0].numpy()
    assert np.abs(applied(image, brightness=1.15, contrast=0.85).astype(int) - expected.astype(int)).max() <= 2


def test_invert_and_flip():
    assert np.array_equal(applied(IMAGE, invert=True), 255 - IMAGE)
    assert np.array_equal(applied(IMAGE, flip=True), IMAGE[:, ::-1])
    deep = ArrayStore(dtype=np.uint16).array[0]
    assert np.array_equal(applied(deep, invert=True), 65535 - deep)


def test_crop_is_the_box():
    assert np.array_equal(applied(IMAGE, 20, top=5, left=11, height=20, width=20), IMAGE[5:25, 11:31])


def test_rotation_by_90_degrees_is_numpys_and_small_angles_keep_the_centre():
    assert np.abs(applied(IMAGE, degrees=90.0).astype(int) - np.rot90(IMAGE)).max() <= 1
    dot = np.zeros((49, 49), np.uint8)
    dot[22:27, 22:27] = 200
    assert applied(dot, 49, degrees=7.0)[24, 24] == 200


def test_rotated_crop_of_a_large_image_averages_instead_of_skipping():
    noise = ArrayStore(1, 256).array[0]
    out = applied(noise, 32, degrees=0.001)
    plain = applied(noise, 32)
    assert np.abs(out.astype(int) - plain.astype(int)).max() <= 3


def test_drawn_values_fill_their_ranges():
    drawn = draw(AugmentConfig(rotate_degrees=10, invert=0.25, flip=True), 0, 0, np.arange(20_000), 256)
    area = drawn.height * drawn.width / 256**2
    assert 0.59 < area.min() < 0.61
    assert area.max() > 0.98
    assert np.all(drawn.top + drawn.height <= 256)
    assert np.all(drawn.left + drawn.width <= 256)
    assert abs(drawn.invert.mean() - 0.25) < 0.01
    assert abs(drawn.flip.mean() - 0.5) < 0.02
    assert abs(drawn.degrees.mean()) < 0.2
    assert 9.9 < np.abs(drawn.degrees).max() <= 10
    assert abs(drawn.brightness.std() - 0.4 / np.sqrt(12)) < 0.003


def test_counted_numbers_are_uniform_and_independent():
    from scipy import stats

    numbers = uniforms(1, 7, 0, np.arange(20_000), 3)
    assert stats.kstest(numbers.ravel(), "uniform").pvalue > 0.001
    others = [uniforms(1, seed, epoch, np.arange(20_000), 1) for seed, epoch in ((8, 0), (7, 1))]
    correlation = np.corrcoef(np.column_stack([numbers, *others]).T)
    assert np.abs(correlation - np.eye(5)).max() < 0.03
    assert sorted(permutation(0, 0, 100)) == list(range(100))


def test_resize_shrinks_by_area_and_leaves_the_right_size_alone():
    block = np.kron(np.arange(64, dtype=np.uint8).reshape(8, 8), np.ones((4, 4), np.uint8))[None]
    assert np.array_equal(resize_pixels(block, 8)[0], np.arange(64).reshape(8, 8))
    assert resize_pixels(block, 32) is block


class ColourStore(ArrayStore):
    """Red, green and blue."""

    def __init__(self, n: int = 12, size: int = 48) -> None:
        super().__init__(n, size)
        self.array = np.random.default_rng(1).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def test_colours_come_as_channels_and_each_is_treated_alike():
    store = ColourStore()
    augment = AugmentConfig(rotate_degrees=10, invert=0.3, contrast=0.0)
    whole = batches(store, augment=augment)
    assert [tuple(b.pixels.shape) for b in whole] == [(8, 3, 32, 32)]
    for channel in range(3):
        alone = ArrayStore(12)
        alone.array, alone.images = store.array[..., channel], store.images
        for colour, grey in zip(whole, batches(alone, augment=augment), strict=True):
            assert torch.equal(colour.pixels[:, channel], grey.pixels[:, 0])
    plain = batches(store, augment=None)
    places = store.images["index"].to_numpy()
    expected = resize_pixels(store.array[places], 32)
    assert np.array_equal(torch.cat([b.pixels for b in plain]).permute(0, 2, 3, 1).numpy(), expected)


def test_contrast_of_a_colour_image_turns_about_one_mean():
    image = np.zeros((16, 16, 3), np.uint8)
    image[..., 0], image[..., 1], image[..., 2] = 30, 90, 150
    out = np.empty_like(image)
    one, none = np.ones(1), np.zeros(1, bool)
    whole = np.full(1, 16)
    zero = np.zeros(1, int)
    changes = ImageChanges(zero, zero, whole, whole, np.zeros(1), none, one, np.full(1, 0.5), none)
    apply(image, changes, 0, out)
    assert out[0, 0].tolist() == [60, 90, 120]
