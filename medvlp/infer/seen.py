"""Files as a fine-tuned model sees them: read as its training images were, and made into its input.

Guarantee: a file that cannot be read, or is of another kind than the training images, is refused. Stored pixels and
input are those that a store of the same preprocessing gives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from medvlp.data.transforms import resize_pixels, to_tensor
from medvlp.data.volume_input import input_voxels, with_meaning
from medvlp.errors import UserError
from medvlp.infer.admission import admit, admit_series, check_content
from medvlp.infer.images import Bad
from medvlp.io import read_radiograph
from medvlp.io.stored import to_stored
from medvlp.io.volume import read_volume

if TYPE_CHECKING:
    from jaxtyping import Int, Shaped

    from medvlp.infer.volumes import VolumeFiles
    from medvlp.tasks._tuned import TunedModel
    from medvlp.types import Volume


@dataclass(frozen=True)
class Seen:
    """One image as it is given to the model."""

    square: Shaped[np.ndarray, "s s *c"]
    size: tuple[int, int]
    """Rows and columns of the file's image."""
    spacing_mm: tuple[float, float] | None
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def stored(self) -> Shaped[np.ndarray, "s s *c"]:
        """What a store would hold."""
        return self.square


@dataclass(frozen=True)
class SeenVolume:
    """One volume as it is given to the model."""

    volume: Volume
    digest: str
    notes: list[str] = field(default_factory=list)

    @property
    def stored(self) -> Volume:
        """What a store would hold."""
        return self.volume


def see(path: Path, model: TunedModel) -> Seen:
    """Read one file as the training images were read.

    Raises:
        UserError: It cannot be read, or is not of the kind of the training images.
    """
    config = model.preprocessing.stored
    radiograph = read_radiograph(path, config)
    notes = admit(path, radiograph, model.scope)
    square = to_stored(radiograph, config)
    check_content(square, path)
    height, width = radiograph.array.shape[:2]
    return Seen(square, (height, width), radiograph.spacing_mm, _digest([path]), notes)


def see_volume(scan: VolumeFiles, model: TunedModel, intensity: str = "auto") -> SeenVolume:
    """Read one volume as the training volumes were read.

    Args:
        scan: Its files.
        model: The model.
        intensity: What numbers mean where the files do not say it.

    Raises:
        UserError: It cannot be read, or is not of the kind of the training volumes.
    """
    config = model.preprocessing.stored
    if intensity != "auto":
        config = config.model_copy(update={"intensity": intensity})
    volume = read_volume(scan.path, config, files=scan.files)
    notes = admit_series(scan.first, model.scope)
    volume = with_meaning(volume, model.preprocessing.input, scan)
    if volume.provenance.get("intensity_source") == "values":
        notes.append("taken as HU by its values")
    if volume.provenance.get("sform_qform_agree") is False:
        notes.append("sform and qform place it differently: sform is taken")
    check_content(volume.array, scan.path)
    return SeenVolume(volume, _digest(scan.files or (scan.path,)), notes)


def input_of(name: str, seen: Seen | SeenVolume, taken: Any) -> Int[torch.Tensor, "1 c *s"] | Bad:
    """Return the input of a model, not yet normalised, or why there is none.

    Args:
        name: Of the file.
        seen: What was read of it.
        taken: What the model takes, of the kind of the file.
    """
    if isinstance(seen, Seen):
        return to_tensor(resize_pixels(seen.square[None], taken.size))
    try:
        return torch.from_numpy(input_voxels(seen.volume, taken, name))[None, None]
    except UserError as error:
        return Bad(name, error.what, error.fix)


def _digest(files: tuple[Path, ...] | list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()
