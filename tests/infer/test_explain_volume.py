"""Heat maps of volumes: on the lesion in SimpleITK's physical coordinates, and on the grid of the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from command_line import called
from PIL import Image
from scipy.spatial.transform import Rotation

from medvlp.config.methods import MethodConfig
from medvlp.config.preprocessing import StoredVolumeConfig, VolumePreprocessing
from medvlp.errors import UserError
from medvlp.infer.explain_volume import explain_volumes
from medvlp.io import read_volume
from medvlp.io.nifti_writer import write_on_volume
from medvlp.methods import METHODS
from medvlp.methods._artifact import save_model
from medvlp.methods.context import MethodContext
from medvlp.text.tokenizer import Tokenizer

TEXTS = ["a nodule", "no nodule is seen", "the heart is normal"]
SHAPE, SPACING_XYZ = (60, 50, 24), np.array([0.8, 0.8, 2.5])
LESION_RAS = np.array([7.0, -4.0, 12.0])


def make_run(folder: Path, **taken: Any) -> Path:
    """Save an untrained CLIP of volumes."""
    tokenizer = Tokenizer.train(TEXTS * 4, 128)
    config = MethodConfig.model_validate(
        {
            "name": "clip",
            "image": {
                "kind": "volume",
                "name": "vit_tiny_patch16_224",
                "patch": (4, 4, 4),
                "args": {"depth": 2},
                "input": {"size": (16, 16, 16), **taken},
            },
            "text": {"hidden": 16, "layers": 2, "heads": 2, "max_tokens": 10, "vocab_size": 128},
            "projection": {"dim": 8},
        }
    )
    torch.manual_seed(0)
    method = METHODS.get("clip")(config, MethodContext.of(tokenizer, []))
    preprocessing = VolumePreprocessing(stored=StoredVolumeConfig(), input=config.image.input)  # type: ignore[arg-type]
    save_model(folder / "model", method, preprocessing=preprocessing, tokenizer=tokenizer, record={})
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("explain_ct") / "run", spacing_mm=(2.5, 1.6, 1.6), size=(32, 32, 32))


def write(path: Path, axes: tuple[int, int, int], flips: tuple[int, int, int]) -> np.ndarray:
    """Write an oblique CT with one bright ball at `LESION_RAS`, its axes turned; return its affine."""
    turn = Rotation.from_euler("xyz", [12, -9, 20], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn * SPACING_XYZ
    affine[:3, 3] = -affine[:3, :3] @ (np.array(SHAPE) / 2)
    index = np.stack([*np.indices(SHAPE), np.ones(SHAPE)]).reshape(4, -1)
    distance = np.linalg.norm((affine @ index)[:3].T - LESION_RAS, axis=1).reshape(SHAPE)
    voxels = np.where(distance < 4.5, 900, -800).astype(np.int16)
    image = nibabel.Nifti1Image(voxels, affine)
    turned = image.as_reoriented(np.array([[axis, flip] for axis, flip in zip(axes, flips, strict=True)]))
    nibabel.save(turned, path)
    return turned.affine


def brightness(self: Any, pixels: torch.Tensor, texts: Any, encode: Any) -> torch.Tensor:
    """A heat map that is the brightness of each cell, so that a lesion is where it is bright."""
    cells = torch.nn.functional.avg_pool3d(pixels.mean(1, keepdim=True), 2)
    return torch.cat([cells] * len(texts), dim=1)


@pytest.mark.parametrize(
    ("axes", "flips"), [((0, 1, 2), (1, 1, 1)), ((0, 1, 2), (-1, -1, 1)), ((2, 0, 1), (1, -1, -1))]
)
def test_a_lesion_is_found_where_it_lies_in_the_patient(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axes: Any, flips: Any
) -> None:
    file = tmp_path / "x.nii.gz"
    affine = write(file, axes, flips)
    monkeypatch.setattr("medvlp.methods.clip.CLIP.heat_map", brightness)
    (found,) = explain_volumes(str(run), [file], ["a nodule"], tmp_path / "heat")
    assert found.place_mm is not None
    assert np.linalg.norm(np.array(found.place_mm) - LESION_RAS) < 5.0
    assert found.nifti == tmp_path / "heat" / "volume_1_a_nodule.nii.gz"
    kept = nibabel.load(found.nifti)
    np.testing.assert_allclose(kept.affine, affine, atol=1e-4)
    assert kept.shape == nibabel.load(file).shape
    # SimpleITK reads both files by itself, in LPS.
    heat, scan = sitk.ReadImage(str(found.nifti)), sitk.ReadImage(str(file))
    values = sitk.GetArrayFromImage(heat)
    peak = np.unravel_index(np.nanargmax(values), values.shape)[::-1]
    place = np.array(heat.TransformIndexToPhysicalPoint([int(i) for i in peak]))
    assert np.linalg.norm(place * [-1, -1, 1] - LESION_RAS) < 5.0
    at = heat.TransformPhysicalPointToIndex((LESION_RAS * [-1, -1, 1]).tolist())
    inside = sitk.GetArrayFromImage(scan) == 900
    assert inside[at[::-1]]
    assert values[at[::-1]] > 0.8 * np.nanmax(values)
    assert np.nanmean(values[inside]) > 5 * np.nanmean(values[~inside])


def test_what_the_encoder_does_not_see_is_marked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.methods.clip.CLIP.heat_map", brightness)
    write(tmp_path / "x.nii.gz", (0, 1, 2), (1, 1, 1))
    narrow = make_run(tmp_path / "narrow", spacing_mm=(2.5, 0.8, 0.8), size=(16, 16, 32))
    (found,) = explain_volumes(str(narrow), [tmp_path / "x.nii.gz"], ["a nodule"], tmp_path / "heat")
    assert found.nifti is not None
    values = nibabel.load(found.nifti).get_fdata()
    # 16 of 24 slices, 16 of 50 rows, 32 of 60 columns
    assert np.isfinite(values).sum() == 16 * 16 * 32
    with Image.open(tmp_path / "heat" / "volume_1.png") as picture:
        assert not picture.info


def test_values_return_to_the_file_index_by_index(tmp_path: Path) -> None:
    for axes, flips in (((0, 1, 2), (1, 1, 1)), ((1, 2, 0), (-1, 1, -1))):
        write(tmp_path / "x.nii", axes, flips)
        volume = read_volume(tmp_path / "x.nii")
        write_on_volume(tmp_path / "y.nii", volume.array, volume)
        np.testing.assert_array_equal(
            nibabel.load(tmp_path / "y.nii").get_fdata(), nibabel.load(tmp_path / "x.nii").get_fdata()
        )
    resampled = read_volume(tmp_path / "x.nii", StoredVolumeConfig(spacing_mm=(2.0, 2.0, 2.0)))
    write_on_volume(tmp_path / "z.nii", resampled.array, resampled)
    again = read_volume(tmp_path / "z.nii")
    np.testing.assert_allclose(again.affine, resampled.affine, atol=1e-4)


def test_real_volumes_go_through(
    run: Path, test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    series = test_data / "ct_series_abdomen_3slice"
    files = [test_data / "nifti" / name for name in ("CT_AVM.nii.gz", "CT_pitch.nii.gz")]
    given = [part for path in (series, *files) for part in ("--volume", path)]
    texts = ["--text", "a nodule", "--text", "the heart is normal"]
    heat = tmp_path / "heat"
    status, said = called(
        monkeypatch, capsys, "explain", run, *given, *texts, "--out", heat, "--intensity", "hu", "--device", "cpu"
    )
    assert status == 0, said
    assert len(list(heat.iterdir())) == 3 + 6
    for number, file in enumerate(files, 2):
        kept, scan = nibabel.load(heat / f"volume_{number}_a_nodule.nii.gz"), nibabel.load(file)
        assert kept.shape == scan.shape
        np.testing.assert_allclose(kept.affine, scan.affine, atol=1e-3)
    ours = sitk.ReadImage(str(heat / "volume_1_a_nodule.nii.gz"))
    names = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(series), series_uid(series))
    theirs = sitk.ReadImage(names)
    corner = np.array(theirs.TransformIndexToPhysicalPoint((0, 0, 0)))
    assert ours.GetSize() == theirs.GetSize()
    np.testing.assert_allclose(ours.TransformPhysicalPointToContinuousIndex(corner.tolist()), 0, atol=1e-2)


def series_uid(folder: Path) -> str:
    """Return the series of the slices, not that of the mask beside them."""
    reader = sitk.ImageSeriesReader
    return max(
        reader.GetGDCMSeriesIDs(str(folder)), key=lambda uid: len(reader.GetGDCMSeriesFileNames(str(folder), uid))
    )


def test_mistakes_are_said(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "x.nii.gz", (0, 1, 2), (1, 1, 1))
    status, said = called(monkeypatch, capsys, "explain", run, "--text", "a nodule", "--out", tmp_path / "heat")
    assert status
    assert "Give --image, or --volume" in said
    with pytest.raises(UserError, match="takes no volumes"):
        explain_volumes("random:resnet10t@32", [tmp_path / "x.nii.gz"], ["a nodule"], tmp_path / "heat")
    with pytest.raises(UserError, match="no text to look for"):
        explain_volumes(str(run), [tmp_path / "x.nii.gz"], [" "], tmp_path / "heat")
    assert not (tmp_path / "heat").exists()
