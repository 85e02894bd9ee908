"""MetaImage files (.mhd with .raw) of phantom volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

_TYPES = {"int16": "MET_SHORT", "uint8": "MET_UCHAR"}


def metaimage(
    array: Shaped[np.ndarray, "d h w"], affine: Float[np.ndarray, "4 4"], data_file: str
) -> tuple[bytes, bytes]:
    """Return header and data of a volume in RAS, stored with columns towards left and rows towards posterior.

    Args:
        array: int16 or uint8.
        affine: That of `medvlp.types.Volume`, with axes along those of the patient.
        data_file: Name of the data file, beside the header.
    """
    depth, height, width = array.shape
    step = np.linalg.norm(affine[:3, :3], axis=0)
    corner = (affine @ [0, height - 1, width - 1, 1])[:3] * [-1, -1, 1]
    lines = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "False",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
        "Offset": " ".join(str(float(value)) for value in corner),
        "CenterOfRotation": "0 0 0",
        "AnatomicalOrientation": "RAI",
        "ElementSpacing": f"{float(step[2])} {float(step[1])} {float(step[0])}",
        "DimSize": f"{width} {height} {depth}",
        "ElementType": _TYPES[array.dtype.name],
        "ElementDataFile": data_file,
    }
    header = "".join(f"{name} = {value}\n" for name, value in lines.items())
    data = np.ascontiguousarray(array[:, ::-1, ::-1], array.dtype.newbyteorder("<"))
    return header.encode(), data.tobytes()
