"""Heat maps of clips: on the frame and the place of the file, whatever was left out, padded, cropped or squashed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clip_stores import make_model
from command_line import called
from PIL import Image

from medvlp.errors import UserError
from medvlp.infer.explain_clip import explain_clips
from medvlp.sources.phantom.layouts._video import write_video
from medvlp.types import Clip
from medvlp.zoo import load_encoder

TEXTS = ["a thrombus is seen", "the ventricle is normal"]
FRAMES, HEIGHT, WIDTH = 41, 48, 80
LESION = (slice(18, 22), slice(18, 34), slice(42, 58))
"""Frames, rows and columns that are bright."""
FOUR = {"size": 32, "frames": 8, "every": 2}
MVIT = {"family": "mvit", "args": {"stages": [[8, 1, 1], [16, 2, 1]]}}
RESNET = {"family": "frames", "name": "resnet10t"}


def frames() -> np.ndarray:
    video = np.full((FRAMES, HEIGHT, WIDTH), 20, np.uint8)
    video[LESION] = 250
    return video


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same clip as videos of two rates, and as a folder of pictures."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "pictures").mkdir()
    for number, frame in enumerate(frames(), 1):
        Image.fromarray(frame).save(folder / "pictures" / f"{number}.png")
    found = {"pictures": folder / "pictures"}
    for name, fps in (("25.avi", 25.0), ("50.mp4", 50.0)):
        write_video(folder / name, frames(), fps)
        found[name] = folder / name
    return found


def brightness(self: Any, pixels: torch.Tensor, texts: Any, encode: Any) -> torch.Tensor:
    """A heat map that is the brightness of each cell of 2 x 2 pixels of a frame."""
    cells = torch.nn.functional.avg_pool3d(pixels.mean(1, keepdim=True), (1, 2, 2))
    return torch.cat([cells] * len(texts), dim=1)


def ramps(self: Any, pixels: torch.Tensor, texts: Any, encode: Any) -> torch.Tensor:
    """Three maps whose values are the number of the cell along time, down and across, on a grid of 4 x 8 x 8."""
    return torch.from_numpy(np.indices((4, 8, 8)).astype(np.float32))[None]


STORED = {
    "pad": {"size": 40, "aspect": "pad"},
    "crop": {"size": 24, "aspect": "crop"},
    "squash, every third": {"size": 32, "aspect": "squash", "every": 3},
    "the first 30 frames": {"size": 40, "aspect": "pad", "max_frames": 30},
}


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
def test_a_lesion_is_found_at_its_frame_and_place(stored, files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medvlp.methods.base.Method.heat_map", brightness)
    every = int(stored.get("every", 1))
    run = make_model(tmp_path / "run", stored, {"size": 32, "frames": 16 // every, "every": 1}, "surgclip", RESNET)
    found = explain_clips(run, list(files.values()), TEXTS[:1], tmp_path / "heat")
    assert [one.clip for one in found] == list(files.values())
    for number, (one, fps) in enumerate(zip(found, (None, 25.0, 50.0), strict=True), 1):
        assert one.place is not None
        assert all(side.start <= at < side.stop for side, at in zip(LESION, one.place, strict=True))
        assert one.second == (None if fps is None else pytest.approx(one.place[0] / fps))
        with np.load(tmp_path / "heat" / f"clip_{number}.npz") as kept:
            assert sorted(kept) == ["maps", "seen", "texts"]
            (values,) = kept["maps"]
            seen = kept["seen"]
        assert values.shape == (FRAMES, HEIGHT, WIDTH)
        assert np.isnan(values[~np.isin(np.arange(FRAMES), seen)]).all()
        bright = np.zeros(values.shape, dtype=bool)
        bright[LESION] = True
        visible = np.isfinite(values)
        assert np.median(values[bright & visible]) > 0.6 * values[visible].max()
        assert np.median(values[~bright & visible]) < 0.1 * values[visible].max()
        with Image.open(tmp_path / "heat" / f"clip_{number}.png") as picture:
            assert not picture.info
    assert len(list((tmp_path / "heat").iterdir())) == 6


@pytest.mark.parametrize("stored", STORED.values(), ids=STORED)
@pytest.mark.parametrize("taken", [{"frames": 8, "every": 2}, {"frames": 64, "every": 1}], ids=["cut", "too short"])
def test_every_pixel_gets_the_value_of_its_place(stored, taken, files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medvlp.methods.base.Method.heat_map", ramps)
    run = make_model(tmp_path / "run", stored, {"size": 32, **taken}, "surgclip", RESNET)
    (maps,) = load_encoder(run).heat_maps([files["pictures"]], ["a", "b", "c"])
    # By hand: which frames are kept, which of these are taken, and where a pixel lies in the square.
    kept = list(range(0, FRAMES, stored.get("every", 1)))[: stored.get("max_frames")]
    start = max(len(kept) - (taken["frames"] - 1) * taken["every"] - 1, 0) // 2
    places = {kept[at]: n for n, at in enumerate(range(start, len(kept), taken["every"])) if n < taken["frames"]}
    scale = {"pad": 1 / WIDTH, "crop": 1 / HEIGHT}.get(stored["aspect"])
    down, across = ((np.arange(n) + 0.5 - n / 2) * (scale or 1 / n) + 0.5 for n in (HEIGHT, WIDTH))
    expected = np.full((3, FRAMES, HEIGHT, WIDTH), np.nan)
    for frame, n in places.items():
        expected[0, frame] = np.clip((n + 0.5) / taken["frames"] * 4 - 0.5, 0, 3)
        expected[1, frame] = np.clip(down * 8 - 0.5, 0, 7)[:, None]
        expected[2, frame] = np.clip(across * 8 - 0.5, 0, 7)[None]
    expected[..., (across < 0) | (across > 1)] = np.nan
    np.testing.assert_allclose(maps, expected, atol=2e-5)


@pytest.mark.parametrize(("method", "tower"), [("echoprime", MVIT), ("surgclip", RESNET)])
def test_grad_cam_of_a_clip_is_that_of_its_score(method, tower, files, tmp_path) -> None:
    run = make_model(tmp_path / "run", {"size": 32, "aspect": "squash"}, FOUR, method, tower)
    encoder = load_encoder(run)
    assert encoder.heat_map_kind == "Grad-CAM"
    clip = encoder.read(files["pictures"])
    held = encoder.preprocess(clip)[None]
    ours = encoder.token_heat_maps(held, TEXTS).numpy()
    backbone, side = encoder.image_tower.backbone, encoder._text
    last = backbone.blocks[-1] if method == "echoprime" else backbone.layer4
    (pixels,) = encoder._inputs(held)
    directions = side.method.text_directions(TEXTS, side.encode)
    states: list[Any] = []
    hook = last.register_forward_hook(lambda _, given, out: states.append((given, out)))
    try:
        features = encoder.image_tower(pixels)
    finally:
        hook.remove()
    given, out = states[0]
    acts = given[0] if method == "echoprime" else out
    (similarity,) = side.method.project_image(features) @ directions.T
    for own, score in zip(ours[0], similarity, strict=True):
        (gradient,) = torch.autograd.grad(score, acts, retain_graph=True)
        if method == "echoprime":
            grid = tuple(given[1])
            assert grid == (4, 8, 8)
            assert grid != tuple(features.grid)
            tokens, slopes = (each[0, 1:].detach().numpy() for each in (acts, gradient))
            by_hand = np.maximum(tokens @ slopes.mean(0), 0).reshape(grid)
        else:
            cells, slopes = acts.detach().numpy(), gradient.numpy()
            by_hand = np.maximum((cells * slopes.mean((2, 3), keepdims=True)).sum(1), 0)
        np.testing.assert_allclose(own, by_hand, atol=1e-6 * by_hand.max(), rtol=1e-4)
    assert ours.max() > 0
    on_frames = encoder.heat_maps_stored(held, TEXTS)
    assert on_frames.shape == (1, 2, 8, 32, 32)
    again = encoder.heat_maps([Clip(held[0], None, {})], TEXTS)
    assert again[0].shape == (2, 8, 32, 32)


def test_the_verb_says_where_and_refuses_what_has_no_effect(files, tmp_path, monkeypatch, capsys) -> None:
    run = make_model(tmp_path / "run", {"size": 32}, FOUR, "echoprime", MVIT)
    base = ("explain", run, "--text", TEXTS[0], "--out", tmp_path / "heat")
    status, said = called(monkeypatch, capsys, *base, "--clip", files["25.avi"], "--text", TEXTS[1])
    assert status == 0, said
    assert "frame " in said
    assert sorted(path.name for path in (tmp_path / "heat").iterdir()) == ["clip_1.npz", "clip_1.png"]
    for extra, message in (
        (("--clip", files["25.avi"], "--values", tmp_path / "x.npz"), "--values is of images alone"),
        (("--clip", files["25.avi"], "--intensity", "hu"), "--intensity is of volumes alone"),
        (("--clip", files["25.avi"], "--image", "x.png"), "Either images, volumes or clips"),
        (("--clip", tmp_path / "none.avi"), "cannot be opened"),
    ):
        status, said = called(monkeypatch, capsys, *base, *extra)
        assert status
        assert message in said
    with pytest.raises(UserError, match="takes no clips"):
        explain_clips("random:resnet10t@32", [files["25.avi"]], TEXTS, tmp_path / "heat")
    monkeypatch.setattr("medvlp.data.clip_place.MOST_BYTES", 1000)
    with pytest.raises(UserError, match="Maps on 41 frames of 48 x 80 pixels"):
        explain_clips(run, [files["25.avi"]], TEXTS, tmp_path / "heat")
