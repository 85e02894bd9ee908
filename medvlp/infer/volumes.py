"""Volumes that a user names: files, and series of DICOM files in folders.

Guarantee: as for image files, each is named once, in the order given; what makes no volume is a `Bad` with reason and
next step, unless it is whole but no part of a volume (a localiser, a document).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medvlp.errors import UserError
from medvlp.infer.images import Bad
from medvlp.io import find_series
from medvlp.io.formats import volume_format

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".npz", ".npy")
VOLUME_FORMATS = frozenset({"nifti", "metaimage", "nrrd", "npy", "npz", "dicom"})


@dataclass(frozen=True)
class VolumeFiles:
    """One volume: a file, or the files of a series.

    Args:
        path: The file, or the folder of the series.
        files: Files of a series; empty for a file.
        part: Number of the series in its folder from 1, where it holds several; else 0.
    """

    path: Path
    files: tuple[Path, ...] = ()
    part: int = 0

    @property
    def first(self) -> Path:
        """The file, or the first one of the series."""
        return self.files[0] if self.files else self.path

    def __str__(self) -> str:
        return f"{self.path}#{self.part}" if self.part else str(self.path)


def list_volumes(paths: Sequence[Path]) -> tuple[list[VolumeFiles], list[Bad]]:
    """Return the volumes of files and folders (searched at any depth), and what is none."""
    found: dict[VolumeFiles, None] = {}
    bad: list[Bad] = []
    for path in map(Path, paths):
        if path.is_dir():
            volumes, problems = _under(path)
            bad.extend(problems)
            found.update(dict.fromkeys(volumes))
            if not volumes and not problems:
                bad.append(Bad(str(path), "The folder holds no volume.", "Check the path."))
        else:
            problem = _no_volume(path)
            if problem is None:
                found[VolumeFiles(path)] = None
            else:
                bad.append(problem)
    return list(found), bad


def _under(folder: Path) -> tuple[list[VolumeFiles], list[Bad]]:
    files = sorted(
        path for path in folder.rglob("*") if path.name.lower().endswith(VOLUME_SUFFIXES) and path.name[0] != "."
    )
    # SimpleITK would read x.nii where x.nii.gz is asked for; both are listed, and each is read by itself.
    volumes = [VolumeFiles(path) for path in files if path.is_file()]
    series = find_series(folder)
    of_folder: dict[Path, list[tuple[Path, ...]]] = {}
    for one in series:
        if one.kind == "volume":
            of_folder.setdefault(one.files[0].parent, []).append(one.files)
    for place, members in sorted(of_folder.items()):
        several = len(members) > 1
        volumes += [VolumeFiles(place, own, number if several else 0) for number, own in enumerate(members, 1)]
    problems = [
        Bad(str(problem.files[0]), problem.reason, problem.fix) for problem in series.problems if problem.broken
    ]
    return volumes, problems


def _no_volume(path: Path) -> Bad | None:
    try:
        kind = volume_format(path)
    except UserError as error:
        return Bad(str(path), error.what, error.fix)
    if kind in VOLUME_FORMATS:
        return None
    return Bad(str(path), "The file holds no volume.", "Give NIfTI, MHD, NRRD or NPZ, or the folder of a DICOM series.")
