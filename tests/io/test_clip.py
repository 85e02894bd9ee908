"""Clips from videos and folders of frames; single frames and colours of radiographs."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from medvlp.config.preprocessing import StoredImageConfig, StoredVideoConfig
from medvlp.errors import UserError
from medvlp.io import read_clip, read_radiograph, to_stored

SIZE = StoredVideoConfig(size=64)


def frames(count: int = 12, height: int = 64, width: int = 64) -> np.ndarray:
    """Return smooth red, green and blue frames, each with its number in its brightness."""
    y, x = np.mgrid[:height, :width]
    stack = np.zeros((count, height, width, 3), np.uint8)
    for k in range(count):
        stack[k] = (40 + 10 * k + np.stack([x // 2, y // 2, (x + y) // 4], axis=-1)).astype(np.uint8)
    return stack


def write(path: Path, stack: np.ndarray, code: str) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*code), 25, stack.shape[2:0:-1])
    assert writer.isOpened()
    for frame in stack:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "code", "tolerance"), [("x.avi", "FFV1", 3), ("x.avi", "MJPG", 6), ("x.mp4", "mp4v", 12)]
)
def test_video(tmp_path, name, code, tolerance):
    stack = frames()
    path = write(tmp_path / name, stack, code)
    keep = read_clip(path, StoredVideoConfig(size=64, colour="keep"))
    assert (keep.array.shape, keep.array.dtype, keep.fps) == ((12, 64, 64, 3), np.uint8, 25.0)
    assert np.abs(keep.array.astype(int) - stack).mean() < tolerance
    grey = read_clip(path, SIZE)
    assert grey.array.shape == (12, 64, 64)
    assert np.abs(grey.array - stack @ [0.299, 0.587, 0.114]).mean() < tolerance
    some = read_clip(path, StoredVideoConfig(size=64, every=5, max_frames=2))
    np.testing.assert_array_equal(some.array, grey.array[[0, 5]])
    assert some.fps == 5.0
    facts = grey.provenance
    assert (facts["height"], facts["width"], facts["frames"], facts["declared_frames"]) == (64, 64, 12, 12)


def test_frames_are_squared_as_images_are(tmp_path):
    path = write(tmp_path / "x.avi", frames(3, 64, 96), "FFV1")
    clip = read_clip(path, StoredVideoConfig(size=48))
    assert clip.array.shape == (3, 48, 48)
    assert clip.array[:, :8].max() == clip.array[:, -8:].max() == 0  # pad: 32 rows in the middle
    assert clip.array[:, 8:-8].min() > 0


def test_folder_of_frames(tmp_path):
    stack = frames(11)
    for k, frame in enumerate(stack):
        Image.fromarray(frame).save(tmp_path / f"frame_{k}.png")
    clip = read_clip(tmp_path, StoredVideoConfig(size=64, colour="keep", every=2, max_frames=5))
    np.testing.assert_array_equal(clip.array, stack[:10:2])
    assert clip.fps is None
    grey = read_clip(tmp_path, SIZE)
    assert np.abs(grey.array - stack @ [0.299, 0.587, 0.114]).max() <= 1
    Image.fromarray(stack[0, :30]).save(tmp_path / "frame_4.png")
    with pytest.raises(UserError, match="30 x 64 pixels where the first has 64 x 64"):
        read_clip(tmp_path, SIZE)


def test_frames_of_two_clips_are_not_one(tmp_path):
    for name, first in (("a", 0), ("b", 6)):
        (tmp_path / name).mkdir()
        for k, frame in enumerate(frames(12)[first : first + 6], first):
            Image.fromarray(frame).save(tmp_path / name / f"{k}.png")
    with pytest.raises(UserError, match="several folders"):
        read_clip(tmp_path, SIZE)
    assert len(read_clip(tmp_path / "b", SIZE).array) == 6


def test_videos_that_cannot_be_used(tmp_path):
    path = write(tmp_path / "x.avi", frames(), "MJPG")
    data = path.read_bytes()
    for broken in (data[: len(data) // 2], data[:40], data[:12] + bytes(len(data) - 12)):
        path.write_bytes(broken)
        with pytest.raises(UserError):
            read_clip(path, SIZE)
    for text, reason in ((b"", "no AVI, MP4 or MKV"), (b"hello", "no AVI, MP4 or MKV")):
        path.write_bytes(text)
        with pytest.raises(UserError, match=reason):
            read_clip(path, SIZE)
    with pytest.raises(UserError, match="cannot be opened"):
        read_clip(tmp_path / "missing.avi", SIZE)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="holds no frames"):
        read_clip(tmp_path / "folder", SIZE)


def test_what_the_decoder_would_conceal(tmp_path):
    """The coded data of one frame are lost: FFmpeg drops it, and all later frames would be those of other moments."""
    path = write(tmp_path / "x.avi", frames(), "MJPG")
    data = bytearray(path.read_bytes())
    start = data.find(b"\xff\xda", len(data) // 2) + 100
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"11 frames where 12 are declared|its decoder reports errors"):
        read_clip(path, SIZE)
    config = StoredImageConfig(colour="luminance")
    with pytest.raises(UserError, match="its decoder reports errors"):
        read_radiograph(path, config, frame=10)


def test_one_frame_as_a_radiograph(tmp_path):
    stack = frames()
    path = write(tmp_path / "x.avi", stack, "FFV1")
    keep = StoredImageConfig(colour="keep", size=64)
    for k in (0, 7, 11):
        radiograph = read_radiograph(path, keep, frame=k)
        assert radiograph.array.shape == (64, 64, 3)
        assert radiograph.array.dtype == np.float32
        assert np.abs(radiograph.array * 255 - stack[k]).mean() < 3
        assert radiograph.provenance["frame"] == k
    grey = read_radiograph(path, StoredImageConfig(colour="luminance"), frame=7)
    assert np.abs(grey.array * 255 - stack[7] @ [0.299, 0.587, 0.114]).mean() < 3
    for config, frame, reason in (
        (keep, 12, "it has 12 frames"),
        (keep, None, "a video, not one image"),
        (StoredImageConfig(), 0, "truly coloured"),
    ):
        with pytest.raises(UserError, match=reason):
            read_radiograph(path, config, frame=frame)


def test_the_frame_argument_of_dicom(test_data):
    path = test_data / "dicom" / "eCT_Supplemental.dcm"
    config = StoredImageConfig(voi="none")
    named = read_radiograph(path, config, frame=1)
    np.testing.assert_array_equal(named.array, read_radiograph(path, config.model_copy(update={"frame": 1})).array)
    with pytest.raises(UserError, match="2 frames"):
        read_radiograph(path, config)


def test_colours_are_kept_where_asked(tmp_path):
    colour = frames(1, 40, 30)[0]
    Image.fromarray(colour).save(tmp_path / "c.png")
    Image.fromarray(colour[..., 0]).save(tmp_path / "g.png")
    keep = StoredImageConfig(colour="keep", size=64, aspect="squash")
    radiograph = read_radiograph(tmp_path / "c.png", keep)
    np.testing.assert_allclose(radiograph.array * 255, colour, atol=1e-4)
    assert radiograph.provenance["colour"] == "kept"
    stored = to_stored(radiograph, keep)
    assert stored.shape == (64, 64, 3)
    for channel in range(3):
        Image.fromarray(colour[..., channel]).save(tmp_path / "one.png")
        one = to_stored(read_radiograph(tmp_path / "one.png"), StoredImageConfig(size=64, aspect="squash"))
        np.testing.assert_array_equal(stored[..., channel], one)
    grey = to_stored(read_radiograph(tmp_path / "g.png", keep), keep)
    assert grey.shape == (64, 64, 3)
    assert (grey == grey[..., :1]).all()


def test_coloured_dicom_is_kept(tmp_path):
    from made_dicom import slice_dataset

    colour = frames(1, 20, 30)[0]
    ds = slice_dataset(colour[..., 0], (0, 0, 0), Modality="US")
    ds.PixelData, ds.SamplesPerPixel, ds.PhotometricInterpretation = colour.tobytes(), 3, "RGB"
    ds.PlanarConfiguration, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 0, 8, 8, 7
    ds.PixelRepresentation = 0
    ds["PixelData"].VR = "OB"
    ds.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    radiograph = read_radiograph(tmp_path / "x.dcm", StoredImageConfig(colour="keep"))
    np.testing.assert_allclose(radiograph.array * 255, colour, atol=1e-4)
    assert to_stored(radiograph, StoredImageConfig(colour="keep", size=32)).shape == (32, 32, 3)


def test_oriented_colours(tmp_path):
    colour = frames(1, 20, 30)[0]
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(colour).save(buffer, "PNG", exif=exif)
    (tmp_path / "x.png").write_bytes(buffer.getvalue())
    radiograph = read_radiograph(tmp_path / "x.png", StoredImageConfig(colour="keep"))
    np.testing.assert_allclose(radiograph.array * 255, np.rot90(colour, -1), atol=1e-4)
