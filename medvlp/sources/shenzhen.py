"""Shenzhen tuberculosis set: images, readings, and the lung masks that others added.

Guarantee: as `medvlp.sources._nlm_tb`; a mask belongs to the image whose name it bears.
"""

from __future__ import annotations

from collections.abc import Mapping

from medvlp.sources._files import index_files
from medvlp.sources._nlm_tb import NlmTuberculosis
from medvlp.types import Mask

MASK_FOLDERS = ("mask", "masks", "Mask", "Masks")


class Shenzhen(NlmTuberculosis):
    """The data set below a root folder; see `data_cards/shenzhen.md`."""

    folder, prefix = "ChinaSet_AllFiles", "CHNCXR"

    def masks(self, base: str, names: Mapping[str, str]) -> dict[str, tuple[Mask, ...]]:
        """Return one mask of both lungs by image id, from `*_mask.png`; an image without one is no problem."""
        patterns = [f"{place}{folder}/*" for place in dict.fromkeys([base, ""]) for folder in MASK_FOLDERS]
        files = index_files(
            self, patterns, (".png",), by=lambda path: path.rsplit("/", 1)[-1].removesuffix("_mask.png")
        )
        for name in sorted(set(files) - set(names)):
            self.problem(files[name], "mask without image", "Download the image, or remove the mask.", name)
        return {name: (Mask(name, "lungs", path=path),) for name, path in files.items() if name in names}
