"""Reports of a fine-tuned writer for new studies: one row per study, from all its images together.

Guarantee: a text is written from images that could be read and are of the trained kind, and from nothing else; a study
without one has no row. Every file is named once: in `paths` (its pixels were looked at), in `not_shown` (the model
takes no more images of a study, or has this one already), or in the quarantine.

Images are one study where their headers have the same StudyInstanceUID, which is compared and never written, or, asked
for, where they lie in one folder. A picture without a header is a study by itself unless folders are asked for: whose
it is cannot be seen. Images of a study are taken in the order given, folders sorted.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from medvlp.data.transforms import normalise, resize_pixels, to_tensor
from medvlp.errors import UserError
from medvlp.infer.images import Bad, read_ahead
from medvlp.infer.predict import Seen, see
from medvlp.io import is_dicom_file
from medvlp.progress import progress_bar
from medvlp.tasks._report_writer import ReportWriter
from medvlp.tasks._study_images import joined

if TYPE_CHECKING:
    from medvlp.tasks._tuned import TunedModel


@dataclass(frozen=True)
class NewStudy:
    """Files of one study; it is named by the first."""

    files: tuple[Path, ...]

    def __str__(self) -> str:
        return str(self.files[0])


@dataclass(frozen=True)
class SeenStudy:
    """What is shown of a study, and what is not."""

    shown: list[tuple[str, Seen]] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def report_rows(
    model: TunedModel,
    files: Sequence[Path],
    bad: list[Bad],
    study_by: Literal["header", "folder"],
    batch_size: int,
    num_workers: int,
) -> list[dict[str, Any]]:
    """Return a row for each study with a report; files without one are added to `bad`.

    Columns are `path` (the first image), `report`, `paths` and `not_shown` (JSON lists), `duplicate_of` (path of an
    earlier study with the same images), and `notes`.

    Args:
        model: A writer of reports.
        files: Image files.
        bad: What got no answer.
        study_by: What makes images one study.
        batch_size: Studies at a time.
        num_workers: Threads that read files.
    """
    studies = [NewStudy(own) for own in _studies(files, study_by)]
    rows: list[dict[str, Any]] = []
    first_with: dict[tuple[str, ...], str] = {}

    def read(study: NewStudy) -> SeenStudy:
        return _see_study(study, model)

    with progress_bar("predict", len(studies), "studies") as advance:
        for batch, failed in read_ahead(read, studies, batch_size, num_workers):
            bad.extend(failed)
            seen = [(name, study) for name, study in batch if study.shown]
            bad.extend(one for _, study in batch for one in study.bad)
            for (_, study), text in zip(seen, _texts(model, [study for _, study in seen]), strict=True):
                paths = [name for name, _ in study.shown]
                if isinstance(text, UserError):
                    bad.extend(Bad(name, text.what, text.fix) for name in [*paths, *study.not_shown])
                    continue
                other = first_with.setdefault(tuple(sorted(image.digest for _, image in study.shown)), paths[0])
                rows.append(
                    {
                        "path": paths[0],
                        "report": text,
                        "paths": json.dumps(paths, ensure_ascii=False),
                        "not_shown": json.dumps(study.not_shown, ensure_ascii=False),
                        "duplicate_of": "" if other == paths[0] else other,
                        "notes": "; ".join(_notes(study)),
                    }
                )
            advance(len(batch) + len(failed), refused=len(bad))
    return rows


def _studies(files: Sequence[Path], study_by: Literal["header", "folder"]) -> list[tuple[Path, ...]]:
    """Return the files of each study, studies in the order of their first files."""
    found: dict[object, list[Path]] = {}
    for path in files:
        found.setdefault(path.parent if study_by == "folder" else _study_of(path), []).append(path)
    return [tuple(own) for own in found.values()]


def _study_of(path: Path) -> object:
    """Return what is equal for the images of one study: its UID; the file itself where there is none."""
    from medvlp.io.dicom_header import read_header

    try:
        return (is_dicom_file(path) and read_header(path).text("StudyInstanceUID")) or path
    except Exception:  # whatever is wrong with the file is said when its pixels are read
        return path


def _see_study(study: NewStudy, model: TunedModel) -> SeenStudy:
    """Read the first images that can be shown, as many as the model takes."""
    seen = SeenStudy()
    for path in study.files:
        if len(seen.shown) == model.task.reports.max_images:
            seen.not_shown.append(str(path))
            continue
        try:
            image = see(path, model)
            if image.digest in (other.digest for _, other in seen.shown):
                seen.not_shown.append(str(path))
            else:
                seen.shown.append((str(path), image))
        except UserError as error:
            seen.bad.append(Bad(str(path), error.what, error.fix))
        except Exception as error:  # one file must not end the work on the others, whatever a decoder does
            fix = "Check the file; report the message if it is sound."
            seen.bad.append(Bad(str(path), f"{type(error).__name__}: {error}", fix))
    return seen


def _notes(study: SeenStudy) -> Iterator[str]:
    yield from dict.fromkeys(note for _, image in study.shown for note in image.notes)
    if study.bad:
        yield f"images of the study that could not be used: {len(study.bad)}"
    if study.not_shown:
        yield f"images of the study that were not looked at: {len(study.not_shown)}"


@torch.no_grad()
def _texts(model: TunedModel, studies: Sequence[SeenStudy]) -> list[str | UserError]:
    """Return what is written of each study; an error where nothing is, or the encoder gives no number."""
    if not studies:
        return []
    writer, taken, config = model.network, model.preprocessing.input, model.task.reports
    assert isinstance(writer, ReportWriter)
    squares = [resize_pixels(image.square[None], taken.size)[0] for study in studies for _, image in study.shown]
    pixels = to_tensor(np.stack(squares)).to(model.device)
    tokens = writer.tower(normalise(pixels, taken)).tokens.float()
    counts = torch.tensor([len(study.shown) for study in studies], device=model.device)
    real = torch.arange(config.max_images, device=model.device) < counts[:, None]
    finite = [bool(own.isfinite().all()) for own in tokens.split(counts.tolist())]
    texts = writer.write(joined(tokens.nan_to_num(), real), config)
    return [_said(text, good) for text, good in zip(texts, finite, strict=True)]


def _said(text: str, finite: bool) -> str | UserError:
    if not finite:
        fix = "Check the image; report it if it is sound."
        return UserError("The model gives no finite number for an image of the study.", "", fix)
    if not any(map(str.isalnum, text)):
        return UserError("The model writes no word for the study.", "", "Train it longer, or on more reports.")
    return text
