"""Reports of a fine-tuned writer for new studies: one row per study, from all its images or volumes together.

Guarantee: a text is written from images that could be read and are of the trained kind, and from what the writer's
experts find in them; a study without one has no row. An image of which an expert finds nothing (it fails) is set aside.
Every file is named once: in `paths` (its pixels were looked at), in `not_shown` (the model takes no more images of a
study, or has this one already), or in the quarantine.

Images are one study where their headers have the same StudyInstanceUID, which is compared and never written, or, asked
for, where they lie in one folder. A file without a header is a study by itself unless folders are asked for: whose it
is cannot be seen. Images of a study are taken in the order given, folders sorted.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from medvlp.data.transforms import normalise
from medvlp.errors import UserError
from medvlp.infer.images import Bad, read_ahead, safely
from medvlp.infer.seen import Seen, SeenVolume, input_of
from medvlp.infer.volumes import VolumeFiles
from medvlp.io import is_dicom_file
from medvlp.progress import progress_bar
from medvlp.tasks._experts.prompts import said_of
from medvlp.tasks._report_writer import ReportWriter
from medvlp.tasks._study_images import joined

if TYPE_CHECKING:
    from jaxtyping import Int

    from medvlp.tasks._tuned import TunedModel

File = Path | VolumeFiles


@dataclass(frozen=True)
class NewStudy:
    """Files of one study; it is named by the first."""

    files: tuple[File, ...]

    def __str__(self) -> str:
        return str(self.files[0])


@dataclass(frozen=True)
class Shown:
    """What a writer is shown of one file: input, and what experts say of it."""

    name: str
    pixels: Int[torch.Tensor, "1 c *s"]
    prompt: str
    digest: str
    notes: list[str]


@dataclass(frozen=True)
class SeenStudy:
    """What is shown of a study, and what is not."""

    shown: list[Shown] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)


def report_rows(
    model: TunedModel,
    read: Callable[[Any], Seen | SeenVolume],
    files: Sequence[File],
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
        read: Reads one file as the training images were read.
        files: Image files, or volumes.
        bad: What got no answer.
        study_by: What makes images one study.
        batch_size: Studies at a time.
        num_workers: Threads that read files.
    """
    studies = [NewStudy(own) for own in _studies(files, study_by)]
    rows: list[dict[str, Any]] = []
    first_with: dict[tuple[str, ...], str] = {}
    with progress_bar("predict", len(studies), "studies") as advance:
        for batch, failed in read_ahead(_Looking(model, read), studies, batch_size, num_workers):
            bad.extend(failed)
            seen = [(name, study) for name, study in batch if study.shown]
            bad.extend(one for _, study in batch for one in study.bad)
            for (_, study), text in zip(seen, _texts(model, [study for _, study in seen]), strict=True):
                paths = [image.name for image in study.shown]
                if isinstance(text, UserError):
                    bad.extend(Bad(name, text.what, text.fix) for name in [*paths, *study.not_shown])
                    continue
                other = first_with.setdefault(tuple(sorted(image.digest for image in study.shown)), paths[0])
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


def _studies(files: Sequence[File], study_by: Literal["header", "folder"]) -> list[tuple[File, ...]]:
    """Return the files of each study, studies in the order of their first files."""
    found: dict[object, list[File]] = {}
    for file in files:
        path = file if isinstance(file, Path) else file.first
        study = path.parent if study_by == "folder" else _study_of(path)
        found.setdefault(file if study is None else study, []).append(file)
    return [tuple(own) for own in found.values()]


def _study_of(path: Path) -> object:
    """Return what is equal for the images of one study: its UID; None where there is none."""
    from medvlp.io.dicom_header import read_header

    try:
        return (is_dicom_file(path) and read_header(path).text("StudyInstanceUID")) or None
    except Exception:  # whatever is wrong with the file is said when its pixels are read
        return None


class _Looking:
    """From the files of a study to what is shown of it: the first ones that can be, as many as the model takes."""

    def __init__(self, model: TunedModel, read: Callable[[Any], Seen | SeenVolume]) -> None:
        self.model, self.read = model, read
        self.one_at_a_time = threading.Lock()  # experts share the device with the writer

    def __call__(self, study: NewStudy) -> SeenStudy:
        found = SeenStudy()
        for file in study.files:
            name = str(file)
            if len(found.shown) == self.model.task.reports.max_images:
                found.not_shown.append(name)
                continue
            seen = safely(self.read, file)
            if isinstance(seen, Bad):
                found.bad.append(seen)
            elif seen.digest in (other.digest for other in found.shown):
                found.not_shown.append(name)
            else:
                shown = self._shown(name, seen)
                found.bad.append(shown) if isinstance(shown, Bad) else found.shown.append(shown)
        return found

    def _shown(self, name: str, seen: Seen | SeenVolume) -> Shown | Bad:
        pixels = input_of(name, seen, self.model.preprocessing.input)
        if isinstance(pixels, Bad):
            return pixels
        prompt = ""
        if self.model.experts:
            with self.one_at_a_time:
                said = safely(lambda _: said_of(self.model.experts, [seen.stored])[0], name)
            if isinstance(said, Bad):
                return Bad(name, f"An expert of the writer fails on it: {said.reason}", said.fix)
            prompt = said
        return Shown(name, pixels, prompt, seen.digest, seen.notes)


def _notes(study: SeenStudy) -> Iterator[str]:
    yield from dict.fromkeys(note for image in study.shown for note in image.notes)
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
    pixels = torch.cat([image.pixels for study in studies for image in study.shown]).to(model.device)
    tokens = writer.tower(normalise(pixels, taken)).tokens.float()
    counts = torch.tensor([len(study.shown) for study in studies], device=model.device)
    real = torch.arange(config.max_images, device=model.device) < counts[:, None]
    finite = [bool(own.isfinite().all()) for own in tokens.split(counts.tolist())]
    visual = joined(tokens.nan_to_num(), real)
    if model.experts:
        visual = writer.told(visual, [" ".join(image.prompt for image in study.shown) for study in studies], config)
    texts = writer.write(visual, config)
    return [_said(text, good) for text, good in zip(texts, finite, strict=True)]


def _said(text: str, finite: bool) -> str | UserError:
    if not finite:
        fix = "Check the image; report it if it is sound."
        return UserError("The model gives no finite number for an image of the study.", "", fix)
    if not any(map(str.isalnum, text)):
        return UserError("The model writes no word for the study.", "", "Train it longer, or on more reports.")
    return text
