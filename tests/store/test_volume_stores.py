"""Stores of volumes: what was written is what is read, whatever happens on the way."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
import tensorstore
import volume_source as raw_volumes
import zarr
from test_prepare import tree
from volume_source import SHAPES, SPACING_MM, affine, label_map, run, voxels

from medvlp.errors import UserError
from medvlp.store.array_store import Store
from medvlp.types import ImageRef, Intensity, Mask, Study, VolumeFacts


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_volumes.write(tmp_path_factory.mktemp("raw") / "volumes")


@pytest.fixture(scope="module")
def folder(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "store"
    run(raw, out)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_other_readers_of_zarr_see_the_voxels(folder: Path) -> None:
    for number, shape in enumerate(SHAPES):
        path = folder / "volumes.zarr" / f"{number:06d}"
        array = zarr.open_array(path, mode="r")
        assert (array.shape, array.dtype, array.chunks) == (shape, np.int16, (16, 16, 16))
        assert np.array_equal(array[:], voxels(number))
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
        assert np.array_equal(tensorstore.open(spec, open=True).result().read().result(), voxels(number))
        assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
            "c/0/0/0",
            "zarr.json",
        ]
    assert isinstance(zarr.open_group(folder / "volumes.zarr", mode="r"), zarr.Group)


def test_a_volume_comes_back_with_its_geometry(folder: Path) -> None:
    store = Store.open(folder)
    assert (store.kind, len(store), repr(store).count("volumes=4")) == ("volume", 4, 1)
    for number in range(4):
        volume = store.read_volume(number)
        assert np.array_equal(volume.array, voxels(number))
        assert volume.array.dtype == np.int16
        assert np.allclose(volume.affine, affine(number), atol=1e-6)
        assert volume.spacing_mm == pytest.approx(SPACING_MM)
        assert volume.intensity is Intensity.HU
        assert store.shape(number) == SHAPES[number]


def test_tables(folder: Path, raw: Path) -> None:
    store = Store.open(folder)
    images = store.images
    assert list(images[["depth", "height", "width"]].itertuples(index=False, name=None)) == list(SHAPES)
    for row in images.itertuples():
        file = raw / row.path
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        assert row.pixels_sha256 == hashlib.sha256(voxels(row.index).tobytes()).hexdigest()
        assert row.mean == pytest.approx(voxels(row.index).mean())
        assert (row.spacing_slice_mm, row.spacing_row_mm, row.spacing_col_mm) == pytest.approx(SPACING_MM)
        assert np.isnan(row.fps)
    assert list(store.samples()["label:Lung Lesion"]) == [1.0, 0.0, 0.0, 0.0]
    assert list(store.studies["day"]) == [0.0, 1.0, 0.0, 1.0]
    for path in folder.rglob("*"):
        if path.is_file():
            assert b"20190301" not in path.read_bytes()
    assert "20190301" not in store.studies.to_json()


def test_crops_are_slices(folder: Path) -> None:
    store = Store.open(folder)
    rng = np.random.default_rng(0)
    for _ in range(60):
        number = int(rng.integers(4))
        size = [int(rng.integers(1, side + 1)) for side in SHAPES[number]]
        start = [int(rng.integers(0, side - part + 1)) for side, part in zip(SHAPES[number], size, strict=True)]
        region = tuple(slice(low, low + part) for low, part in zip(start, size, strict=True))
        assert np.array_equal(store.crop(number, start, size), voxels(number)[region])
        if number < 3:
            assert np.array_equal(store.crop_labels(number, start, size), label_map(number)[region])
    for start, size in (
        ((0, 0, 0), (21, 1, 1)),
        ((-1, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (1, 0, 1)),
        ((0, 30, 0), (1, 4, 1)),
    ):
        with pytest.raises(IndexError, match="not inside"):
            store.crop(0, start, size)
    for number in (4, -1):
        with pytest.raises(IndexError, match="no volume"):
            store.crop(number, (0, 0, 0), (1, 1, 1))


def test_label_maps(folder: Path) -> None:
    store = Store.open(folder)
    for number in range(3):
        labels, names = store.read_labels(number)
        assert np.array_equal(labels, label_map(number))
        assert names == {1: "liver", 2: "spleen"}
        own = store.masks[store.masks["index"] == number]
        assert list(own["label"]) == ["liver", "spleen"]
        assert list(own["voxels"]) == [int((label_map(number) == value).sum()) for value in (1, 2)]
        assert set(own["sha256"]) == {hashlib.sha256(label_map(number).tobytes()).hexdigest()}
    assert not store.has_labels(3)
    assert store.structures(3) == {}
    with pytest.raises(UserError, match="v3 has no label map"):
        store.read_labels(3)


def test_what_needs_another_kind_of_store_says_so(folder: Path) -> None:
    store = Store.open(folder)
    for use in (lambda: store.read(np.array([0])), lambda: store.image_config, lambda: store.read_clip(0)):
        with pytest.raises(UserError, match=r"holds volumes, but (images|clips) are needed"):
            use()
    with pytest.raises(UserError, match="holds volumes, but images are needed"):
        store.read_masks(["v0"])


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_and_threads_change_nothing(raw: Path, folder: Path, tmp_path: Path, workers: int) -> None:
    """Worker processes see the class of this test only where the task needs none of it: tasks carry all they need."""
    run(raw, tmp_path / "store", num_workers=workers)
    assert tree(tmp_path / "store") == tree(folder)


def test_encoding_threads_change_no_byte(
    raw: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medvlp.store.prepare.cpu_count", lambda: 7)
    run(raw, tmp_path / "store")
    assert tree(tmp_path / "store") == tree(folder)


def test_interrupted_after_each_volume(
    raw: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from medvlp.store import workers

    written: list[int] = []
    write = workers.write_shard

    def once(task):
        if written and written[-1] == -1:
            raise KeyboardInterrupt
        written.extend([task.number, -1])
        return write(task)

    monkeypatch.setattr(workers, "write_shard", once)
    for _ in range(4):
        written.append(0)
        try:
            run(raw, tmp_path / "store")
        except KeyboardInterrupt:
            continue
    monkeypatch.undo()
    run(raw, tmp_path / "store")
    assert [number for number in written[1::3] if number >= 0] == [0, 1, 2, 3], "a finished volume was written again"
    assert tree(tmp_path / "store") == tree(folder)


def test_a_bad_volume_and_a_bad_mask_are_quarantined_and_taken_in_when_mended(
    raw: Path, folder: Path, tmp_path: Path
) -> None:
    root, out = tmp_path / "bad", tmp_path / "store"
    shutil.copytree(raw, root)
    (root / "1.nii.gz").write_bytes((raw / "1.nii.gz").read_bytes()[:-40])
    from medvlp.sources.phantom.write import nifti

    (root / "2_labels.nii.gz").write_bytes(nifti(label_map(0), affine(0)))
    summary = run(root, out, max_quarantine_share=0.5)
    assert (summary.images, summary.quarantined) == (3, 2)
    store = Store.open(out)
    assert list(store.images["index"]) == [0, 2, 3]
    assert np.array_equal(store.read_volume(2).array, voxels(2))
    assert not store.has_labels(2)
    assert not (out / "labels.zarr" / "000002").joinpath("c").exists()
    with pytest.raises(IndexError):
        store.read_volume(1)
    lines = [json.loads(line) for line in (out / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["row"], line["part"], line["path"]) for line in lines] == [
        (1, "image", "1.nii.gz"),
        (2, "masks", "2_labels.nii.gz"),
    ]
    assert run(root, out, max_quarantine_share=0.5).already_complete
    shutil.copy(raw / "2_labels.nii.gz", root / "2_labels.nii.gz")
    summary = run(root, out, max_quarantine_share=0.5)
    assert (summary.already_complete, summary.quarantined) == (False, 1)
    assert np.array_equal(Store.open(out).read_labels(2)[0], label_map(2))
    shutil.copy(raw / "1.nii.gz", root / "1.nii.gz")
    run(root, out)
    assert tree(out) == tree(folder)


def test_masks_can_be_left_out(raw: Path, folder: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "store", masks=False)
    store = Store.open(tmp_path / "store")
    assert len(store.masks) == 0
    assert not (tmp_path / "store" / "labels.zarr").exists()
    assert store.hash != Store.open(folder).hash
    with pytest.raises(UserError, match=r"settings.masks: False in the store, True now"):
        run(raw, tmp_path / "store")


def test_what_decides_the_bytes_is_in_the_settings(raw: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"settings.volume.chunk: 16 in the store, 32 now"):
        run(raw, folder, volume={"chunk": 32})
    assert run(raw, folder, image={"size": 99}, shard_images=3).already_complete, "settings of images decide nothing"
    run(raw, tmp_path / "zstd", volume={"chunk": 16, "compressor": "zstd"})
    assert np.array_equal(Store.open(tmp_path / "zstd").read_volume(0).array, voxels(0))


def test_a_missing_file_is_not_read_as_zero(copy: Path) -> None:
    shutil.rmtree(copy / "volumes.zarr" / "000002" / "c")
    shutil.rmtree(copy / "labels.zarr" / "000001" / "c")
    store = Store.open(copy)
    assert np.array_equal(store.crop(1, (0, 0, 0), SHAPES[1]), voxels(1))
    for read in (lambda: store.read_volume(2), lambda: store.read_labels(1)):
        with pytest.raises(UserError, match=r"cannot be read.*missing"):
            read()


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_truncated_volume_is_an_error(copy: Path, cut: int) -> None:
    shard = copy / "volumes.zarr" / "000000" / "c" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-cut])
    with pytest.raises(UserError, match="cannot be read"):
        Store.open(copy).read_volume(0)


def _crops(store: Store) -> list[np.ndarray]:
    return [store.crop(i % 4, (i % 3, i % 5, i), (2, 9, 3)) for i in range(12)]


def test_threads_pickle_and_fork(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(folder)
    expected = _crops(store)
    monkeypatch.setattr("medvlp.store.open_arrays.MOST_OPEN", 2)  # handles come and go
    with ThreadPoolExecutor(8) as pool:
        for found in pool.map(_crops, [Store.open(folder)] * 4 + [store] * 4):
            assert all(map(np.array_equal, found, expected))
    assert all(map(np.array_equal, _crops(pickle.loads(pickle.dumps(store))), expected))
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=lambda: queue.put((_crops(store), store.read_volume(3).array)))
    child.start()
    crops, whole = queue.get()
    child.join()
    assert all(map(np.array_equal, crops, expected))
    assert np.array_equal(whole, voxels(3))


class Mixed(raw_volumes.Volumes):
    """Things of every kind."""

    name = "phantom"

    def studies(self):
        yield next(super().studies())
        facts = VolumeFacts(Intensity.HU)
        for name, image in {
            "radiograph": ImageRef("a", "0.nii.gz", "CR", frame=None),
            "frame": ImageRef("b", "1.nii.gz", "US", frame=3),
            "picture": ImageRef("c", "picture.png", "CT"),
            "folder": ImageRef("d", "nowhere", "CT", facts=facts),
        }.items():
            yield Study(name, name, (image,))


def test_other_kinds_are_recorded(raw: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(raw, tmp_path / "mixed"))
    (root / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")

    class Renamed(Mixed):
        name = "phantom"

        def studies(self):
            for study in super().studies():
                if study.study_id == "radiograph":  # a second use of a path would be refused before it is read
                    study = Study("radiograph", "r", (ImageRef("a", "3.nii.gz", "CR"),))
                yield study

    summary = run(root, tmp_path / "store", Renamed, max_quarantine_share=1)
    assert (summary.images, summary.quarantined) == (1, 4)
    lines = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    reasons = {line["study_id"]: line["reason"] for line in lines}
    assert "image (CR), and the store holds volumes" in reasons["radiograph"]
    assert "one frame of a clip" in reasons["frame"]
    assert len(reasons) == 4
    assert str(tmp_path) not in json.dumps(lines)


class Unlabelled(raw_volumes.Volumes):
    """The same volumes in an image store."""

    name = "phantom"
    kind = "image"


def test_volumes_do_not_fit_into_a_store_of_images(raw: Path, tmp_path: Path) -> None:
    summary = run(raw, tmp_path / "store", Unlabelled, max_quarantine_share=1)
    assert summary.images == 0
    line = json.loads((tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["reason"] == "This is a volume (CT), and the store holds images."


class BadMask(raw_volumes.Volumes):
    """A mask of another image's id belongs to no image."""

    name = "phantom"

    def studies(self):
        for study in super().studies():
            if study.study_id == "s3":
                yield Study("s3", "p9", study.images, masks=(Mask("v0", "liver", "0_labels.nii.gz"),))
            else:
                yield study


