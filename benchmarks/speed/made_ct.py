"""A CT of the size of a real one for the speed figures: the thorax phantom, enlarged, with the noise of a scanner."""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHAPE = (300, 512, 512)
SPACING_MM = (1.0, 0.7, 0.7)
NOISE_HU = 20.0
AFFINE = np.array([[0.0, 0, 0.7, -179], [0, 0.7, 0, -179], [1.0, 0, 0, -150], [0, 0, 0, 1]])
"""From the index (d, h, w, 1) to RAS in mm."""


def ct_volume(shape: tuple[int, int, int] = SHAPE) -> np.ndarray:
    """Return int16 HU `[d h w]` in RAS."""
    import cv2

    from medvlp.sources.phantom import generate_study

    body = generate_study(0, 0, size=128).volume
    rng = np.random.default_rng(0)
    out = np.empty(shape, np.int16)
    places = np.linspace(0, len(body) - 1, shape[0])
    for target, place in zip(out, places, strict=True):
        below = int(place)
        above = min(below + 1, len(body) - 1)
        slice_ = body[below] + (place - below) * (body[above].astype(np.float32) - body[below])
        large = cv2.resize(slice_.astype(np.float32), shape[:0:-1], interpolation=cv2.INTER_LINEAR)
        target[:] = np.clip(np.rint(large + rng.normal(0, NOISE_HU, large.shape)), -1024, 3071)
    return out


def write_series(volume: np.ndarray, folder: Path) -> Path:
    """Write an axial series of uncompressed DICOM files, as a scanner would: from the feet up, rows from the front."""
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True)
    series, study, frame = generate_uid(), generate_uid(), generate_uid()
    for number, plane in enumerate(volume):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        image = pydicom.Dataset()
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        image.Modality, image.PatientID = "CT", "phantom"
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.SeriesNumber, image.InstanceNumber, image.ImageType = 1, number + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        image.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [-179.0, -179.0, -150.0 + number * SPACING_MM[0]]
        image.PixelSpacing, image.SliceThickness = [SPACING_MM[1], SPACING_MM[2]], SPACING_MM[0]
        image.Rows, image.Columns = plane.shape
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.RescaleSlope, image.RescaleIntercept, image.RescaleType = 1, -1024, "HU"
        image.PixelData = (plane[::-1, ::-1] + 1024).astype("<i2").tobytes()
        image.save_as(folder / f"{number:04d}.dcm", enforce_file_format=True)
    return folder
