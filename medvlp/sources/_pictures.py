"""Pictures or volumes of a user's folder, found by what a table calls them.

Guarantee: a name finds the one picture that it can mean: by its path, else by its file name, else by its name without
suffix; a name that could mean several finds none.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from medvlp.errors import UserError
from medvlp.sources._files import PICTURES, index_files, require_files
from medvlp.sources.base import Source

VOLUME_FILES = (".nii", ".nii.gz", ".mhd", ".mha", ".nrrd", ".npz")


class Pictures:
    """All PNG and JPEG files, or all volumes, under a root, at any depth; `paths` are relative to it and sorted.

    Args:
        source: The data set.
        volumes: Look for volumes.

    Raises:
        UserError: There is none.
    """

    def __init__(self, source: Source, *, volumes: bool = False) -> None:
        endings = VOLUME_FILES if volumes else PICTURES
        found = index_files(source, ["**/*"], {f".{ending.rsplit('.', 1)[1]}" for ending in endings}, by="path")
        shown = (path for path in found if not path.startswith(".") and "/." not in path)
        self.paths = sorted(path for path in shown if path.lower().endswith(endings))
        require_files(source, self.paths, "NIfTI, MHD, NRRD or NPZ files" if volumes else "PNG or JPEG files")
        self._by: list[dict[str, list[str]]] = [{}, {}, {}]
        for path in self.paths:
            pure = PurePosixPath(path)
            stem = pure.name.removesuffix(".gz").rsplit(".", 1)[0]
            for index, key in zip(self._by, (path, pure.name, stem), strict=True):
                index.setdefault(key, []).append(path)

    def find(self, name: str) -> str:
        """Return the path of a picture.

        Raises:
            ValueError: There is none, or it could be several.
        """
        parts = (PureWindowsPath if "\\" in name else PurePosixPath)(name)
        for index, key in zip(self._by, (parts.as_posix(), parts.name, parts.name), strict=True):
            found = index.get(key, [])
            if len(found) == 1:
                return found[0]
            if found:
                raise ValueError(f"the name could be {len(found)} pictures; give their paths")
        raise ValueError("there is no such picture")


def only_file(root: Path, pattern: str, option: str, given: object) -> Path | None:
    """Return the file that an option names, else the only one in the root that matches; None where there is none.

    Raises:
        UserError: The named file is missing, or several match.
    """
    from medvlp.sources._tables import user_file

    if given is not None:
        return user_file(root, given, option)
    found = sorted(path for path in root.glob(pattern) if not path.name.startswith(".") and path.is_file())
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise UserError(f"There are several {pattern} in the folder: {names}.", root, f"Set options.{option} to one.")
    return found[0] if found else None
