"""Sound files of every format that the readers take, and how each is read."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Kind:
    """A sound file and how it is read."""

    name: str
    file: str
    data: bytes
    read: Callable[[Path], np.ndarray]
    checksum: bool = False
    """Whether the format detects any change of its pixels."""
    reference: Callable[[Path], np.ndarray] | None = None
    """Independent reader."""
    opaque: bool = False
    """Whether changed pixels cannot be told."""


def _volume(path: Path) -> np.ndarray:
    from medvlp.io import read_volume

    return read_volume(path).array


def _radiograph(path: Path) -> np.ndarray:
    from medvlp.config.preprocessing import StoredImageConfig
    from medvlp.io import read_radiograph, to_stored

    config = StoredImageConfig(colour="luminance", voi="none", frame=0)
    radiograph = read_radiograph(path, config)
    to_stored(radiograph, config)
    return radiograph.array


def _clip(path: Path) -> np.ndarray:
    from medvlp.config.preprocessing import StoredVideoConfig
    from medvlp.io import read_clip

    return read_clip(path, StoredVideoConfig(size=32)).array


def _labels(path: Path) -> np.ndarray:
    from medvlp.io import read_volume, read_volume_labels
    from medvlp.types import Mask

    root = path.parent
    volume = read_volume(root / "ct")
    masks = [Mask("x", "a", path.name, values=(1,)), Mask("x", "b", path.name, values=(2,))]
    return read_volume_labels(root, masks, volume)[0]


def _series(path: Path) -> np.ndarray:
    from medvlp.io import find_series, read_volume

    find_series(path.parent)
    return read_volume(path.parent).array


def _pydicom_image(path: Path) -> np.ndarray:
    """Return pydicom's pixels after rescale, as `_radiograph` gives them without a VOI."""
    import pydicom

    ds = pydicom.dcmread(path, force=True)
    pixels = pydicom.pixels.apply_rescale(ds.pixel_array.astype(np.float64), ds)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        limits = pydicom.pixels.apply_rescale(np.array([0.0, 2**ds.BitsStored - 1]), ds)
        pixels = limits.sum() - pixels
    return pixels.astype(np.float32)


def _pydicom_series(path: Path) -> np.ndarray:
    """Stack the slices of a folder as an axial series along z."""
    import pydicom

    files = [pydicom.dcmread(file, force=True) for file in sorted(path.parent.iterdir())]
    files.sort(key=lambda ds: ds.ImagePositionPatient[2])
    stack = np.stack([np.rint(pydicom.pixels.apply_rescale(ds.pixel_array, ds)) for ds in files])
    return np.where(np.isin(stack, (-2000, -3024)), -1024, stack)[:, ::-1, ::-1].clip(-32768, 32767)


def _pydicom_frames(path: Path) -> np.ndarray:
    """Stack the frames of an axial multi-frame file along z."""
    import pydicom

    ds = pydicom.dcmread(path, force=True)
    shared = ds.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence[0]
    z = [group.PlanePositionSequence[0].ImagePositionPatient[2] for group in ds.PerFrameFunctionalGroupsSequence]
    factor = shared.RescaleSlope, shared.RescaleIntercept
    if shared.get("RescaleType") not in (None, "", "HU") or ds.Modality != "CT":
        factor = (1, 0)
    return np.rint(ds.pixel_array[np.argsort(z)] * float(factor[0]) + float(factor[1]))[:, ::-1, ::-1].clip(
        -32768, 32767
    )


def _nibabel(path: Path) -> np.ndarray:
    import nibabel

    image = nibabel.load(path)
    codes = int(image.header["sform_code"]), int(image.header["qform_code"])
    image = image if max(codes) <= 0 else nibabel.as_closest_canonical(image)
    return np.rint(np.asarray(image.dataobj).reshape(image.shape[:3]).transpose(2, 1, 0))


