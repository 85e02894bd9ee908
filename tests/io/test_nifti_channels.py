"""Of a NIfTI file with four dimensions the named channel is read, as nibabel gives it."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medvlp.errors import UserError
from medvlp.io import read_volume
from medvlp.types import Intensity, VolumeFacts

AFFINE = np.diag([0.5, 0.75, 2.0, 1.0])


def write(path: Path, side: int, channels: int) -> np.ndarray:
    array = np.random.default_rng(0).integers(-1000, 1000, (side, side + 1, 7, channels)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(array, AFFINE), path)
    return array


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize("side", [5, 200], ids=["small", "channels of more than a megabyte"])
def test_each_channel(tmp_path: Path, name: str, side: int) -> None:
    array = write(tmp_path / name, side, 4)
    for channel in range(4):
        facts = VolumeFacts(Intensity.STORED, channel=channel)
        volume = read_volume(tmp_path / name, facts=facts)
        assert np.array_equal(volume.array, array[..., channel].T)
        assert volume.spacing_mm == (2.0, 0.75, 0.5)
        assert volume.provenance["channel"] == channel


def test_a_channel_that_is_not_there_and_a_file_that_is_cut_off(tmp_path: Path) -> None:
    write(tmp_path / "x.nii", 5, 2)
    with pytest.raises(UserError, match="Channel 2 is asked for"):
        read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.STORED, channel=2))
    with pytest.raises(UserError, match="4 dimensions"):
        read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.STORED))
    (tmp_path / "x.nii").write_bytes((tmp_path / "x.nii").read_bytes()[:-2])
    with pytest.raises(UserError, match="truncated"):
        read_volume(tmp_path / "x.nii", facts=VolumeFacts(Intensity.STORED, channel=0))
    write(tmp_path / "y.nii.gz", 200, 2)
    data = bytearray((tmp_path / "y.nii.gz").read_bytes())
    data[-6] ^= 1  # the checksum, behind a channel that is not read
    (tmp_path / "y.nii.gz").write_bytes(bytes(data))
    with pytest.raises(UserError, match="damaged"):
        read_volume(tmp_path / "y.nii.gz", facts=VolumeFacts(Intensity.STORED, channel=0))
