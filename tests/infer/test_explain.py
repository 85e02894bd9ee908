"""Heat maps on the pixels of the file, in pictures that say what their colours mean and name nobody."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import bench_store
import numpy as np
import pytest
import torch
from command_line import called
from made_dicom import SECRET, slice_dataset
from PIL import Image
from pydicom.uid import DigitalXRayImageStorageForPresentation

from medvlp.data.transforms import normalise, to_tensor
from medvlp.errors import UserError
from medvlp.html.heat import INFERNO, OPACITY, colours, laid_over, scale_of
from medvlp.infer.explain import explain
from medvlp.infer.picture import Panel, picture
from medvlp.io import stored_transform
from medvlp.models.grad_cam import grad_cam
from medvlp.zoo import load_encoder

SHAPES = [(40, 90), (90, 40), (64, 64)]
TEXTS = ["left pleural effusion", "the heart"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bench_store.make_run(tmp_path_factory.mktemp("explain") / "run")


def with_aspect(run: Path, folder: Path, aspect: str) -> str:
    """Return a copy of the run whose images are stored otherwise."""
    import shutil

    other = Path(shutil.copytree(run, folder / aspect))
    file = other / "model" / "preprocessing.json"
    tree = json.loads(file.read_text())
    tree["stored"]["aspect"] = aspect
    file.write_text(json.dumps(tree))
    return str(other)


def spots(folder: Path) -> list[tuple[Path, tuple[int, int]]]:
    """Images of several shapes, each with one bright square and its centre."""
    found = []
    for number, (height, width) in enumerate(SHAPES):
        row, column = int(0.4 * height), int(0.55 * width)
        pixels = np.full((height, width), 20, np.uint8)
        pixels[row - 4 : row + 4, column - 4 : column + 4] = 250
        Image.fromarray(pixels).save(folder / f"{number}.png")
        found.append((folder / f"{number}.png", (row, column)))
    return found


def brightness(self: Any, pixels: torch.Tensor, texts: Any, encode: Any) -> torch.Tensor:
    """A heat map that is the brightness of each cell, so that a landmark is where it is bright."""
    cells = torch.nn.functional.avg_pool2d(pixels.mean(1, keepdim=True), 4)
    return torch.cat([cells] * len(texts), dim=1)


@pytest.mark.parametrize("aspect", ["pad", "crop", "squash"])
def test_a_landmark_is_found_where_it_lies_in_the_file(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aspect: str
) -> None:
    monkeypatch.setattr("medvlp.methods.medclip.MedCLIP.heat_map", brightness)
    encoder = load_encoder(with_aspect(run, tmp_path, aspect))
    images = spots(tmp_path)
    maps = encoder.heat_maps([path for path, _ in images], TEXTS)
    found = explain(with_aspect(run, tmp_path / "again", aspect), [p for p, _ in images], TEXTS, tmp_path / "x.png")
    for number, ((_, (row, column)), own) in enumerate(zip(images, maps, strict=True)):
        height, width = SHAPES[number]
        assert own.shape == (2, height, width)
        assert np.isnan(own).any() == (aspect == "crop" and height != width)
        scale_y, scale_x, _, _ = stored_transform(height, width, encoder.preprocessing.stored)
        at = found[2 * number].highest
        assert at is not None
        assert abs(at[0] + 0.5 - row) <= 4 / scale_y, "within one cell of 4 stored pixels"
        assert abs(at[1] + 0.5 - column) <= 4 / scale_x
        assert own[0][at] == np.nanmax(own[0])


def test_maps_of_files_are_those_of_their_squares_and_batched_as_one_by_one(run: Path, tmp_path: Path) -> None:
    encoder = load_encoder(str(run))
    images = [path for path, _ in spots(tmp_path)]
    together = encoder.heat_maps(images, TEXTS)
    encoder.batch_size = 2
    for path, own, again in zip(images, together, encoder.heat_maps(images, TEXTS), strict=True):
        np.testing.assert_allclose(again, own, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(encoder.heat_maps(path, TEXTS[1:])[0][0], own[1], rtol=1e-4, atol=1e-7)
    square = encoder.preprocess(images[2])[None]
    stored = encoder.heat_maps_stored(square, TEXTS)
    cells = encoder.token_heat_maps(square, TEXTS)
    assert stored.shape == (1, 2, 32, 32)
    expected = torch.nn.functional.interpolate(cells, (32, 32), mode="bilinear").numpy()
    np.testing.assert_allclose(stored, expected, atol=1e-7)
    assert cells.max() > 0


def test_grad_cam_explains_the_question_that_zero_shot_asks(run: Path) -> None:
    encoder = load_encoder(str(run))
    squares = np.random.default_rng(1).integers(0, 256, (2, 32, 32)).astype(np.uint8)
    method = encoder._text.method
    pixels = normalise(to_tensor(squares), encoder.preprocessing.input)
    directions = encoder.embed_text(TEXTS) - encoder.embed_text([f"no {text}" for text in TEXTS])
    tower = method.image_encoder
    expected = grad_cam(tower.backbone, lambda: tower(pixels), method.project_image, directions)
    torch.testing.assert_close(encoder.token_heat_maps(squares, TEXTS), expected)
    odds = method.logit_scale.detach() * encoder.embed_features(encoder.encode_stored(squares)) @ directions.T
    torch.testing.assert_close(encoder.zero_shot_stored(squares, TEXTS), torch.sigmoid(odds))
    with torch.inference_mode():
        torch.testing.assert_close(encoder.token_heat_maps(squares, TEXTS), expected)


def test_the_picture_has_no_metadata_and_the_values_are_those_of_the_encoder(run: Path, tmp_path: Path) -> None:
    images = [path for path, _ in spots(tmp_path)]
    explain(str(run), images, TEXTS, tmp_path / "deep" / "x.png", values=tmp_path / "x.npz")
    data = (tmp_path / "deep" / "x.png").read_bytes()
    assert chunks(data) == {b"IHDR", b"IDAT", b"IEND"}
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["x.png"]
    kept = np.load(tmp_path / "x.npz")
    assert kept["texts"].tolist() == TEXTS
    for number, own in enumerate(load_encoder(str(run)).heat_maps(images, TEXTS)):
        np.testing.assert_array_equal(kept[f"image_{number}"], own)


def chunks(data: bytes) -> set[bytes]:
    found, at = set(), 8
    while at < len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        found.add(name)
        at += length + 12
    return found


def test_a_dicom_file_is_drawn_without_its_patient(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ds = slice_dataset(np.random.default_rng(0).integers(0, 900, (50, 70)).astype(np.int16), (0, 0, 0))
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    ds.Modality = "DX"
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    out, values = tmp_path / "heat.png", tmp_path / "heat.npz"
    arguments = ["--image", tmp_path / "x.dcm", "--text", "effusion", "--out", out, "--values", values, "--pixels", 0]
    status, shown = called(monkeypatch, capsys, "explain", run, *arguments)
    assert status == 0, shown
    assert "effusion" in shown
    for file in (out, values):
        assert not any(
            name in file.read_bytes() for name in (SECRET.encode(), b"Doe", b"x.dcm", str(tmp_path).encode())
        )
    with Image.open(out) as picture_:
        assert picture_.info == {}
        assert picture_.width == 12 + 70 + 12 + 70 + 12


def test_colours_rise_evenly_in_lightness() -> None:
    rgb = np.array(INFERNO) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = np.where(luminance > 0.008856, 116 * np.cbrt(luminance) - 16, 903.3 * luminance)
    steps = np.diff(lightness)
    assert steps.min() > 0
    assert steps.max() < 2 * steps.mean()
    np.testing.assert_allclose(colours(np.array([0.0, 0.5, 1.0])), rgb[[0, 8, 16]])


def test_the_overlay_is_the_blend_that_the_scale_says() -> None:
    grey = np.full((2, 3), 0.5)
    heat = np.array([[0.0, 1.0, 2.0], [-1.0, 4.0, np.nan]])
    shown = laid_over(grey, heat, 0.0, 2.0) / 255
    np.testing.assert_allclose(shown[0, 0], 0.5, atol=0.003)
    np.testing.assert_allclose(shown[0, 1], 0.5 * (1 - OPACITY / 2) + OPACITY / 2 * colours(np.array(0.5)), atol=0.003)
    top = 0.5 * (1 - OPACITY) + OPACITY * colours(np.array(1.0))
    np.testing.assert_allclose(shown[0, 2], top, atol=0.003)
    np.testing.assert_allclose(shown[1, 1], top, atol=0.003)
    assert shown[1, 2].max() < 0.2, "what is not seen is dark"
    assert (laid_over(grey, heat * 0, 0.0, 0.0)[0] == 128).all(), "no evidence, no colour"


def test_a_scale_holds_zero_and_is_shared_unless_asked() -> None:
    weak, strong = np.full((300, 300), 0.1), np.full((300, 300), 1.0)
    assert scale_of([weak, strong]) == (0.0, 1.0)
    assert scale_of([weak - 0.35]) == (0.1 - 0.35, 0.0)
    grey = np.full((300, 300), 0.5)
    panels = [[Panel(grey, weak, "weak"), Panel(grey, strong, "strong")]]
    middles = {}
    for scale in ("shared", "each"):
        sheet = np.asarray(picture(panels, "evidence", scale, 0))
        middles[scale] = [sheet[200, 12 + 150].tolist(), sheet[200, 12 + 300 + 12 + 150].tolist()]
    assert middles["shared"][1] == middles["each"][1] == middles["each"][0]
    assert middles["shared"][0] != middles["each"][0]


def test_large_images_are_drawn_smaller_and_small_ones_larger() -> None:
    def size(height: int, width: int, pixels: int) -> tuple[int, int]:
        panel = Panel(np.zeros((height, width)), np.zeros((height, width)), "a title that is longer than its panel")
        return picture([[panel]], "evidence", "shared", pixels).size

    assert size(2000, 1000, 500)[0] == 250 + 24
    assert size(60, 40, 500)[0] == 40 * 4 + 24
    assert size(2000, 1000, 0)[0] == 1000 + 24


def test_mistakes_are_told_before_anything_is_written(run: Path, tmp_path: Path) -> None:
    image = spots(tmp_path)[0][0]
    out = tmp_path / "out" / "x.png"
    (tmp_path / "unfinished" / "checkpoints").mkdir(parents=True)
    wrong = [
        (str(run), [tmp_path / "missing.png"], TEXTS, out, "cannot be opened"),
        (str(run), [Path(__file__)], TEXTS, out, "neither|not|no"),
        (str(run), [image], [" "], out, "no text to look for, or an empty one"),
        (str(run), [image], [], out, "no text to look for"),
        (str(run), [], TEXTS, out, "no image"),
        (bench_store.RANDOM, [image], TEXTS, out, "no text side"),
        (str(tmp_path / "unfinished"), [image], TEXTS, out, "no finished model"),
        (str(run), [image], TEXTS, tmp_path / "out" / "x.jpg", "no name for a PNG"),
    ]
    for spec, images, texts, target, message in wrong:
        with pytest.raises(UserError, match=message):
            explain(spec, images, texts, target)
    assert not (tmp_path / "out").exists()


def test_an_encoder_without_heat_maps_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medvlp.methods.medclip.MedCLIP.heat_map_kind", None)
    with pytest.raises(UserError, match="has no heat maps"):
        explain(str(run), [spots(tmp_path)[0][0]], TEXTS, tmp_path / "x.png")