def kinds(folder: Path) -> list[Kind]:
    """Write the surroundings that some need, and return the sound files."""
    from made_dicom import enhanced_dataset, random_slices, segmentation_dataset, slice_dataset, write_series

    slices = random_slices(5, 24, 20)
    write_series(folder / "series", slices)
    write_series(folder / "seg" / "ct", slices)
    places = [(-50.0, -40.0, 10 + 2.5 * k) for k in range(5)]
    parts = np.random.default_rng(0).random((5, 24, 20)) > 0.5
    array = slices.transpose(2, 1, 0).copy()

    def single() -> Any:
        return slice_dataset(slices[0], places[0], Modality="DX")

    found = [
        Kind(
            "series", "series/002.dcm", (folder / "series" / "002.dcm").read_bytes(), _series, reference=_pydicom_series
        ),
        Kind(
            "enhanced",
            "enhanced/x.dcm",
            dicom_bytes(enhanced_dataset(slices, places)),
            _volume,
            reference=_pydicom_frames,
        ),
        Kind("seg", "seg/x.dcm", dicom_bytes(segmentation_dataset(parts, places, [1, 2, 1, 2, 1])), _labels),
        Kind("radiograph", "radiograph/x.dcm", dicom_bytes(single()), _radiograph, reference=_pydicom_image),
        Kind("deflated", "deflated/x.dcm", _deflated(single()), _radiograph, reference=_pydicom_image),
        *(
            Kind(name, f"{name}/x.dcm", _compressed(slices, syntax, plugin), _radiograph, opaque=True)
            for name, syntax, plugin in (
                ("rle", "1.2.840.10008.1.2.5", "pydicom"),
                ("jpeg2000", "1.2.840.10008.1.2.4.90", "pylibjpeg"),
                ("jpeg_ls", "1.2.840.10008.1.2.4.80", "pyjpegls"),
            )
        ),
        Kind("nifti", "nifti/x.nii", _nifti(array), _volume, reference=_nibabel),
        Kind("nifti gz", "gz/x.nii.gz", gzip.compress(_nifti(array)), _volume, checksum=True, reference=_nibabel),
        Kind(
            "label map", "seg/x.nii.gz", gzip.compress(_nifti_on(folder / "seg" / "ct", parts)), _labels, checksum=True
        ),
        *_itk(folder, array),
        Kind("npz", "npz/x.npz", _npz(slices), _volume, checksum=True),
        Kind("png", "png/x.png", _picture(slices[0], "PNG"), _radiograph, checksum=True),
        Kind("slices", "slices/3.png", _picture(slices[3], "PNG"), _series, checksum=True),
        Kind("jpeg", "jpeg/x.jpg", _picture(slices[0], "JPEG"), _radiograph, opaque=True),
        Kind("avi", "avi/x.avi", _video(folder), _clip, opaque=True),
    ]
    for kind in found:
        (folder / kind.file).parent.mkdir(parents=True, exist_ok=True)
    for k in range(5):
        (folder / "slices" / f"{k}.png").write_bytes(_picture(slices[k], "PNG"))
    return found


def dicom_bytes(ds: Any) -> bytes:
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _deflated(ds: Any) -> bytes:
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    return dicom_bytes(ds)


def _compressed(slices: np.ndarray, syntax: str, plugin: str) -> bytes:
    from made_dicom import slice_dataset

    ds = slice_dataset(np.tile(slices[0], (3, 4)), (0, 0, 0), Modality="DX")
    ds.compress(syntax, encoding_plugin=plugin)
    return dicom_bytes(ds)


def _nifti(array: np.ndarray, affine: np.ndarray | None = None) -> bytes:
    import nibabel

    matrix = np.diag([0.7, 0.8, 2.5, 1]) if affine is None else affine
    return nibabel.Nifti1Image(array, matrix).to_bytes()


def _nifti_on(folder: Path, parts: np.ndarray) -> bytes:
    from medvlp.io import read_volume

    affine = read_volume(folder).affine
    assert affine is not None
    labels = np.where(parts, 1, 2).astype(np.uint8)
    return _nifti(labels.transpose(2, 1, 0).copy(), affine[:, [2, 1, 0, 3]])


def _itk(folder: Path, array: np.ndarray) -> list[Kind]:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(array.transpose(2, 1, 0))
    image.SetSpacing((0.7, 0.8, 2.5))
    found = []
    for name, packed in (("x.mha", False), ("z.mha", True), ("x.nrrd", False), ("z.nrrd", True)):
        sitk.WriteImage(image, str(folder / name), useCompression=packed)
        data = (folder / name).read_bytes()
        kind = f"{name[2:]}{' compressed' if packed else ''}"
        found.append(Kind(kind, f"itk_{name}/{name}", data, _volume, checksum=packed))
    return found


def _npz(slices: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, ct=slices)
    return buffer.getvalue()


def _picture(pixels: np.ndarray, form: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray((np.tile(pixels, (3, 3)) // 12).astype(np.uint8)).save(buffer, form)
    return buffer.getvalue()


def _video(folder: Path) -> bytes:
    import cv2

    path = folder / "sound.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 64))
    for k in range(6):
        writer.write(np.full((64, 64, 3), 30 * k, np.uint8))
    writer.release()
    return path.read_bytes()
