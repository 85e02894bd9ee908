"""What the values of a volume mean, and who says so: the file, the data set or the configuration, in that order.

Guarantee: HU are claimed only where one of the three says HU. Slope and intercept are applied once; that they were, and
by whose word, is in the record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvlp.errors import UserError
from medvlp.io.dicom_values import RESCALE_TYPES
from medvlp.io.values import Converter
from medvlp.types import Intensity

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Int16

    from medvlp.config.preprocessing import StoredVolumeConfig
    from medvlp.io.dicom_header import Plane
    from medvlp.types import VolumeFacts


@dataclass(frozen=True)
class Meaning:
    """How stored values become those of the volume.

    `source` is file, data set, configuration, or nobody (then STORED). `fixed` is the scaling of all slices; None
    applies that of each slice.
    """

    intensity: Intensity
    source: str
    fixed: tuple[float, float] | None
    applied: bool
    inverted: bool = False
    stated: tuple[tuple[str, Any], ...] = ()

    def converter(self, plane: Plane | None = None, padding: tuple[int, int] | None = None) -> Converter:
        """Return the converter of a slice, or of a whole file."""
        slope, intercept = self.fixed or (1.0, 0.0)
        if self.fixed is None and plane is not None and plane.slope is not None and plane.intercept is not None:
            slope, intercept = plane.slope, plane.intercept
        by_data_set = dict(self.stated).get("scaling_source") == "data set"
        return Converter(self.intensity, slope, intercept, padding, may_round=by_data_set and slope > 1)

    @property
    def record(self) -> dict[str, Any]:
        """For provenance; `hu_applied` says whether slope and intercept were applied here to make HU."""
        return {
            "hu_applied": self.applied and self.intensity is Intensity.HU,
            "intensity_source": self.source,
            "inverted": self.inverted,
            **dict(self.stated),
        }


AIR_HU, LEAST_AIR = (-1100, -500), 0.01
"""Range of air and lung in HU, and the least share of voxels in it of a CT that shows any surroundings."""


def looks_like_hu(voxels: Int16[np.ndarray, "d h w"]) -> bool:
    """Tell whether numbers of unknown meaning can be HU: at least one voxel of a hundred is air or lung.

    Stored values of a detector begin at 0 and have none, grey values of other modalities neither; padding (-2000,
    -3024) does not count. A CT cut to a solid organ is not recognised.
    """
    import numpy as np

    low, high = AIR_HU
    return bool(np.mean((voxels >= low) & (voxels <= high)) >= LEAST_AIR)


def dicom_meaning(
    planes: Sequence[Plane],
    modality: str,
    photometric: str,
    config: StoredVolumeConfig,
    facts: VolumeFacts | None,
    where: Path,
) -> Meaning:
    """Decide what the values of a DICOM series mean.

    CT with rescale slope and intercept is HU unless Rescale Type says otherwise. The values of other modalities stay as
    they are stored; their rescale is recorded, and refused where it differs between slices.

    Raises:
        UserError: The slices disagree, or configuration or data set contradict the files.
    """
    scalings = {(plane.slope, plane.intercept) for plane in planes}
    types = {plane.rescale_type for plane in planes}
    rescaled = (None, None) not in scalings
    if not rescaled and len(scalings) > 1:
        raise UserError(
            "Some slices have a rescale slope and others have none.", where, "Give the files of one series."
        )
    if facts is not None and rescaled and (facts.slope, facts.intercept) != (None, None):
        raise _twice(where)
    stated = (
        ("slope", _one(slope for slope, _ in scalings)),
        ("intercept", _one(intercept for _, intercept in scalings)),
        ("rescale_type", _one(kind if kind in RESCALE_TYPES or not kind else "other" for kind in types)),
    )
    if modality == "CT" and rescaled and types <= {"", "HU"}:
        return Meaning(Intensity.HU, "file", None, True, stated=stated)
    intensity, source = _named(config, facts, where)
    if intensity is Intensity.HU:
        if modality != "CT":
            what = f"HU are asked for, but the files are {modality or 'of an unknown modality'}."
            raise UserError(what, where, "Set volume.intensity to auto.")
        fixed = None if rescaled else _given(facts) or (1.0, 0.0)
        return Meaning(intensity, source, fixed, rescaled or _given(facts) is not None, stated=stated)
    if len(scalings) > 1:
        what = "The rescale slope differs between slices, and nothing says that the values are HU."
        raise UserError(what, where, "Convert the series to one scale, or set volume.intensity to hu for a CT.")
    return Meaning(intensity, source, _given(facts) or (1.0, 0.0), False, photometric == "MONOCHROME1", stated)


def file_meaning(
    header: tuple[float, float], config: StoredVolumeConfig, facts: VolumeFacts | None, where: Path
) -> Meaning:
    """Decide what the values of a file mean whose format does not say it.

    Args:
        header: Slope and intercept of the file's header, (1, 0) where it has none.
        config: `intensity` names it where the data set does not.
        facts: What the data set says.
        where: For errors.

    Raises:
        UserError: Header and data set both scale the values.
    """
    given = _given(facts)
    scaled = header != (1.0, 0.0)
    if given is not None and scaled:
        raise _twice(where)
    intensity, source = _named(config, facts, where)
    slope, intercept = given or header
    stated = (("slope", slope), ("intercept", intercept), ("scaling_source", _who(given, scaled)))
    return Meaning(intensity, source, (slope, intercept), given is not None or scaled, stated=stated)


def _who(given: tuple[float, float] | None, scaled: bool) -> str | None:
    if given is not None:
        return "data set"
    return "file" if scaled else None


def _given(facts: VolumeFacts | None) -> tuple[float, float] | None:
    if facts is None or (facts.slope is None and facts.intercept is None):
        return None
    return (1.0 if facts.slope is None else facts.slope, 0.0 if facts.intercept is None else facts.intercept)


def _named(config: StoredVolumeConfig, facts: VolumeFacts | None, where: Path) -> tuple[Intensity, str]:
    if facts is not None:
        if facts.intensity is Intensity.UNIT:
            raise UserError("A volume cannot be UNIT.", where, "Name its values HU or STORED.")
        return facts.intensity, "data set"
    if config.intensity != "auto":
        return Intensity(config.intensity), "configuration"
    return Intensity.STORED, "nobody"


def _one(values: Any) -> Any:
    found = set(values)
    return found.pop() if len(found) == 1 else "per slice"


def _twice(where: Path) -> UserError:
    return UserError(
        "Both the file and the data set's tables give slope and intercept, so the values would be scaled twice.",
        where,
        "Name the edition of the data set: its files may hold HU already.",
    )
