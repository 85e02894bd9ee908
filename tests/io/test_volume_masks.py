"""Masks of volumes: on the grid of the volume's file, then the same way as the volume; against highdicom."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from made_dicom import random_slices, segmentation_dataset, write_series

from medvlp.config.preprocessing import StoredVolumeConfig
from medvlp.errors import UserError
from medvlp.io import read_volume, read_volume_labels
from medvlp.types import Mask

HU = StoredVolumeConfig(intensity="hu")
AFFINE = np.array([[0, -0.8, 0, 20.0], [0.9, 0, 0, -7], [0, 0, -2.0, 40], [0, 0, 0, 1]])


def save(tmp_path, name, array, affine=AFFINE):
    nibabel.save(nibabel.Nifti1Image(array, affine), tmp_path / name)


def organs(shape=(20, 18, 12)) -> np.ndarray:
    from scipy import ndimage

    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(3, *shape)), (0, 3, 3, 2))
    return noise.argmax(axis=0).astype(np.uint8)


def in_hu(labels: np.ndarray) -> np.ndarray:
    """Return a volume that shows its own labels: 0, 100, 200, ... HU."""
    return labels.astype(np.int16) * 100


@pytest.mark.data
def test_real_segmentation_lies_on_the_liver(test_data):
    import highdicom

    volume = read_volume(test_data / "ct_series_abdomen_3slice")
    mask = Mask("x", "liver", "ct_series_abdomen_3slice/liver_seg.dcm")
    labels, names = read_volume_labels(test_data, [mask], volume)
    assert (labels.shape, labels.dtype, names) == (volume.array.shape, np.uint8, {1: "liver"})
    theirs = highdicom.seg.segread(test_data / "ct_series_abdomen_3slice" / "liver_seg.dcm").get_volume()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ theirs.to_patient_orientation("HAR").affine
    np.testing.assert_allclose(affine, volume.affine, atol=1e-3)
    np.testing.assert_array_equal(labels, theirs.to_patient_orientation("HAR").array[..., 0])
    inside = volume.array[labels == 1]
    assert 20 < np.median(inside) < 80  # HU of liver
    assert np.percentile(inside, 10) > -100


def test_label_map_and_binary_files(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii.gz", in_hu(array))
    save(tmp_path, "all.nii.gz", array)
    for value in (1, 2):
        save(tmp_path, f"{value}.nii.gz", (array == value).astype(np.uint8))
    volume = read_volume(tmp_path / "ct.nii.gz", HU)
    one = [Mask("x", "liver", "all.nii.gz", values=(1,)), Mask("x", "spleen", "all.nii.gz", values=(2,))]
    many = [Mask("x", "liver", "1.nii.gz"), Mask("x", "spleen", "2.nii.gz")]
    for masks in (one, many):
        labels, names = read_volume_labels(tmp_path, masks, volume)
        np.testing.assert_array_equal(labels * 100, volume.array)
        assert names == {1: "liver", 2: "spleen"}


def test_a_map_with_a_value_that_its_list_does_not_have_is_refused(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii.gz", in_hu(array))
    array[0, 0, 0] = 17
    save(tmp_path, "all.nii.gz", array)
    volume = read_volume(tmp_path / "ct.nii.gz", HU)
    masks = [Mask("x", "liver", "all.nii.gz", values=(1,)), Mask("x", "spleen", "all.nii.gz", values=(2,))]
    with pytest.raises(UserError, match=r"17 \(1 voxels\)"):
        read_volume_labels(tmp_path, masks, volume, known_values=(1, 2))
    for known in ((), (1, 2, 17), (1, 2, 17, 30)):
        labels, _ = read_volume_labels(tmp_path, masks, volume, known_values=known)
        assert set(np.unique(labels)) == {0, 1, 2}


def test_later_masks_win_and_equal_labels_share_a_number(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii", in_hu(array))
    save(tmp_path, "all.nii", array)
    volume = read_volume(tmp_path / "ct.nii", HU)
    masks = [
        Mask("x", "any", "all.nii"),
        Mask("x", "tumour", "all.nii", values=(2,)),
        Mask("x", "any", "all.nii", values=(2,)),
    ]
    labels, names = read_volume_labels(tmp_path, masks, volume)
    assert names == {1: "any", 2: "tumour"}
    assert set(np.unique(labels)) == {0, 1}
    labels, _ = read_volume_labels(tmp_path, masks[:2], volume)
    np.testing.assert_array_equal(labels * 100, volume.array)


@pytest.mark.parametrize(
    "config",
    [
        StoredVolumeConfig(intensity="hu", crop="body"),
        StoredVolumeConfig(intensity="hu", spacing_mm=(1.0, 0.4, 0.3)),
        StoredVolumeConfig(intensity="hu", spacing_mm=(4.0, 1.7, 1.6), crop="body"),
    ],
)
def test_masks_go_the_way_of_the_volume(tmp_path, config):
    array = organs((40, 36, 24))
    hu = np.full((60, 50, 30), -1000, np.int16)
    hu[10:50, 9:45, 4:28] = in_hu(array)
    whole = np.zeros(hu.shape, np.uint8)
    whole[10:50, 9:45, 4:28] = array
    save(tmp_path, "ct.nii", hu)
    save(tmp_path, "all.nii", whole)
    volume = read_volume(tmp_path / "ct.nii", config)
    assert volume.array.shape != (30, 60, 50)
    masks = [Mask("x", "a", "all.nii", values=(1,)), Mask("x", "b", "all.nii", values=(2,))]
    labels, _ = read_volume_labels(tmp_path, masks, volume)
    assert labels.shape == volume.array.shape
    inverse = np.linalg.inv(AFFINE)
    index = np.argwhere(np.ones(labels.shape, bool))
    places = np.concatenate([index, np.ones((len(index), 1))], axis=1) @ volume.affine.T @ inverse.T
    nearest = np.clip(np.rint(places[:, :3]).astype(int), 0, np.subtract(whole.shape, 1))
    sure = np.abs(places[:, :3] - np.rint(places[:, :3])).max(axis=1) < 0.49
    expected = whole[tuple(nearest.T)].reshape(labels.shape)
    np.testing.assert_array_equal(labels.ravel()[sure], expected.ravel()[sure])


def test_the_same_grid_in_another_orientation_is_accepted(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii", in_hu(array))
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, AFFINE))
    nibabel.save(turned, tmp_path / "all.nii.gz")
    volume = read_volume(tmp_path / "ct.nii", HU)
    masks = [Mask("x", "a", "all.nii.gz", values=(1,)), Mask("x", "b", "all.nii.gz", values=(2,))]
    labels, _ = read_volume_labels(tmp_path, masks, volume)
    np.testing.assert_array_equal(labels * 100, volume.array)


def test_masks_on_another_grid_are_refused(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii", in_hu(array))
    volume = read_volume(tmp_path / "ct.nii", HU)
    moved, scaled, mirrored = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 0.3
    scaled[:3, :3] *= 1.02
    mirrored[1, 0] *= -1
    for name, affine, reason in (
        ("moved", moved, "lies up to 0.375 voxels beside its volume"),
        ("scaled", scaled, "beside its volume"),
        ("mirrored", mirrored, "beside its volume"),
    ):
        save(tmp_path, f"{name}.nii", array, affine)
        with pytest.raises(UserError, match=reason):
            read_volume_labels(tmp_path, [Mask("x", "a", f"{name}.nii")], volume)
    save(tmp_path, "small.nii", array[:-1])
    with pytest.raises(UserError, match="voxels where its volume has"):
        read_volume_labels(tmp_path, [Mask("x", "a", "small.nii")], volume)
    almost = AFFINE.copy()
    almost[0, 3] += 0.1
    save(tmp_path, "almost.nii", array, almost)
    read_volume_labels(tmp_path, [Mask("x", "a", "almost.nii")], volume)


def test_identity_affines_only_where_the_caller_knows(tmp_path):
    """ReXGroundingCT: the mask shares the voxels of its volume, and its affine is the identity."""
    array = organs()
    save(tmp_path, "ct.nii", in_hu(array))
    save(tmp_path, "all.nii", array, np.eye(4))
    volume = read_volume(tmp_path / "ct.nii", HU)
    masks = [Mask("x", "a", "all.nii", values=(1,)), Mask("x", "b", "all.nii", values=(2,))]
    with pytest.raises(UserError, match="no geometry"):
        read_volume_labels(tmp_path, masks, volume)
    labels, _ = read_volume_labels(tmp_path, masks, volume, trust_shape=True)
    np.testing.assert_array_equal(labels * 100, volume.array)
    save(tmp_path, "other.nii", array[:, :-1], np.eye(4))
    with pytest.raises(UserError, match="voxels where its volume has"):
        read_volume_labels(tmp_path, [Mask("x", "a", "other.nii")], volume, trust_shape=True)


def test_what_is_no_label_map(tmp_path):
    array = organs()
    save(tmp_path, "ct.nii", in_hu(array))
    volume = read_volume(tmp_path / "ct.nii", HU)
    save(tmp_path, "soft.nii", array.astype(np.float32) / 2)
    save(tmp_path, "hu.nii", in_hu(array) - 50)
    (tmp_path / "x.txt").write_text("hello")
    for name, reason in (("soft.nii", "fractions"), ("hu.nii", "values from -50"), ("x.txt", "is no NIfTI")):
        with pytest.raises(UserError, match=reason):
            read_volume_labels(tmp_path, [Mask("x", "a", name)], volume)
    with pytest.raises(UserError, match="is no file"):
        read_volume_labels(tmp_path, [Mask("x", "a", runs=(1, 2), size=(3, 3))], volume)
    save(tmp_path, "whole.nii", array.astype(np.float64))
    labels, _ = read_volume_labels(tmp_path, [Mask("x", "a", "whole.nii", values=(2,))], volume)
    np.testing.assert_array_equal(labels == 1, volume.array == 200)


def write_segmentation(path, frames, positions, segments, **tags):
    ds = segmentation_dataset(frames, positions, segments, **tags)
    ds.save_as(path, enforce_file_format=True)


@pytest.mark.parametrize("columns", [10, 7])
def test_segmentation_frames_find_their_slices(tmp_path, columns):
    """Some slices only, in any order, two segments; seven columns make frames that start inside of a byte."""
    slices = random_slices(6, 12, columns)
    write_series(tmp_path / "ct", slices)
    rng = np.random.default_rng(5)
    frames = rng.random((4, 12, columns)) > 0.5
    where, segments = [3, 1, 3, 5], [1, 1, 2, 2]
    positions = [(-50.0, -40.0, 10 + 2.5 * k) for k in where]
    write_segmentation(tmp_path / "seg.dcm", frames, positions, segments)
    volume = read_volume(tmp_path / "ct")
    masks = [Mask("x", "a", "seg.dcm", values=(1,)), Mask("x", "b", "seg.dcm", values=(2,))]
    labels, names = read_volume_labels(tmp_path, masks, volume)
    expected = np.zeros((6, 12, columns), np.uint8)
    for k, segment, frame in sorted(zip(where, segments, frames, strict=True), key=lambda item: item[1]):
        expected[k][frame] = segment
    np.testing.assert_array_equal(labels, expected[:, ::-1, ::-1])
    assert names == {1: "a", 2: "b"}


@pytest.mark.parametrize(
    ("move", "tags", "reason"),
    [
        ((0, 0, 0.7), {}, "does not lie on a slice"),
        ((0, 0, 25), {}, "outside of the volume"),
        ((0.7, 0, 0), {}, "the pixels of a slice"),
        ((0, 0, 0), {"SegmentationType": "FRACTIONAL"}, "no binary segmentation"),
        ((0, 0, 0), {"NumberOfFrames": 3}, "truncated or too long"),
        ((0, 0, 0), {"Modality": "CT"}, "no binary segmentation"),
        ((0, 0, 0), {"SegmentSequence": []}, "a segment that is not declared"),
    ],
)
def test_segmentations_that_do_not_fit(tmp_path, move, tags, reason):
    write_series(tmp_path / "ct", random_slices(4))
    frames = np.ones((2, 12, 10), bool)
    positions = [tuple(np.add((-50.0, -40.0, 10 + 2.5 * k), move)) for k in range(2)]
    write_segmentation(tmp_path / "seg.dcm", frames, positions, [1, 1], **tags)
    with pytest.raises(UserError, match=reason):
        read_volume_labels(tmp_path, [Mask("x", "a", "seg.dcm")], read_volume(tmp_path / "ct"))


def test_a_segment_that_the_file_does_not_have(tmp_path):
    write_series(tmp_path / "ct", random_slices(4))
    write_segmentation(tmp_path / "seg.dcm", np.ones((1, 12, 10), bool), [(-50.0, -40.0, 10.0)], [1])
    with pytest.raises(UserError, match="declares no segment 5"):
        read_volume_labels(tmp_path, [Mask("x", "a", "seg.dcm", values=(5,))], read_volume(tmp_path / "ct"))


def test_segmentation_of_a_straightened_series(tmp_path):
    """Slices shifted sideways and a gap: the labels move as the voxels do."""
    slices = np.zeros((5, 12, 10), np.int16)
    frames = np.random.default_rng(2).random((5, 12, 10)) > 0.5
    slices[frames] = 1000
    positions = [(1.4 if k == 2 else 0.0, 0.0, float(z)) for k, z in enumerate((0, 1, 2, 3, 5))]
    write_series(tmp_path / "ct", slices, positions)
    volume = read_volume(tmp_path / "ct", StoredVolumeConfig(irregular="resample", tilt="resample"))
    write_segmentation(tmp_path / "seg.dcm", frames, positions, [1] * 5)
    labels, _ = read_volume_labels(tmp_path, [Mask("x", "a", "seg.dcm")], volume)
    assert labels.shape == volume.array.shape == (6, 12, 12)
    exact = [0, 1, 2, 3, 5]
    np.testing.assert_array_equal(labels[exact] == 1, volume.array[exact] == -24)
    write_segmentation(tmp_path / "seg.dcm", frames[:1], [(0.0, 0.0, 0.5)], [1])
    with pytest.raises(UserError, match="does not lie on a slice"):
        read_volume_labels(tmp_path, [Mask("x", "a", "seg.dcm")], volume)
    save(tmp_path, "all.nii", np.zeros((12, 12, 6), np.uint8))
    with pytest.raises(UserError, match="resampled to a straight grid"):
        read_volume_labels(tmp_path, [Mask("x", "a", "all.nii")], volume)
