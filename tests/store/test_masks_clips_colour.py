"""Stores with masks of images, colour images, frames of one file, and clips."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import zarr
from test_prepare import tree
from volume_source import run

from medvlp.bench import baselines
from medvlp.errors import UserError
from medvlp.sources.base import Source
from medvlp.store.array_store import Store
from medvlp.store.shortcuts import image_statistics
from medvlp.types import ImageRef, Mask, Study

SIDE = 32
WIDTH = 2 * SIDE
"""Images are twice as wide as high: padded and shrunk by 2 in the store, so that a mask has to follow."""


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(1, 90, (SIDE, WIDTH), dtype=np.uint8)


def square(number: int) -> tuple[slice, slice]:
    """Where the structure of an image is, in pixels of the file; even, so that shrinking by 2 keeps edges sharp."""
    return slice(4 + 2 * number, 12 + 2 * number), slice(10 + 4 * number, 30 + 4 * number)


class Marked(Source):
    """Five images; the white square of each is given as a file, as runs and as a polygon; image 3 has no mask."""

    name = "phantom"
    kind = "image"

    def studies(self):
        for number in range(5):
            name = f"i{number}"
            rows, columns = square(number)
            corners = [(columns.start, rows.start), (columns.stop, rows.start), (columns.stop, rows.stop)]
            runs = [value for row in range(rows.start, rows.stop) for value in (row * WIDTH + columns.start, 20)]
            masks = (
                Mask(name, "file", f"{name}_mask.png"),
                Mask(name, "runs", size=(SIDE, WIDTH), runs=tuple(runs)),
                Mask(name, "polygon", points=(*corners, (columns.start, rows.stop))),
                Mask(name, "two", f"{name}_mask.png", values=(2,)),
            )
            yield Study(name, name, (ImageRef(name, f"{name}.png"),), masks=masks if number != 3 else ())


def write_marked(root: Path) -> Path:
    root.mkdir(parents=True)
    for number in range(5):
        image, mask = picture(number), np.zeros((SIDE, WIDTH), np.uint8)
        image[square(number)] = 255
        mask[square(number)] = 1
        mask[square(number)][:4] = 2
        cv2.imwrite(str(root / f"i{number}.png"), image)
        cv2.imwrite(str(root / f"i{number}_mask.png"), mask)
    return root


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_marked(tmp_path_factory.mktemp("raw") / "marked")


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    prepare_marked(raw, out)
    return out


def prepare_marked(root: Path, out: Path, **changes: object) -> object:
    return run(root, out, Marked, **({"image": {"size": SIDE}, "shard_images": 2} | changes))


def test_masks_lie_on_their_structures(folder: Path) -> None:
    store = Store.open(folder)
    for number in (0, 1, 2, 4):
        image = store.read(np.array([number]))[0]
        file, runs, polygon, two = store.read_masks([f"i{number}"])
        assert file.sum() == 4 * 10
        for mask in (file, runs, polygon):
            assert np.array_equal(mask, (image == 255).astype(np.uint8))
        assert two.sum() == 2 * 10
        assert (image[two == 1] == 255).all()
    assert store.read_masks(["i3"]).shape == (0, SIDE, SIDE)


def test_masks_by_row_and_by_id(folder: Path) -> None:
    store = Store.open(folder)
    assert len(store.masks) == 16
    whole = zarr.open_array(folder / "masks.zarr", mode="r")
    assert (whole.shape, whole.chunks, whole.shards) == ((3 * 8, SIDE, SIDE), (1, SIDE, SIDE), (8, SIDE, SIDE))
    for row in store.masks.itertuples():
        (mask,) = store.read_masks(np.array([row.index]))
        assert np.array_equal(mask, whole[row.index])
        assert row.pixels == mask.sum()
        assert row.sha256 == hashlib.sha256(mask.tobytes()).hexdigest()
        assert (row.image_id, row.study_id) == (f"i{row.index // 8 * 2 + row.index % 8 // 4}",) * 2
    rows = store.masks["index"].to_numpy()[[5, 0, 5]]
    assert np.array_equal(store.read_masks(rows), whole[:][rows])
    both = store.read_masks(["i4", "i0"])
    assert np.array_equal(both, np.concatenate([store.read_masks(["i4"]), store.read_masks(["i0"])]))
    with pytest.raises(IndexError, match=r"row 20 .* is no mask"):
        store.read_masks(np.array([0, 20]))


def test_neither_workers_nor_shard_size_change_masks(raw: Path, folder: Path, tmp_path: Path) -> None:
    prepare_marked(raw, tmp_path / "two", num_workers=2)
    assert tree(tmp_path / "two") == tree(folder)
    prepare_marked(raw, tmp_path / "five", shard_images=5)
    store, other = Store.open(folder), Store.open(tmp_path / "five")
    assert other.hash == store.hash
    assert np.array_equal(other.read_masks(["i4", "i1"]), store.read_masks(["i4", "i1"]))


def test_bad_masks_are_quarantined_and_taken_in_when_mended(raw: Path, folder: Path, tmp_path: Path) -> None:
    root, out = Path(shutil.copytree(raw, tmp_path / "bad")), tmp_path / "store"
    cv2.imwrite(str(root / "i1_mask.png"), np.ones((SIDE, SIDE), np.uint8))
    (root / "i4_mask.png").unlink()
    assert prepare_marked(root, out, max_quarantine_share=0.5).images == 5
    store = Store.open(out)
    assert list(store.masks[store.masks["image_id"] == "i1"]["label"]) == ["runs", "polygon"]
    assert np.array_equal(store.read_masks(["i1"])[0], (store.read(np.array([1]))[0] == 255).astype(np.uint8))
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["part"], line["path"]) for line in lines] == [
        (1, "masks", "i1_mask.png"),
        (1, "masks", "i1_mask.png"),
        (4, "masks", "i4_mask.png"),
        (4, "masks", "i4_mask.png"),
    ]
    assert str(root) not in json.dumps(lines)
    assert prepare_marked(root, out, max_quarantine_share=0.5).already_complete
    shutil.copy(raw / "i4_mask.png", root)
    assert prepare_marked(root, out, max_quarantine_share=0.5).quarantined == 2
    shutil.copy(raw / "i1_mask.png", root)
    prepare_marked(root, out)
    assert tree(out) == tree(folder)


def test_a_missing_shard_of_masks_is_not_read_as_empty(folder: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(folder, tmp_path / "copy"))
    shutil.rmtree(out / "masks.zarr" / "c" / "1")
    with pytest.raises(UserError, match="shard of the store is missing"):
        Store.open(out).read_masks(["i2"])


class Coloured(Source):
    """Two colour pictures, a grey one, and two frames of one video."""

    name = "phantom"
    kind = "image"

    def studies(self):
        for name in ("red", "blue", "grey"):
            yield Study(name, name, (ImageRef(name, f"{name}.png"),))


def test_colours_are_kept_in_their_order(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    for name, bgr in (("red", (10, 20, 250)), ("blue", (240, 30, 5))):
        cv2.imwrite(str(root / f"{name}.png"), np.full((40, 40, 3), bgr, np.uint8))
    cv2.imwrite(str(root / "grey.png"), np.full((40, 40), 77, np.uint8))
    run(root, tmp_path / "store", Coloured, image={"size": 16, "colour": "keep"})
    store = Store.open(tmp_path / "store")
    pixels = store.read(np.array([1, 0, 2]))
    assert pixels.shape == (3, 16, 16, 3)
    assert np.array_equal(pixels[0], np.full((16, 16, 3), (5, 30, 240)))
    assert np.array_equal(pixels[1], np.full((16, 16, 3), (250, 20, 10)))
    assert np.array_equal(pixels[2], np.full((16, 16, 3), 77))
    assert store.read(np.array([], dtype=int)).shape == (0, 16, 16, 3)
    assert zarr.open_array(tmp_path / "store" / "images.zarr", mode="r").chunks == (1, 16, 16, 3)
    thumbnails, histograms = image_statistics(store)
    assert np.allclose(thumbnails, np.repeat([[93], [91], [77]], 256, axis=1) / 255)
    assert np.allclose(histograms.sum(axis=1), 1)
    assert np.allclose(baselines.mean(store)[:, 0] * 255, [280 / 3, 275 / 3, 77], atol=1e-3)
    run(root, tmp_path / "grey", Coloured, image={"size": 16, "colour": "luminance"})
    assert Store.open(tmp_path / "grey").read(np.array([0])).shape == (1, 16, 16)


FRAMES, CLIP_SIDE = 40, 24


def frame(number: int) -> np.ndarray:
    image = np.full((CLIP_SIDE, CLIP_SIDE), 30, np.uint8)
    image[4:20, number // 4 : number // 4 + 8] = 120 + 3 * number
    return image


class Clips(Source):
    """One clip as a folder of frames, with a mask on two of them; a second one is not there."""

    name = "phantom"
    kind = "video"
    mask_frames = (4, 10)

    def studies(self):
        masks = [
            Mask("c0", "ventricle", points=((at // 4, 4), (at // 4 + 8, 4), (at // 4 + 8, 20), (at // 4, 20)), frame=at)
            for at in self.mask_frames
        ]
        yield Study("c0", "c0", (ImageRef("c0", "clip", "US"),), masks=tuple(masks))
        yield Study("c1", "c1", (ImageRef("c1", "gone", "US"),))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    (root / "clip").mkdir()
    for number in range(FRAMES):
        cv2.imwrite(str(root / "clip" / f"{number}.png"), frame(number))
    return root


def test_a_clip_comes_back_with_its_masks(clips: Path, tmp_path: Path) -> None:
    video = {"size": CLIP_SIDE}
    run(clips, tmp_path / "store", Clips, video=video, max_quarantine_share=1)
    store = Store.open(tmp_path / "store")
    assert (store.kind, len(store)) == ("video", 1)
    clip = store.read_clip(0)
    assert np.array_equal(clip.array, np.stack([frame(number) for number in range(FRAMES)]))
    assert clip.fps is None
    (row,) = store.images.itertuples()
    assert (row.frames, row.height, row.width) == (FRAMES, CLIP_SIDE, CLIP_SIDE)
    assert row.pixels_sha256 == hashlib.sha256(clip.array.tobytes()).hexdigest()
    assert list(store.masks["frame"]) == [4, 10]
    for mask, number in zip(store.read_masks(["c0"]), (4, 10), strict=True):
        assert np.array_equal(mask > 0, clip.array[number] > 100)
    with pytest.raises(IndexError):
        store.read_clip(1)
    with pytest.raises(UserError, match="holds clips, but volumes are needed"):
        store.crop(0, (0, 0, 0), (1, 1, 1))
    run(clips, tmp_path / "two", Clips, video=video, max_quarantine_share=1, num_workers=2)
    assert tree(tmp_path / "two") == tree(tmp_path / "store")


def test_masks_follow_the_frames_that_are_kept(clips: Path, tmp_path: Path) -> None:
    run(clips, tmp_path / "store", Clips, video={"size": CLIP_SIDE, "every": 4}, max_quarantine_share=1)
    store = Store.open(tmp_path / "store")
    assert len(store.read_clip(0).array) == 10
    assert list(store.masks["frame"]) == [1]
    assert np.array_equal(store.read_masks(["c0"])[0] > 0, store.read_clip(0).array[1] > 100)
    lines = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert [line["reason"] for line in lines if line["part"] == "masks"] == ["Frame 10 of the mask is not in the clip."]
