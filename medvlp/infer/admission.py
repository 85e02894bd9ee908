"""Which images a fine-tuned model answers: those that are of the kind it was trained on.

Guarantee: an image whose own header says that it is of another kind is refused, never answered. What a header does not
say is not held against it, but told. Of a header only modality, view and body part are looked at.

The rules, for what is known of the training images (`Scope`):

- another modality is refused; CR, DX and RG are one: the same radiograph, named by its detector;
- a lateral view is refused if only frontal ones (PA, AP) were seen, and the other way round; PA for AP is told;
- another body part is refused; CHEST and THORAX are one;
- a video is refused, and so is an image of one grey value;
- a file of several frames is refused, unless the training images were a certain frame of such files.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from medvlp.errors import UserError
from medvlp.io import is_dicom_file
from medvlp.sources._tables import view_of

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Shaped

    from medvlp.tasks._tuned import Scope
    from medvlp.types import Radiograph

PROJECTIONS = frozenset({"CR", "DX", "RG"})
FRONTAL = frozenset({"PA", "AP"})
CHEST = frozenset({"CHEST", "THORAX"})
_LEAVE_OUT = "Leave it out, or use a model that was trained on such images."


def admit_series(path: Path, scope: Scope) -> list[str]:
    """Return what could not be checked of a volume, or is unusual.

    Args:
        path: One of its files.
        scope: What the model was trained on.

    Raises:
        UserError: The model was not trained on such volumes.
    """
    if not is_dicom_file(path):
        return ["no header"] if scope.modalities or scope.body_parts else []
    from medvlp.io.dicom_header import read_header

    header, notes = read_header(path), list[str]()
    _modality(header.text("Modality").upper(), scope, path, notes)
    _body_part(header.text("BodyPartExamined").upper(), scope, path, notes)
    return notes


def admit(path: Path, radiograph: Radiograph, scope: Scope) -> list[str]:
    """Return what could not be checked, or is unusual.

    Args:
        path: The file.
        radiograph: Read from it.
        scope: What the model was trained on.

    Raises:
        UserError: The model was not trained on such images.
    """
    if radiograph.provenance.get("format") == "video":
        raise UserError("The file is a video, not one image.", path, _LEAVE_OUT)
    if not is_dicom_file(path):
        return ["no header"] if scope.modalities or scope.views or scope.body_parts else []
    from medvlp.io.dicom_header import read_header

    header = read_header(path)
    notes: list[str] = []
    _modality(header.text("Modality").upper(), scope, path, notes)
    _view(view_of(header.text("ViewPosition")), scope, path, notes)
    _body_part(header.text("BodyPartExamined").upper(), scope, path, notes)
    return notes


def check_content(square: Shaped[np.ndarray, "s s *c"], path: Path) -> None:
    """Refuse a stored square without content.

    Raises:
        UserError: All its pixels are equal.
    """
    if square.min() == square.max():
        raise UserError("All pixels of the image are equal.", path, "Check the file; export the image again.")


def _modality(found: str, scope: Scope, path: Path, notes: list[str]) -> None:
    known = set(scope.modalities)
    if known & PROJECTIONS:
        known |= PROJECTIONS
    if not known:
        return
    if not found:
        notes.append("modality not stated")
    elif found not in known:
        # A broken header can hold anything, a name too.
        shown = found if len(found) <= 4 and found.isalnum() else "another modality"
        raise UserError(
            f"The image is {shown}; the model was trained on {', '.join(scope.modalities)}.", path, _LEAVE_OUT
        )


def _view(found: str | None, scope: Scope, path: Path, notes: list[str]) -> None:
    known = set(scope.views)
    if not known:
        return
    if found is None:
        notes.append("view not stated")
    elif found not in known and not (found in FRONTAL and known & FRONTAL):
        raise UserError(f"The view is {found}; the model was trained on {', '.join(scope.views)}.", path, _LEAVE_OUT)
    elif found not in known:
        notes.append(f"view {found} was not among the training images")


def _body_part(found: str, scope: Scope, path: Path, notes: list[str]) -> None:
    known = {part.upper() for part in scope.body_parts}
    if known & CHEST:
        known |= CHEST
    if not known:
        return
    if not found:
        notes.append("body part not stated")
    elif found not in known:
        what = f"The image shows another body part than those of the training images ({', '.join(scope.body_parts)})."
        raise UserError(what, path, _LEAVE_OUT)
