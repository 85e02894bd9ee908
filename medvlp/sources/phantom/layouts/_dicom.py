"""DICOM files of phantom images: one radiograph, or a CT volume as one file a slice.

Guarantee: equal arguments give equal bytes; every attribute a reader needs for geometry and intensity is there, and
attributes that identify a patient only where they are given.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Shaped
    from pydicom.dataset import Dataset

    from medvlp.sources.phantom.examples import ExampleVolume

CT_OFFSET = -1024
"""Rescale intercept of the CT files: stored values are HU + 1024."""
_CT_IMAGE, _COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.1"


def uid_of(*parts: object) -> str:
    """Return a DICOM UID that depends on the parts alone."""
    number = int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:15], "big")
    return f"2.25.{number}"


def radiograph_file(pixels: Shaped[np.ndarray, "h w"], sop_uid: str, **attributes: Any) -> bytes:
    """Return a computed radiograph of uint8 or uint16 pixels, MONOCHROME2, without any VOI.

    Args:
        pixels: Bright is dense.
        sop_uid: SOP Instance UID.
        **attributes: Further or other DICOM attributes by keyword, e.g. `PatientID`, `ViewPosition`.
    """
    bits = 8 * pixels.dtype.itemsize
    given = {"Modality": "CR", "BitsStored": bits, "HighBit": bits - 1, "PixelRepresentation": 0, **attributes}
    return _file(pixels, _COMPUTED_RADIOGRAPHY, sop_uid, bits, given)


def ct_series(volume: ExampleVolume, series_uid: str, **attributes: Any) -> Iterator[tuple[str, bytes]]:
    """Yield (SOP Instance UID, file) per axial slice, from inferior to superior.

    Args:
        volume: HU, with an affine whose axes are those of the patient.
        series_uid: Series Instance UID.
        **attributes: Further or other DICOM attributes by keyword.
    """
    # A file's rows run towards posterior and its columns towards the left; DICOM counts left and posterior as positive.
    flipped = volume.array[:, ::-1, ::-1].astype(np.int32) - CT_OFFSET
    spacing = [float(value) for value in np.linalg.norm(volume.affine[:3, :3], axis=0)]
    for number, stored in enumerate(flipped):
        corner = volume.affine @ [number, volume.array.shape[1] - 1, volume.array.shape[2] - 1, 1]
        uid = f"{series_uid}.{number + 1}"
        geometry = {
            "Modality": "CT",
            "SeriesInstanceUID": series_uid,
            "FrameOfReferenceUID": f"{series_uid}.0",
            "InstanceNumber": number + 1,
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "ImagePositionPatient": [float(-corner[0]), float(-corner[1]), float(corner[2])],
            "PixelSpacing": [spacing[1], spacing[2]],
            "SliceThickness": spacing[0],
            "RescaleSlope": 1,
            "RescaleIntercept": CT_OFFSET,
            "RescaleType": "HU",
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 0,
        }
        yield uid, _file(np.clip(stored, 0, 65535).astype(np.uint16), _CT_IMAGE, uid, 16, {**geometry, **attributes})


def _file(pixels: np.ndarray, sop_class: str, sop_uid: str, bits: int, attributes: dict[str, Any]) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    data: Dataset = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = UID(sop_class), UID(sop_uid)
    data.SOPClassUID, data.SOPInstanceUID = sop_class, sop_uid
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.BitsAllocated = 1, "MONOCHROME2", bits
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.PixelData = np.ascontiguousarray(pixels, pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OW" if bits > 8 else "OB"
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