def test_a_mask_of_no_image_is_recorded(raw: Path, tmp_path: Path) -> None:
    run(raw, tmp_path / "store", BadMask, max_quarantine_share=1)
    (line,) = [json.loads(line) for line in (tmp_path / "store" / "quarantine.jsonl").read_text().splitlines()]
    assert line["reason"] == "The mask 'liver' is of the image v0, which the study does not have."
    assert pd.isna(Store.open(tmp_path / "store").studies.set_index("study_id").loc["s3", "day"])


class Abdomen(raw_volumes.Volumes):
    """Three real slices with a real segmentation."""

    name = "phantom"

    def studies(self):
        folder = "ct_series_abdomen_3slice"
        files = tuple(f"{folder}/{number:02d}.dcm" for number in (3, 1, 2))
        image = ImageRef("abdomen", folder, "CT", files=files)
        yield Study("s", "p", (image,), masks=(Mask("abdomen", "liver", f"{folder}/liver_seg.dcm"),))


@pytest.mark.data
def test_a_real_series_and_its_segmentation(test_data: Path, tmp_path: Path) -> None:
    run(test_data, tmp_path / "store", Abdomen, volume={})
    store = Store.open(tmp_path / "store")
    slices = [pydicom.dcmread(test_data / "ct_series_abdomen_3slice" / f"{n:02d}.dcm") for n in (1, 2, 3)]
    slices.sort(key=lambda slice_: float(slice_.ImagePositionPatient[2]))  # from the feet up
    hu = np.stack([s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept) for s in slices])
    expected = np.maximum(hu, -1024)[:, ::-1, ::-1]  # columns run to the left, rows to the back
    volume = store.read_volume(0)
    assert np.array_equal(volume.array, expected)
    assert volume.provenance["hu_applied"] is True
    digest = hashlib.sha256()
    for number in (3, 1, 2):
        digest.update((test_data / "ct_series_abdomen_3slice" / f"{number:02d}.dcm").read_bytes())
    assert store.images["sha256"][0] == digest.hexdigest()
    labels, names = store.read_labels(0)
    assert names == {1: "liver"}
    inside = labels == 1
    assert inside.sum() > 50_000
    assert 30 < np.median(volume.array[inside]) < 80, "this is no liver"
    spread = volume.array[inside].std()
    for axis, shift in itertools.product((1, 2), (-6, 6)):
        assert volume.array[np.roll(inside, shift, axis)].std() > 1.2 * spread, "elsewhere the mask fits better"
