"""Montgomery County tuberculosis set: images, readings, and one mask for each lung.

Guarantee: as `medvlp.sources._nlm_tb`; the two masks of an image stay two structures, and half a pair is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from medvlp.sources._files import index_files
from medvlp.sources._nlm_tb import NlmTuberculosis
from medvlp.types import Mask

SIDES = {"left lung": "leftMask", "right lung": "rightMask"}


class Montgomery(NlmTuberculosis):
    """The data set below a root folder; see `data_cards/montgomery.md`."""

    folder, prefix = "MontgomerySet", "MCUCXR"

    def masks(self, base: str, names: Mapping[str, str]) -> dict[str, tuple[Mask, ...]]:
        """Return the masks of the left and the right lung by image id, where both are there."""
        files = {side: index_files(self, [f"{base}ManualMask/{folder}/*"], (".png",)) for side, folder in SIDES.items()}
        masks = {}
        for name in sorted(set().union(*files.values())):
            there = [side for side in SIDES if name in files[side]]
            path = files[there[0]][name]
            if name not in names:
                self.problem(path, "mask without image", "Download the image, or remove the mask.", name)
            elif len(there) < len(SIDES):
                reason = f"there is a mask of the {there[0]} only; the image is kept without masks"
                self.problem(path, reason, "Download the mask of the other lung.", name)
            else:
                masks[name] = tuple(Mask(name, side, path=files[side][name]) for side in SIDES)
        return masks
