"""DICOM series, multi-frame files and segmentations made for tests; every default is that of a plain axial CT."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SECRET = "Doe^Jane19500101"


def slice_dataset(pixels: np.ndarray, position: Sequence[float], **tags: Any) -> Dataset:
    """Return one CT slice; `tags` replace attributes, None deletes them."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
    uid = f"1.2.3.4.{zlib.crc32(pixels.tobytes() + repr(tuple(position)).encode())}"
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid
    ds.PatientName, ds.PatientID, ds.StudyInstanceUID = SECRET, "p1", "1.2.3.1"
    ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.3.2", "1.2.3.3"
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [f"{v:.8g}" for v in position], list(AXIAL)
    ds.PixelSpacing = [0.8, 0.7]
    ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
    _put_pixels(ds, pixels)
    for name, value in tags.items():
        if value is None:
            delattr(ds, name)
        elif isinstance(value, DataElement):
            ds[name] = value
        else:
            setattr(ds, name, value)
    return ds


def _put_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW"


def random_slices(count: int, rows: int = 12, columns: int = 10, seed: int = 0) -> np.ndarray:
    """Return stored values `[n h w]` of a CT: 0 to 3000."""
    return np.random.default_rng(seed).integers(0, 3000, (count, rows, columns)).astype(np.int16)


def write_series(
    folder: Path, slices: np.ndarray, positions: Sequence[Sequence[float]] | None = None, **tags: Any
) -> list[Path]:
    """Write slices, by default 2.5 mm apart upwards, under names and instance numbers in random order.

    Args:
        folder: Made if missing.
        slices: Stored values.
        positions: Of each slice, in LPS.
        tags: Replace attributes of all slices; `each_NAME` is a list with one value for each.

    Returns:
        The files in the order of `slices`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = positions or [(-50.0, -40.0, 10 + 2.5 * k) for k in range(len(slices))]
    names = np.random.default_rng(len(slices)).permutation(len(slices))
    files = []
    for k, (pixels, place) in enumerate(zip(slices, places, strict=True)):
        own = {
            name.removeprefix("each_"): value[k] if name.startswith("each_") else value for name, value in tags.items()
        }
        ds = slice_dataset(pixels, place, **{"InstanceNumber": int(names[-k]) + 1, **own})
        files.append(folder / f"{names[k]:03d}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    return files


def enhanced_dataset(frames: np.ndarray, positions: Sequence[Sequence[float]], **tags: Any) -> Dataset:
    """Return an enhanced CT whose geometry and rescale stand in functional groups alone."""
    ds = slice_dataset(frames[0], positions[0])
    for keyword in (
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "RescaleSlope",
        "RescaleIntercept",
    ):
        delattr(ds, keyword)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    _put_pixels(ds, frames)
    ds.NumberOfFrames = len(frames)
    shared, measures, orientation, rescale = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.8, 0.7], 5
    orientation.ImageOrientationPatient = list(AXIAL)
    rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 1, -1024, "HU"
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [rescale]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for number, place in enumerate(positions):
        group, plane, content = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [float(v) for v in place]
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number + 1, [1, number + 1]
        group.PlanePositionSequence, group.FrameContentSequence = [plane], [content]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = groups
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds


def segmentation_dataset(
    frames: np.ndarray, positions: Sequence[Sequence[float]], segments: Sequence[int], **tags: Any
) -> Dataset:
    """Return a binary DICOM SEG: one frame per position and segment."""
    ds = enhanced_dataset(frames.astype(np.uint8), positions)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    ds.Modality, ds.SegmentationType, ds.SeriesInstanceUID = "SEG", "BINARY", "1.2.3.9"
    ds.BitsAllocated = ds.BitsStored = 1
    ds.HighBit, ds.PixelRepresentation = 0, 0
    packed = np.packbits(frames.astype(np.uint8).ravel(), bitorder="little").tobytes()
    ds.PixelData = packed + b"\0" * (len(packed) % 2)
    for group, segment in zip(ds.PerFrameFunctionalGroupsSequence, segments, strict=True):
        item = Dataset()
        item.ReferencedSegmentNumber = segment
        group.SegmentIdentificationSequence = [item]
    items = []
    for segment in sorted(set(segments)):
        item = Dataset()
        item.SegmentNumber, item.SegmentLabel, item.SegmentAlgorithmType = segment, f"s{segment}", "MANUAL"
        items.append(item)
    ds.SegmentSequence = items
    for name, value in tags.items():
        setattr(ds, name, value)
    return ds
